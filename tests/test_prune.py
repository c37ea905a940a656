"""Pruning, against torch: the identity block, seam cuts, the KV cache, save and reload."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from _shapes import plan_for
from conftest import FAMILIES, FAMILY_NAMES

from edgeprune import files, model, prune, score, torch_model
from edgeprune.blocks import removed_sublayers, whole, without_block
from edgeprune.calibration import Windows
from edgeprune.catalog import names
from edgeprune.checkpoint import halves, open_checkpoint, raw_bytes, read_tensor
from edgeprune.errors import InputRejected, UsageError, WrongWeights
from edgeprune.types import Block, Text

IDENTITY = 2
SEAM = (Block(attn=0, ffn=0), Block(attn=1, ffn=3), Block(attn=4, ffn=4))
IRREGULAR = (Block(attn=0, ffn=0), Block(attn=1, ffn=None), Block(attn=None, ffn=2), Block(attn=4, ffn=4))
TOKENS = [[1, 5, 77, 130, 9, 250, 33, 8, 61, 200, 17, 90]]
OWN: dict[str, Windows] = {}  # a model's configuration and weights, as a hash -> own_windows


def cut(folder, blocks, out, **changes):
    spec = model.inspect(folder)
    plan = plan_for(spec, blocks).model_copy(update=changes)
    prune.prune(folder, spec, plan, out, base_model="tiny", command="edgeprune prune")
    return out


def logits(m, tokens=TOKENS):
    import torch

    with torch.inference_mode():
        return m(torch.tensor(tokens), use_cache=False).logits


def greedy(m, n=8):
    """With the KV cache, through transformers' own generate."""
    import torch

    return m.generate(torch.tensor(TOKENS), max_new_tokens=n, do_sample=False, pad_token_id=0, eos_token_id=None)[
        0
    ].tolist()


def greedy_uncached(m, n=8):
    tokens = list(TOKENS[0])
    for _ in range(n):
        tokens.append(int(logits(m, [tokens])[0, -1].argmax()))
    return tokens


def own_windows(m):
    """Text the model itself wrote: only there is the whole model the best predictor, as a trained one is of prose."""
    import torch

    key = hashlib.sha256(m.config.to_json_string().encode())
    for weight in m.parameters():
        key.update(weight.detach().float().numpy().tobytes())
    if key.hexdigest() not in OWN:
        torch.manual_seed(0)
        starts = torch.tensor([[5], [77], [130], [250]])
        tokens = m.generate(starts, max_new_tokens=63, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=None)
        about = Text(name="own", sha256="0", tokens=256, context_tokens=64, stride_tokens=64)
        OWN[key.hexdigest()] = Windows(tokens.tolist(), about)
    return OWN[key.hexdigest()]


def torch_close(a, b) -> bool:
    return (a - b).abs().max().item() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_an_identity_block_changes_nothing(family, tiny_folder, tmp_path):
    folder = tiny_folder(family, identity=IDENTITY)
    kept = without_block(whole(5), IDENTITY)
    before, after = torch_model.load(folder), torch_model.load(cut(folder, kept, tmp_path / "out"))
    assert logits(before).equal(logits(after))
    assert logits(before).equal(logits(torch_model.view(before, kept)))
    assert greedy(before) == greedy(after) == greedy_uncached(after)
    other = torch_model.view(before, without_block(whole(5), 1))
    assert not logits(before).equal(logits(other))


