"""Healing thinner models in closed form, against least squares by hand on what hooks see in transformers' own models."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from test_heal import (
    ALL,
    RIDGE,
    SHARES,
    THIRD,
    fit_tokens,
    heal_folder,
    healer,
    random_kinds,
    random_texts,
    ridge_by_rows,
    seen,
)
from test_prune import cut
from test_width import thin

from edgeprune import closed_form, heal, torch_model
from edgeprune.blocks import from_text, whole
from edgeprune.checkpoint import open_checkpoint, raw_bytes
from edgeprune.errors import InputRejected, OutOfResources, WrongWeights
from edgeprune.files import check_sums

OUTPUTS = {"A": "self_attn.o_proj", "F": "mlp.down_proj"}


@pytest.fixture(scope="module")
def kinds():
    return random_kinds()


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return random_texts(tmp_path_factory.mktemp("texts"), "abc", 5, 500)


@pytest.fixture(scope="module")
def uneven(tiny_folder, tmp_path_factory):
    """Thinner as LLM-Pruner publishes it: layer 0 as it is, the others with one of two groups of heads and fewer channels."""
    out = tmp_path_factory.mktemp("thin") / "taylor"
    thin(tiny_folder("llama"), "taylor", 0.3, out, uniform=False)
    return out


@pytest.fixture(scope="module")
def flap(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("thin") / "flap"
    thin(tiny_folder("llama"), "flap", 0.3, out)
    return out


@pytest.fixture(scope="module")
def whole_model(tiny_folder):
    return torch_model.load(tiny_folder("llama"))


@pytest.fixture(scope="module")
def refitted(whole_model, uneven, kinds):
    thinner = torch_model.load_thinner(uneven, "float32")
    return closed_form.attempt(whole_model, whole(5), [healer("refit")], kinds, thinner=thinner)


def with_changes(folder, attempt, n=None):
    """The thinner model with the first n changes of an attempt."""
    m = torch_model.load_thinner(folder, "float32")
    for (kind, layer), delta in attempt.changes[:n]:
        out = m.model.layers[layer].get_submodule(OUTPUTS[kind])
        out.weight = type(out.weight)(out.weight + delta.T, requires_grad=False)
    return m


@pytest.mark.parametrize("scope", [THIRD, ALL])
def test_projections_are_asked_for_what_the_thinner_stream_lacks(whole_model, uneven, refitted, kinds, scope):
    """The first, and one after it with the first as it was solved."""
    attempt = refitted.healed[scope]
    assert attempt.changes[0].half == ("A", 1), "layer 0 is as it was"
    for n, change in enumerate(attempt.changes[:2]):
        kind, layer = change.half
        projection = f"model.layers.{layer}.{OUTPUTS[kind]}"
        after = (
            f"model.layers.{layer}.post_attention_layernorm"
            if kind == "A"
            else f"model.layers.{layer + 1}.input_layernorm"
        )
        here = seen(with_changes(uneven, attempt, n), fit_tokens(kinds), [projection, after])
        lacks = seen(whole_model, fit_tokens(kinds), [after])[after] - here[after]
        expected = ridge_by_rows(here[projection], lacks, *RIDGE[scope])
        assert np.abs(change.delta.numpy() - SHARES[scope][0] * expected).max() < 1e-3 * np.abs(expected).max()


def test_what_is_judged_is_what_the_thinner_weights_give(whole_model, uneven, refitted, kinds):
    import torch

    for attempt in (refitted.cut, *refitted.healed):
        m = with_changes(uneven, attempt)
        for kind, kl in zip(kinds, attempt.kl, strict=True):
            with torch.inference_mode():
                p, q = (
                    x(torch.tensor(kind.aside), use_cache=False).logits[:, :-1].log_softmax(-1)
                    for x in (whole_model, m)
                )
            assert kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3, abs=1e-6)


def test_a_healed_folder_is_the_thinner_one_with_the_solved_weights(tiny_folder, flap, texts, tmp_path):
    base, thinner = tiny_folder("llama"), flap
    made = heal_folder(base, thinner, tmp_path / "healed", texts)
    check_sums(tmp_path / "healed")
    assert made.changed and all(k.kl_healed < k.kl_cut for k in made.kinds)
    before, after = open_checkpoint(thinner).tensors, open_checkpoint(tmp_path / "healed").tensors
    expected = {f"model.layers.{name[1:]}.{OUTPUTS[name[0]]}.weight" for name in made.changed}
    assert {n: e.shape for n, e in before.items()} == {n: e.shape for n, e in after.items()}
    assert {n for n in before if raw_bytes(before[n]) != raw_bytes(after[n])} == expected, "FLAP's biases stay"
    card, said = ((tmp_path / "healed" / name).read_text() for name in ("README.md", "edgeprune.json"))
    assert "thinner by flap" in card and "then healed by refit" in card and "| a.txt |" in card
    assert json.loads(said)["width"] == "flap" and json.loads(said)["healed"] == "refit"
    assert heal.pruned_plan(tmp_path / "healed") == heal.pruned_plan(thinner)
    with pytest.raises(InputRejected, match="healed already"):
        heal_folder(base, tmp_path / "healed", tmp_path / "twice", texts)


def test_layers_removed_before_the_rest_was_thinned_are_healed_as_well(tiny_folder, texts, tmp_path):
    """F1 A2 F2 A3 are gone, and some of what is left."""
    base, pruned = tiny_folder("llama"), tmp_path / "cut"
    cut(base, from_text("0 1:3 4"), pruned)
    thin(pruned, "taylor", 0.2, tmp_path / "thin")
    plan = heal.pruned_plan(tmp_path / "thin")
    assert [(b.attn, b.ffn) for b in plan.blocks] == [(0, 0), (1, 3), (4, 4)]
    made = heal_folder(base, tmp_path / "thin", tmp_path / "healed", texts)
    assert all(k.kl_healed < k.kl_cut for k in made.kinds)
    assert {*made.changed} <= {"A0", "F0", "A1", "F3", "A4", "F4"}
    with pytest.raises(WrongWeights, match="thinned from other weights"):
        heal_folder(pruned, tmp_path / "thin", tmp_path / "other", texts)
    heal_folder(base, pruned, tmp_path / "again", texts)
    thin(tmp_path / "again", "taylor", 0.2, tmp_path / "after")
    with pytest.raises(InputRejected, match="healed already"):
        heal_folder(base, tmp_path / "after", tmp_path / "other", texts)


def test_where_nothing_was_taken_out_nothing_changes(tiny_folder, texts, tmp_path):
    base, thinner = tiny_folder("llama"), tmp_path / "thin"
    thin(base, "flap", 0.0, thinner)
    made = heal_folder(base, thinner, tmp_path / "healed", texts)
    assert not made.changed and all(k.kl_cut == pytest.approx(0, abs=1e-6) for k in made.kinds)
    before, after = open_checkpoint(thinner).tensors, open_checkpoint(tmp_path / "healed").tensors
    assert {n: raw_bytes(e) for n, e in before.items()} == {n: raw_bytes(e) for n, e in after.items()}


def test_what_can_not_be_healed_is_refused_with_the_reason(tiny_folder, flap, texts, tmp_path):
    base, thinner = tiny_folder("llama"), flap
    thin(base, "slicegpt", 0.2, tmp_path / "sliced")
    out = tmp_path / "out"
    with pytest.raises(InputRejected, match="slicegpt left this model's stream in another basis, .* wide"):
        heal_folder(base, tmp_path / "sliced", out, texts)
    for method in ("replaceme", "distill"):
        with pytest.raises(InputRejected, match=f"{method} heals models from which .* thinner; heal it by refit"):
            heal_folder(base, thinner, out, texts, method, n_windows=None)
    with pytest.raises(WrongWeights, match="thinned from other weights"):
        heal_folder(tiny_folder("llama", seed=1), thinner, out, texts)
    with pytest.raises(OutOfResources, match="fewer --windows"):
        heal_folder(base, thinner, out, texts, max_bytes=2_000_000)
    shutil.copytree(thinner, tmp_path / "changed")
    (tmp_path / "changed" / "config.json").write_text("{}")
    with pytest.raises(InputRejected, match="does not match SHA256SUMS"):
        heal_folder(base, tmp_path / "changed", out, texts)
    assert not out.exists()


@pytest.mark.slow
def test_healing_changes_neither_shapes_nor_bytes_of_exports(tiny_folder, flap, texts, tmp_path):
    import onnx

    from edgeprune.export import export
    from edgeprune.gguf_file import read_header

    heal_folder(tiny_folder("llama"), flap, tmp_path / "healed", texts)
    stored = []
    for n, folder in enumerate((flap, tmp_path / "healed")):
        assert export(folder, "gguf", "F16", tmp_path / f"{n}.gguf").mean_kl < 1e-4
        assert export(folder, "onnx", "fp32", tmp_path / f"{n}").mean_kl < 1e-4
        graph = onnx.load(tmp_path / f"{n}" / "model.onnx", load_external_data=False).graph
        tensors = read_header(tmp_path / f"{n}.gguf").tensors
        sizes = {p.name: p.stat().st_size for p in (tmp_path / f"{n}").iterdir() if "data" in p.name}
        stored.append(
            [
                {k: (t.shape, t.type, t.n_bytes) for k, t in tensors.items()},
                {x.name: tuple(x.dims) for x in graph.initializer},
                sizes,
            ]
        )
    assert stored[0] == stored[1] and all(stored[0])
