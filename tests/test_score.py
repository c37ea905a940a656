"""Scores against a few-line computation of the published formulas, and evaluation against plain torch."""

from __future__ import annotations

import math

import pytest
from conftest import FAMILIES
from test_prune import own_windows

from edgeprune import calibration, catalog, divergence, model, score, torch_model
from edgeprune.blocks import kept_sublayers, whole, without_block
from edgeprune.errors import InputRejected, UsageError
from edgeprune.work import Work


@pytest.mark.parametrize("family", FAMILIES)
def test_block_influence_is_shortgpts(family, tiny_folder):
    """1 - mean cosine of a layer's input and output, from transformers' own hidden states.

    Its last hidden state is after the final norm, so the last layer is computed from an extra identity layer instead.
    """
    import torch

    m = torch_model.load(tiny_folder(family))
    windows = own_windows(m).windows
    found = catalog.load("edgeprune.metrics", "block_influence").rate(m, windows, Work())
    m.model.norm = torch.nn.Identity()
    totals = torch.zeros(5, dtype=torch.float64)
    for w in windows:
        with torch.inference_mode():
            h = m(torch.tensor([w]), output_hidden_states=True).hidden_states
        for i in range(5):
            a, b = h[i][0].double(), h[i + 1][0].double()
            totals[i] += (1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean() / len(windows)
    assert found == pytest.approx(totals.tolist(), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_perplexity_by_removal_runs_the_model_without_the_block(family, tiny_folder):
    import torch

    m = torch_model.load(tiny_folder(family))
    windows = own_windows(m).windows
    found = catalog.load("edgeprune.metrics", "perplexity").rate(m, windows, Work())
    for i in range(5):
        cut = torch_model.view(m, without_block(whole(5), i))
        with torch.inference_mode():
            losses = [cut(torch.tensor([w]), labels=torch.tensor([w])).loss.item() for w in windows]
        assert found[i] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_the_path_is_nested_and_its_damage_is_of_the_whole_pruned_model(tiny_folder):
    import torch

    folder = tiny_folder("llama")
    m = torch_model.load(folder)
    text = own_windows(m)
    found = score.score(m, model.inspect(folder), text, score.Method("block_influence", 9))
    assert [len(step.blocks) for step in found.path] == [5, 4, 3, 2, 1]
    for before, after in zip(found.path, found.path[1:], strict=False):
        assert set(kept_sublayers(after.blocks)) < set(kept_sublayers(before.blocks))
    assert found.path[0].kl == 0
    for step in found.path[1:]:
        cut = torch_model.view(m, step.blocks)
        kl = 0.0
        for w in text.windows:
            with torch.inference_mode():
                p, q = m(torch.tensor([w])).logits[0, :-1], cut(torch.tensor([w])).logits[0, :-1]
            kl += torch.nn.functional.kl_div(
                q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="batchmean"
            ).item()
        assert step.kl == pytest.approx(kl / len(text.windows), rel=1e-4)


def test_scores_say_what_they_were_made_from(tiny_folder):
    folder = tiny_folder("llama")
    m, spec = torch_model.load(folder), model.inspect(folder)
    one = score.score(m, spec, own_windows(m), score.Method("block_influence", 2))
    again = score.score(m, spec, own_windows(m), score.Method("block_influence", 2))
    assert one.to_json() == again.to_json()
    assert one.fingerprint == spec.fingerprint and "2403.03853" in one.source and one.versions["torch"]


def test_weights_that_are_not_finite_are_named(tiny_folder):
    folder = tiny_folder("llama")
    m = torch_model.load(folder)
    windows = own_windows(m)
    m.model.layers[3].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(InputRejected, match="not finite"):
        score.score(m, model.inspect(folder), windows, score.Method("block_influence", 2))


def test_divergence_of_known_distributions():
    """Two coins by hand: KL((.5,.5) || (.9,.1)) = .5 ln(.5/.9) + .5 ln(.5/.1)."""
    import torch

    p = torch.tensor([[0.5, 0.5]] * 200).log()
    q = torch.tensor([[0.9, 0.1]] * 200).log()
    tokens = torch.tensor([1] * 200)
    d = divergence.compare(p, q, tokens)
    assert d.tokens == 199
    assert d.kl / 199 == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), rel=1e-5)
    assert d.nll / 199 == pytest.approx(-math.log(0.1), rel=1e-5)
    assert d.nll_whole / 199 == pytest.approx(math.log(2), rel=1e-5)


def words(text: str) -> list[int]:
    return [len(w) for w in text.split()]


def test_default_texts_do_not_overlap():
    one, other = (set(calibration.default_text(s)[1].split("\n\n")) for s in ("calibration", "evaluation"))
    long = {p for p in one & other if len(p) > 200}
    assert not long


def test_windows_do_not_overlap_and_carry_the_first_token(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(" ".join("x" * (i + 1) for i in range(100)))
    found = calibration.windows(words, [path], split="calibration", n_windows=3, context_tokens=11, bos_token=0)
    assert [w[0] for w in found.windows] == [0, 0, 0]
    assert [w[1] for w in found.windows] == [1, 31, 61]
    evaluation = calibration.windows(words, [path], split="evaluation", n_windows=3, context_tokens=10)
    assert [w[0] for w in evaluation.windows] == [1, 11, 21]


def test_the_text_that_chose_the_cuts_cannot_judge_them(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("a b c d e f g h i j")
    used = calibration.windows(words, [path], split="calibration", n_windows=1, context_tokens=5).text
    with pytest.raises(UsageError, match="judge"):
        calibration.windows(words, [path], split="evaluation", n_windows=1, context_tokens=5, avoid=used)
    with pytest.raises(UsageError, match="has 10 tokens"):
        calibration.windows(words, [path], split="evaluation", n_windows=1, context_tokens=50)


def test_calibration_reads_the_texts_in_turn_and_evaluation_in_order(tmp_path):
    """Three texts, the second too short for its share."""
    paths = []
    for letter, n in (("a", 40), ("b", 10), ("c", 40)):
        paths.append(tmp_path / f"{letter}.txt")
        paths[-1].write_text(" ".join([{"a": "x", "b": "xx", "c": "xxx"}[letter]] * n))
    found = calibration.windows(words, paths, split="calibration", n_windows=7, context_tokens=10)
    assert [w[0] for w in found.windows] == [1, 2, 3, 1, 3, 1, 3]
    assert found.text.name == "a.txt, b.txt, c.txt" and found.text.tokens == 70
    in_order = calibration.windows(words, paths, split="evaluation", n_windows=5, context_tokens=10)
    assert [w[0] for w in in_order.windows] == [1, 1, 1, 1, 2]


def test_one_text_of_several_is_enough_of_an_overlap(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    for path in (a, b, c):
        path.write_text(f"{path.name} " * 20)
    used = calibration.windows(words, [a, b], split="calibration", n_windows=1, context_tokens=5).text
    calibration.keep_apart(calibration.read_texts([c], "evaluation"), used)
    for files in ([b], [c, a], [a, b]):
        with pytest.raises(UsageError, match="judge"):
            calibration.windows(words, files, split="evaluation", n_windows=1, context_tokens=5, avoid=used)


def test_default_calibration_is_of_three_kinds():
    names = [name for name, _ in calibration.read_texts([], "calibration")]
    assert names == ["CPython help topics, calibration half", "standard library source", "package descriptions"]
    assert all(len(text) > 20_000 for _, text in calibration.read_texts([], "calibration"))