@pytest.mark.parametrize(  # of Llama, test_compare has a fast one
    "family", [pytest.param(f, marks=() if f == "gemma3" else pytest.mark.slow) for f in FAMILY_NAMES]
)
def test_an_identity_block_is_least_damaging(family, tiny_folder):
    folder = tiny_folder(family, identity=IDENTITY)
    m, spec = torch_model.load(folder), model.inspect(folder)
    windows = own_windows(m)
    for metric in names("edgeprune.metrics"):
        found = score.score(m, spec, windows, score.Method(metric, 3))
        if found.block_damage:
            assert min(range(5), key=lambda i: found.block_damage[i]) == IDENTITY
        gone = [set(removed_sublayers(step.blocks, 5)) for step in found.path]
        block = {("A", IDENTITY), ("F", IDENTITY)}
        if metric == "block_pruner":  # perplexity of so few tokens may fall when a real half goes: these go at no cost
            steps = [(gone[k] - gone[k - 1], k) for k in range(1, len(gone))]
            free = [found.path[k].perplexity == found.path[k - 1].perplexity for halves, k in steps if halves <= block]
            assert free and all(free), metric
            continue
        first = next(k for k, halves in enumerate(gone) if block <= halves)
        assert gone[first] == block, metric  # one step, or one for each half
        assert abs(found.path[first].kl) < 1e-6 < found.path[first + 1].kl


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seam_cut_joins_the_halves_it_names(family, tiny_folder, tmp_path):
    folder = tiny_folder(family)
    out = cut(folder, SEAM, tmp_path / "out")
    base, pruned = open_checkpoint(folder), open_checkpoint(out)
    of_attention = ["self_attn", "input_layernorm"]
    of_attention += ["post_attention_layernorm"] if family in ("gemma2", "gemma3", "olmo2") else []
    for name, entry in pruned.tensors.items():
        source = name
        for new, block in enumerate(SEAM):
            if name.startswith(f"model.layers.{new}."):
                attention = any(part in name for part in of_attention)
                old = block.attn if attention else block.ffn
                source = name.replace(f"layers.{new}.", f"layers.{old}.", 1)
        assert raw_bytes(entry) == raw_bytes(base.tensors[source]), name
    m = torch_model.load(out)
    assert m.config.num_hidden_layers == 3
    assert [layer.self_attn.layer_idx for layer in m.model.layers] == [0, 1, 2]
    assert logits(m).equal(logits(torch_model.view(torch_model.load(folder), SEAM)))
    assert greedy(m) == greedy_uncached(m)


def test_a_seam_cut_equals_skipping_the_sublayers(tiny_folder):
    """Independent of our surgery: zero F1, A2, F2 and A3 in the whole model instead of removing them."""
    folder = tiny_folder("llama")
    cut_model = torch_model.view(torch_model.load(folder), SEAM)
    zeroed = torch_model.load(folder)
    for layer, path in ((1, "mlp.down_proj"), (2, "self_attn.o_proj"), (2, "mlp.down_proj"), (3, "self_attn.o_proj")):
        zeroed.model.layers[layer].get_submodule(path).weight.zero_()
    assert logits(cut_model).equal(logits(zeroed))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_half_adds_nothing(family, tiny_folder, tmp_path):
    """An irregular folder opens in plain transformers and computes what skipping the halves computes."""
    folder = tiny_folder(family)
    out = cut(folder, IRREGULAR, tmp_path / "out")
    skipping = torch_model.load(folder)
    layers = skipping.model.layers
    for layer, path in ((1, "mlp.down_proj"), (2, "self_attn.o_proj"), (3, "self_attn.o_proj"), (3, "mlp.down_proj")):
        layers[layer].get_submodule(path).weight.zero_()
    pruned = torch_model.load(out)
    assert torch_close(logits(pruned), logits(skipping))
    assert greedy(pruned) == greedy_uncached(pruned)
    spec = model.inspect(out)
    assert [(b.attn.params > 0, b.ffn.params > 0) for b in spec.blocks] == [
        (b.attn is not None, b.ffn is not None) for b in IRREGULAR
    ]
    assert [b.kv_elements_per_token > 0 for b in spec.blocks] == [True, True, False, True]
    assert halves(open_checkpoint(out)) == ((True, True), (True, False), (False, True), (True, True))


def test_halves_said_to_be_missing_must_be_zero(tiny_folder, tmp_path):
    out = cut(tiny_folder("llama"), whole(5), tmp_path / "out")
    (out / "edgeprune.json").write_text(json.dumps({"kept": "0 1:- 2-4"}))
    with pytest.raises(InputRejected, match="not zero"):
        model.inspect(out)


