"""Thinner models: matrices that really shrink give what zeros in the whole model give; nothing removed changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from _widths import logits, masked, whole_model

from edgeprune import model, width
from edgeprune.blocks import whole
from edgeprune.catalog import load, names
from edgeprune.checkpoint import open_checkpoint
from edgeprune.errors import InputRejected, UsageError
from edgeprune.folders import read_record
from edgeprune.torch_model import load as load_torch
from edgeprune.types import Block
from edgeprune.width_plan import Widths, params_left

SMALL = dict(files=[Path(__file__)], n_windows=2, context_tokens=48)
FAST = ("llama", "gemma3")
FAMILIES = [
    pytest.param(f, marks=() if f in FAST else pytest.mark.slow) for f in names("edgeprune.families") if f != "olmo2"
]


def thin(folder, method, ratio, out, rounding=1, uniform=True):
    spec = model.inspect(folder)
    rated = width.rate(folder, spec, method, **SMALL)
    plan = width.plan(spec, rated, ratio, rounding, uniform)
    width.prune(folder, spec, rated, plan, out, base_model="base", command="edgeprune prune")
    return rated, plan


def stored(folder):
    """Numbers in the files of weights, counted from their bytes."""
    return sum(f.stat().st_size for f in folder.glob("*.safetensors")) // 4


@pytest.mark.parametrize("family", FAMILIES)
def test_gives_what_zeros_give(family, tiny_folder, tmp_path):
    folder = tiny_folder(family)
    _, plan = thin(folder, "wanda_sp", 0.3, tmp_path / "thin", uniform=False)
    assert abs(logits(tmp_path / "thin") - masked(folder, plan)).max() < 2e-5
    spec, after = model.inspect(folder), model.inspect(tmp_path / "thin")
    assert after.params == params_left(spec, plan) < spec.params
    assert 0 <= stored(tmp_path / "thin") - after.params < 3000  # headers; no zeros stand for what is gone
    assert whole_model(tmp_path / "thin").config.head_dim == 16  # transformers opens it as it is


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("method", ["flap", "taylor"])
def test_published_widths_give_what_zeros_give(method, uniform, tiny_folder, tmp_path):
    """FLAP's biases are the mean inputs of what is gone, through the weights it had."""
    folder = tiny_folder("llama")
    rated, plan = thin(folder, method, 0.3, tmp_path / "thin", uniform=uniform)
    want = masked(folder, plan, rated.text.windows if method == "flap" else None)
    assert abs(logits(tmp_path / "thin") - want).max() < 5e-5
    config = json.loads((tmp_path / "thin" / "config.json").read_text())
    assert ("per_layer_config" in config) != uniform
    biased = [n for n in open_checkpoint(tmp_path / "thin").tensors if n.endswith(".bias")]
    assert len(biased) == (35 if method == "flap" else 0) and config.get("mlp_bias", False) == (method == "flap")
    assert read_record(tmp_path / "thin" / "widths.json", Widths) == plan


@pytest.mark.slow
@pytest.mark.parametrize("family", ["granite", "smollm3"])
def test_flap_on_families_with_output_biases(family, tiny_folder, tmp_path):
    folder = tiny_folder(family, attention_bias=True, mlp_bias=True)  # biases of their own stay
    rated, plan = thin(folder, "flap", 0.3, tmp_path / "thin")
    assert abs(logits(tmp_path / "thin") - masked(folder, plan, rated.text.windows)).max() < 5e-5


@pytest.mark.parametrize("method", ["flap", pytest.param("taylor", marks=pytest.mark.slow)])
def test_nothing_removed_is_the_same_file(method, tiny_folder, tmp_path):
    folder = tiny_folder("qwen2" if method != "flap" else "llama")
    thin(folder, method, 0.0, tmp_path / "thin", rounding=256)
    theirs, mine = open_checkpoint(folder), open_checkpoint(tmp_path / "thin")
    assert mine.config == theirs.config and mine.tensors.keys() == theirs.tensors.keys()
    whole_file, file = (f / "model.safetensors" for f in (folder, tmp_path / "thin"))
    for name, entry in mine.tensors.items():
        was = theirs.tensors[name]
        assert file.read_bytes()[entry.start : entry.end] == whole_file.read_bytes()[was.start : was.end], name


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in ("qwen3", "phi3", "granite"))]
)
def test_slicegpt_of_nothing_keeps_the_logits(family, tiny_folder, tmp_path):
    folder = tiny_folder(family)
    thin(folder, "slicegpt", 0.0, tmp_path / "thin")
    assert abs(logits(tmp_path / "thin") - logits(folder)).max() < 1e-3


def test_slicegpt_cuts_the_stream_as_the_paper_does(tiny_folder, tmp_path):
    """The whole model with its stream projected on the kept directions everywhere, norms dividing by the whole width."""
    import torch

    folder = tiny_folder("llama")
    rated, plan = thin(folder, "slicegpt", 0.3, tmp_path / "thin")
    m, q = whole_model(folder), torch.tensor(rated.rotation[:, : plan.hidden]).float()
    keep = q @ q.T
    with torch.no_grad():
        m.model.embed_tokens.weight.copy_(m.model.embed_tokens.weight @ keep)
        m.lm_head.weight = torch.nn.Parameter(whole_model(folder).lm_head.weight.clone())
        for name, p in m.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                p.copy_(keep @ p)
        want = m(input_ids=torch.tensor([list(range(5, 45))])).logits[0].numpy()
    assert abs(logits(tmp_path / "thin") - want).max() < 1e-4
    config = json.loads((tmp_path / "thin" / "config.json").read_text())
    assert config["hidden_size"] == plan.hidden < 64 and not config["tie_word_embeddings"]


