"""Healing by training, against transformers' own forward of what was written, peft's adapters, and runs not interrupted."""

from __future__ import annotations

import json
import shutil

import pytest
from _shapes import make_spec, plan_for
from test_heal import random_texts
from test_prune import cut, logits

from edgeprune import heal, model, torch_model
from edgeprune.blocks import from_text, to_text
from edgeprune.catalog import load
from edgeprune.checkpoint import halves, open_checkpoint, raw_bytes
from edgeprune.errors import InputRejected, OutOfResources, UsageError
from edgeprune.files import check_sums
from edgeprune.heal_text import read_examples
from edgeprune.healed_folder import Job, give_back, with_more
from edgeprune.healers._trainee import Cut
from edgeprune.healing import Healing
from edgeprune.training import loop, retrain
from edgeprune.training.batches import as_batch
from edgeprune.training.notebook import Progress

CUT = from_text("0-1 4")
TRAINED = ["distill", "full", "perp", "lora", "streamline"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return random_texts(tmp_path_factory.mktemp("texts"), "ab", 8, 300)


@pytest.fixture(scope="module")
def pruned(tiny_folder, tmp_path_factory):
    return cut(tiny_folder("llama"), CUT, tmp_path_factory.mktemp("cut") / "pruned")


def train(base, pruned, out, texts, method="distill", tokens=640, options=(), **changes):
    asked = dict(context_tokens=32, precision="float32", base_model="tiny", command="edgeprune heal")
    return heal.heal(
        pruned, base, model.inspect(base), out, method=method, files=texts, budget=heal.Budget(tokens=tokens),
        options={"rate": "3e-3"} | dict(options), **(asked | changes),
    )  # fmt: skip


def aside_kl(base, healed, texts, tokens):
    """KL(whole ‖ healed) of each kind's windows held aside, by transformers and the definition."""
    import torch

    tok, spec = torch_model.tokenizer(base), model.inspect(base)
    whole, m = torch_model.load(base), torch_model.load(healed)
    out = []
    for kind in read_examples(tok, spec, texts, [], tokens, 32)[1]:
        windows = torch.tensor([e.tokens for e in kind.aside])
        with torch.inference_mode():
            p, q = (x(windows, use_cache=False).logits[:, :-1].double().log_softmax(-1) for x in (whole, m))
        out.append(float((p.exp() * (p - q)).sum(-1).mean()))
    return out


@pytest.mark.parametrize("method", ["distill", "streamline"])
def test_training_lowers_the_damage_on_text_held_aside(tiny_folder, pruned, texts, tmp_path, method):
    base, out = tiny_folder("llama"), tmp_path / "healed"
    made = train(base, pruned, out, texts, method)
    assert [k.kl_cut for k in made.kinds] == pytest.approx(aside_kl(base, pruned, texts, 640), rel=1e-3)
    assert [k.kl_healed for k in made.kinds] == pytest.approx(aside_kl(base, out, texts, 640), rel=1e-3)
    assert all(k.kl_healed < 0.8 * k.kl_cut for k in made.kinds)
    assert made.trained.tokens == 640 and made.trained.steps == 20
    check_sums(out)
    assert Healing.from_json((out / "healing.json").read_text()) == made
    assert f"healed by {method}: trained on 640 tokens" in (out / "README.md").read_text()
    assert not list(tmp_path.glob(".healed*"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "perp", "lora"])
def test_training_lowers_the_loss_on_text_held_aside(tiny_folder, pruned, texts, tmp_path, method):
    made = train(tiny_folder("llama"), pruned, tmp_path / "healed", texts, method, options={"rate": "1e-2"})
    assert all(k.perplexity_healed < 0.95 * k.perplexity_cut for k in made.kinds)


@pytest.mark.parametrize(
    "family, method",
    [("llama", "lora"), ("llama", "streamline")]
    + [pytest.param("llama", m, marks=pytest.mark.slow) for m in ("distill", "full", "perp")]
    + [pytest.param(f, m, marks=pytest.mark.slow) for f in ("qwen2", "gemma3") for m in TRAINED],
)
def test_merged_weights_give_what_was_trained(tiny_folder, tmp_path, family, method):
    """peft's adapters, scales behind a projection: the plain weights that are written give the same logits."""
    import torch

    base = tiny_folder(family)
    folder, whole, healer = cut(base, CUT, tmp_path / "cut"), torch_model.load(base), load("edgeprune.healers", method)
    blocks = CUT
    if method == "streamline":
        plan = heal.pruned_plan(folder)
        blocks = healer.given_back(CUT, 5, healer.OPTIONS)
        give_back(
            Job(folder, base, None, plan, tmp_path, "", ""),
            with_more(plan, model.inspect(base), blocks),
            tmp_path / "more",
        )
        folder = tmp_path / "more"
    student = torch_model.load(folder)
    trainee = healer.prepare(student, whole, Cut(CUT, blocks), healer.OPTIONS)
    before = logits(student)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in trainee.parameters.values():
            p += 0.05 * torch.randn_like(p)
    expected = logits(student)
    plain = torch_model.load(folder)
    stored = {name: p.detach() for name, p in plain.named_parameters(remove_duplicate=False)}
    with torch.no_grad():
        for name, values in trainee.merged(lambda name: stored[name].clone()):
            stored[name].copy_(values)
    assert (expected - before).abs().max() > 0.1
    assert (logits(plain) - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_what_is_trained_is_what_the_method_says(tiny_folder, pruned, texts, tmp_path):
    base = tiny_folder("llama")

    def changed(method, **options):
        out = tmp_path / f"{method}{len(options)}"
        train(base, pruned, out, texts, method, 96, {"rate": "5e-4", **options})
        before, after = open_checkpoint(pruned).tensors, open_checkpoint(out).tensors
        return {n for n in after if n not in before or raw_bytes(before[n]) != raw_bytes(after[n])}

    assert changed("distill", weights="outputs") == {
        f"model.layers.{i}.{path}.weight" for i in range(3) for path in ("self_attn.o_proj", "mlp.down_proj")
    }
    small = changed("perp")
    assert "model.norm.weight" in small and not any("gate_proj" in n or "embed" in n for n in small)


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tiny_folder, pruned, texts, tmp_path, monkeypatch):
    base = tiny_folder("llama")
    dropout = {"dropout": "0.3"}
    train(base, pruned, tmp_path / "whole", texts, "lora", 160, dropout)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    for at in (2, 4):

        def stop(what, done, total, at=at):
            if done == at and what.startswith("training"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(base, pruned, tmp_path / "stopped", texts, "lora", 160, dropout, progress=stop)
        assert list(tmp_path.glob(".stopped.training/*.safetensors"))
    steps = []
    train(
        base, pruned, tmp_path / "stopped", texts, "lora", 160, dropout, progress=lambda _, done, n: steps.append(done)
    )
    assert steps == [5] and not list(tmp_path.glob(".stopped*"))
    name = "model.safetensors"
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_healing_in_closed_form_then_by_training(tiny_folder, pruned, texts, tmp_path):
    base, spec = tiny_folder("llama"), model.inspect(tiny_folder("llama"))
    solved = heal.heal(
        pruned, base, spec, tmp_path / "solved", method="refit", files=texts, context_tokens=32, base_model="tiny",
        n_windows=16, precision="float32", command="",
    )  # fmt: skip
    made = train(base, tmp_path / "solved", tmp_path / "both", texts, options={"rate": "3e-4"})
    assert made.former == solved and made.changed
    assert [k.kl_cut for k in made.kinds] == pytest.approx(aside_kl(base, tmp_path / "solved", texts, 640), rel=1e-3)
    assert json.loads((tmp_path / "both" / "edgeprune.json").read_text())["healed"] == "refit, then distill"
    assert "then healed by refit" in (tmp_path / "both" / "README.md").read_text()
    with pytest.raises(InputRejected, match="healed already"):
        heal.heal(tmp_path / "both", base, spec, tmp_path / "x", method="refit", files=texts, context_tokens=32,
                  base_model="tiny", command="")  # fmt: skip


def test_what_would_harm_any_kind_of_text_is_not_kept(tiny_folder, pruned, texts, tmp_path):
    made = train(tiny_folder("llama"), pruned, tmp_path / "out", texts, tokens=160, options={"rate": "0.5"})
    assert made.trained.kept is None and not made.changed
    a, b = (open_checkpoint(f).tensors for f in (pruned, tmp_path / "out"))
    assert all(raw_bytes(a[name]) == raw_bytes(b[name]) for name in {*a, *b})
    assert "nothing retrained" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("wanted, part", [(0.75, 0.75), (0.3, 0.5), (0.2, 0.25), (-1.0, None)])
def test_part_of_the_way_is_kept_where_all_of_it_harms_a_kind(wanted, part):
    """A weight goes from 0 to 1, which one kind asks for, and another asks for less of."""
    import torch

    weight = torch.nn.Parameter(torch.ones(3))

    def judge():
        here = weight[0].item()
        return ((abs(here - 1),), (abs(here - wanted),))

    before = ((1.0,), (abs(wanted),))
    found = loop._part_of_the_way(Progress(looks=((640, judge()),)), [weight], [torch.zeros(3)], judge, before)
    assert (found.part if found.best is not None else None) == part
    assert weight.tolist() == [part or 0.0] * 3
    assert len(found.looks) == {0.75: 2, 0.5: 3, 0.25: 4, None: 4}[part] and found.best in (None, len(found.looks) - 1)


@pytest.mark.parametrize(
    "kept, replace, expected",
    [
        ("0-11 18-29", "mlp", "0-11 -:12 18-29"),
        ("0-11 18-29", "block", "0-12 18-29"),
        ("0-3 6-9 13-29", "mlp", "0-3 -:4 6-9 -:10 13-29"),
        ("0 1:4 5-29", "block", "0-1 2:4 5-29"),  # F1 A2 F2 A3 F3 A4 are gone
        ("0 1:4 5-29", "mlp", "0-1 -:4 5-29"),
        ("0-1 4 6-29", "block", "0-2 4 6-29"),  # a single layer is not replaced by itself
    ],
)
def test_streamline_gives_back_what_a_run_began_with(kept, replace, expected):
    healer = load("edgeprune.healers", "streamline")
    assert to_text(healer.given_back(from_text(kept), 30, {"replace": replace})) == expected


def test_the_plan_of_what_was_given_back_is_foretold_anew():
    """And only where that can be: for a device that is known here."""
    spec = make_spec(n_blocks=5)
    known = plan_for(spec, CUT).model_copy(update={"device": "rpi5-8gb", "damage_kl": 0.1})
    more = with_more(known, spec, from_text("0-1 -:2 4"))
    before = with_more(known, spec, CUT)
    ffn = 4 * spec.blocks[2].ffn.params
    assert more.prediction.weights_bytes - before.prediction.weights_bytes == pytest.approx(ffn, rel=0.01)
    assert more.prediction.kv_bytes == before.prediction.kv_bytes and more.damage_kl is None
    assert more.removed == "layer 3; A2"
    assert with_more(plan_for(spec, CUT), spec, CUT).prediction == known.prediction


@pytest.mark.parametrize("replace", ["mlp", pytest.param("block", marks=pytest.mark.slow)])
def test_streamline_learns_what_the_run_gave(tiny_folder, pruned, texts, tmp_path, replace):
    """Its loss at the start, against hooks: after the given-back block on the student's stream, after layer 3 on the whole's."""
    import torch

    base, healer = tiny_folder("llama"), load("edgeprune.healers", "streamline")
    out = tmp_path / "out"
    train(base, pruned, out, texts, "streamline", 320, {"replace": replace})
    blocks = heal.pruned_plan(out).blocks
    assert to_text(blocks) == ("0-1 -:2 4" if replace == "mlp" else "0-2 4")
    assert halves(open_checkpoint(out))[2] == (replace == "block", True)
    whole, m = torch_model.load(base), torch_model.load(out)
    trainee = healer.prepare(m, whole, Cut(CUT, blocks), healer.OPTIONS | {"replace": replace})
    batch = as_batch([e for kind in example_kinds(base, texts) for e in kind.fit[:2]], "cpu")
    found = trainee.loss(batch, 0.0).item()
    with torch.inference_mode():
        states = [x(batch.tokens, output_hidden_states=True, use_cache=False).hidden_states for x in (m, whole)]
    expected = (states[0][3] - states[1][4]).double().square().mean(-1).sum()
    assert found == pytest.approx(float(expected), rel=1e-4)


def example_kinds(base, texts):
    return read_examples(torch_model.tokenizer(base), model.inspect(base), texts, [], 640, 32)[1]


@pytest.mark.slow
def test_streamline_of_identity_blocks_does_no_harm(tiny_folder, texts, tmp_path):
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(tiny_folder("llama", identity=2), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    for path in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.3.{path}.weight"].zero_()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    train(base, cut(base, CUT, tmp_path / "cut"), tmp_path / "out", texts, "streamline", 160)
    whole, m = torch_model.load(base), torch_model.load(tmp_path / "out")
    assert (logits(whole) - logits(m)).abs().max() < 1e-3


def test_wrong_input_is_refused_before_work(tiny_folder, pruned, texts, tmp_path, monkeypatch):
    base, out = tiny_folder("llama"), tmp_path / "out"
    with pytest.raises(InputRejected, match="has no plan.json"):
        train(base, base, out, texts)
    with pytest.raises(UsageError, match="two of each kind"):
        train(base, pruned, out, texts, context_tokens=512)
    with pytest.raises(UsageError, match=r"b\.txt is to judge"):
        train(base, pruned, out, texts, avoid=texts[1:])
    with pytest.raises(UsageError, match="perp has rate, last_rate"):
        train(base, pruned, out, texts, "perp", options={"rank": "8"})
    with pytest.raises(UsageError, match="rate=fast: not a number"):
        train(base, pruned, out, texts, options={"rate": "fast"})
    with pytest.raises(UsageError, match="all, blocks, attention"):
        train(base, pruned, out, texts, options={"weights": "some"})
    with pytest.raises(UsageError, match="mlp or block"):
        train(base, pruned, out, texts, "streamline", options={"replace": "lstm"})
    with pytest.raises(UsageError, match="can't be trained in"):
        train(base, pruned, out, texts, precision="float16")
    with pytest.raises(UsageError, match="not by --windows"):
        train(base, pruned, out, texts, n_windows=8)
    with pytest.raises(UsageError, match="closed form"):
        train(base, pruned, out, texts, "refit")
    with pytest.raises(OutOfResources, match="raise --max-memory"):
        train(base, pruned, out, texts, max_bytes=8_000_000)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UsageError, match=r"pip install 'edgeprune\[heal\]'"):
        train(base, pruned, out, texts, "lora")
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_ends_it(tiny_folder, pruned, texts, tmp_path):
    with pytest.raises(InputRejected, match="lower the rate"):
        train(tiny_folder("llama"), pruned, tmp_path / "out", texts, "full", options={"rate": "1e30"})
    assert not (tmp_path / "out").exists()


def test_settings_have_the_type_of_what_they_replace():
    recipe, options = retrain.settings(load("edgeprune.healers", "lora"), "lora", {"rank": "4", "rate": "1e-3"})
    assert (
        options == {"rank": 4, "alpha": 16.0, "dropout": 0.05} and recipe.rate == 1e-3 and recipe.batch_tokens == 16384
    )