def test_what_a_layer_is_by_its_place_travels_with_its_attention(tiny_folder, tmp_path):
    """SmolLM3's unrotated layers and Gemma's windows, written by a formula in configs that list nothing."""
    for family, fields, kept in (
        ("smollm3", {"no_rope_layers": [1, 1, 1]}, ((0, 0), (1, 3), (4, 4))),
        (
            "gemma2",
            {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
            ((0, 0), (1, 3), (4, 4)),
        ),
    ):
        folder, bare = tiny_folder(family), tmp_path / f"bare-{family}"
        shutil.copytree(folder, bare)
        config = json.loads((bare / "config.json").read_text())
        for name in ("layer_types", "no_rope_layers"):
            config.pop(name, None)
        (bare / "config.json").write_text(json.dumps(config))
        m = torch_model.load(cut(bare, tuple(Block(attn=a, ffn=f) for a, f in kept), tmp_path / family))
        assert {name: getattr(m.config, name) for name in fields} == fields
        assert logits(m).equal(logits(torch_model.view(torch_model.load(folder), SEAM)))


def test_the_folder_is_complete_and_opens_plainly(tiny_folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_folder("qwen2")
    out = cut(folder, SEAM, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    files.check_sums(out)
    card = (out / "README.md").read_text()
    assert "base_model: tiny" in card and "- pruned" in card and "3 of 5 blocks" in card
    assert json.loads((out / "edgeprune.json").read_text())["base_fingerprint"] == model.inspect(folder).fingerprint
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    loaded.save_pretrained(tmp_path / "again")
    assert logits(loaded).equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again")))
    assert AutoTokenizer.from_pretrained(out).apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert loaded.config.tie_word_embeddings and "lm_head.weight" not in open_checkpoint(out).tensors


@pytest.mark.parametrize("listed", [True, False], ids=["layer_types", "max_window_layers"])
def test_sliding_windows_travel_with_their_attention(listed, tiny_folder, tmp_path):
    """Qwen2 windows layers from max_window_layers on; older configs say so only by that formula."""
    folder = tiny_folder("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=3)
    if not listed:
        copy = tmp_path / "old"
        shutil.copytree(folder, copy)
        config = json.loads((copy / "config.json").read_text())
        del config["layer_types"]
        (copy / "config.json").write_text(json.dumps(config))
        folder = copy
    m = torch_model.load(cut(folder, SEAM, tmp_path / "out"))
    assert m.config.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    assert logits(m).equal(logits(torch_model.view(torch_model.load(folder), SEAM)))
    assert [b.sliding_window_tokens for b in model.inspect(tmp_path / "out").blocks] == [None, None, 4]


def test_an_unknown_per_layer_list_is_refused(tiny_folder, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(tiny_folder("llama"), folder)
    config = json.loads((folder / "config.json").read_text()) | {"layer_scales": [1.0] * 5}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputRejected, match="layer_scales"):
        cut(folder, SEAM, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_plan_for_other_weights_is_refused(tiny_folder, tmp_path):
    one, other = tiny_folder("llama", seed=1), tiny_folder("llama", seed=2)
    plan = plan_for(model.inspect(one), SEAM)
    with pytest.raises(WrongWeights, match="other weights"):
        prune.prune(other, model.inspect(other), plan, tmp_path / "out", base_model="x", command="y")


@pytest.mark.parametrize(
    "blocks", [(Block(attn=0, ffn=9),), (Block(attn=1, ffn=1), Block(attn=0, ffn=2)), (Block(attn=None, ffn=None),), ()]
)
def test_an_unusable_block_list_is_refused(blocks, tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    with pytest.raises(InputRejected):
        cut(folder, blocks, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_kept(tiny_folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="exists"):
        cut(tiny_folder("llama"), SEAM, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_large_models_are_written_in_shards(tiny_folder, tmp_path, monkeypatch):
    folder = tiny_folder("mistral")
    monkeypatch.setattr(prune, "SHARD_BYTES", 60_000)
    out = cut(folder, SEAM, tmp_path / "out")
    assert len(list(out.glob("model-*.safetensors"))) > 2
    assert logits(torch_model.load(out)).equal(logits(torch_model.view(torch_model.load(folder), SEAM)))


def test_bfloat16_tensors_read_as_stored(tiny_folder, tmp_path):
    import torch
    from safetensors.torch import save_file

    values = torch.randn(3, 5).to(torch.bfloat16)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"x": values}, tmp_path / "model.safetensors")
    found = read_tensor(open_checkpoint(tmp_path), "x")
    assert np.array_equal(found.astype(np.float32), values.float().numpy())