def test_kept_numbers_keep_their_bits_and_type(tiny_folder, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "half"
    shutil.copytree(tiny_folder("llama"), folder)
    weights = {n: w.bfloat16() for n, w in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _, plan = thin(folder, "wanda_sp", 0.3, tmp_path / "thin")
    mine = load_file(tmp_path / "thin" / "model.safetensors")
    kept = [
        i
        for part in plan.blocks[2].channels.split()
        for i in range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1)
    ]
    for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        path = f"model.layers.2.mlp.{name}.weight"
        assert torch.equal(mine[path], weights[path].index_select(axis, torch.tensor(kept)))
    assert {w.dtype for w in mine.values()} == {torch.bfloat16}


def test_refusals(tiny_folder, tmp_path):
    def rate(family, method, **overrides):
        folder = tiny_folder(family, **overrides)
        return width.rate(folder, model.inspect(folder), method, **SMALL)

    for family, method, says in (
        ("qwen2", "flap", r"no place \(granite, llama, smollm3 have\); use wanda_sp or taylor"),
        ("gemma3", "slicegpt", "norms after its sub-layers, which no rotation passes"),
        ("olmo2", "taylor", "norms queries and keys over all heads together"),
    ):
        with pytest.raises(InputRejected, match=says):
            rate(family, method)
    thin(tiny_folder("llama"), "taylor", 0.3, tmp_path / "published", uniform=False)
    for again in (lambda f: load_torch(f), lambda f: width.rate(f, model.inspect(f), "wanda_sp", **SMALL)):
        with pytest.raises(
            InputRejected, match="layers differ in width: it can be healed by refit, exported, measured"
        ):
            again(tmp_path / "published")


@pytest.mark.parametrize(
    "said",
    [{"9": {"intermediate_size": 8}}, {"0": {"sliding_window": 4}}, {"0": {"intermediate_size": 400}}, {"x": {}}],
)
def test_a_config_of_widths_that_make_no_sense(said):
    from edgeprune import families

    with pytest.raises(InputRejected, match="per_layer_config"):
        families.decoder({**load("edgeprune.families", "llama").TINY, "per_layer_config": said})


def test_depth_then_width(tiny_folder, tmp_path):
    """A folder that a plan left is a model like any other, and says of both what was done."""
    from edgeprune.checkpoint import halves

    origin = {"base_model": "base", "kept": "0 2:3 4", "blocks": 3}
    folder = tmp_path / "cut"
    shutil.copytree(tiny_folder("llama", n_blocks=3), folder)
    (folder / "edgeprune.json").write_text(json.dumps(origin))
    thin(folder, "wanda_sp", 0.3, tmp_path / "thin")
    said = json.loads((tmp_path / "thin" / "edgeprune.json").read_text())
    assert (
        said["kept"] == "0 2:3 4"
        and said["width"] == "wanda_sp"
        and all(a and f for a, f in halves(open_checkpoint(folder)))
    )


def test_command_line(call, tiny_folder, tmp_path):
    folder, out = tiny_folder("llama"), tmp_path / "thin"
    small = ("--calibration", __file__, "--windows", 2, "--window", 48, "--round", 1)
    for wrong, says in (
        ((), "either --plan"),
        (("--width", "flap"), "needs --ratio"),
        (("--width", "flap", "--ratio", 1.5), "from 0 to less than 1"),
        (("--width", "wanda", "--ratio", 0.2), "Did you mean 'wanda_sp'"),
        (("--width", "flap", "--ratio", 0.2, "--plan", "plan.json"), "either --plan"),
    ):
        found = call("prune", folder, "-o", out, *wrong)
        assert found.returncode == 2 and says in found.stderr and not out.exists()
    found = call("prune", folder, "--width", "taylor", "--ratio", 0.3, "-o", out, *small, "--per-layer")
    assert found.returncode == 0, found.stderr
    assert "heads 4 → 2-4, groups 2 → 1-2, feed-forward 96 → 68-96: 0.2 M → 0.1 M parameters" in found.stdout
    shown = json.loads(call("inspect", out, "--json").stdout)
    assert [b["ffn"]["tensors"]["ffn_down.weight"][1] for b in shown["blocks"]] == [96, 68, 68, 68, 68]
    assert [b["kv_elements_per_token"] for b in shown["blocks"]] == [64, 32, 32, 32, 32]
    assert "feed-forward 68-96, 2-4 heads of 16, 1-2 for keys and values" in call("inspect", out).stdout


def test_a_plan_matches_a_depth_plan_on_real_tensors(tiny_folder, tmp_path):
    from edgeprune.width_plan import ratio_of

    folder = tiny_folder("llama")
    spec = model.inspect(folder)
    depth = (*whole(5)[:2], Block(attn=2, ffn=3), whole(5)[4])  # a seam cut: F2 A3 are gone
    rated = width.rate(folder, spec, "wanda_sp", **SMALL)
    plan = width.plan(spec, rated, ratio_of(spec, depth), 1)
    width.prune(folder, spec, rated, plan, tmp_path / "thin", base_model="base", command="")
    left = spec.params - spec.blocks[2].ffn.params - spec.blocks[3].attn.params
    assert abs(model.inspect(tmp_path / "thin").params - left) < 0.01 * left
    with pytest.raises(UsageError, match="exists"):
        width.prune(folder, spec, rated, plan, tmp_path / "thin", base_model="base", command="")
    assert np.isfinite(logits(tmp_path / "thin")).all()
