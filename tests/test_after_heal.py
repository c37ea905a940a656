"""Cuts ranked by what they cost once healed."""

from __future__ import annotations

import json
import statistics

import pytest
from test_search import SOME, children, fixed, measured, parents, random_windows
from typer.testing import CliRunner

import edgeprune.cli.score  # noqa: F401  registers the verb
from edgeprune import after_heal, catalog, closed_form, score, torch_model
from edgeprune.blocks import from_text, kept_sublayers
from edgeprune.calibration import Windows
from edgeprune.cli._app import app
from edgeprune.errors import UsageError
from edgeprune.metrics import _search
from edgeprune.work import Work


def test_a_judge_decides_among_what_the_search_found():
    """Three removals; measured, "a" goes first, then "b"; judged, "c" and "b"."""
    measure, _ = fixed(lambda kept: sum({"a": 1.0, "b": 1.1, "c": 1.2}[x] for x in set("abc") - set(kept)))
    judged = {"a": 3.0, "b": 2.0, "c": 1.0, "ab": 9.0, "ac": 6.0, "bc": 5.0}
    asked = []

    def judge(versions, _tick):
        asked.extend(versions)
        return [judged["".join(sorted(set("abc") - set(v)))] for v in versions]

    plain, by_judge = (_search.search(tuple("abc"), children, measure, 3, 2, parents, 1, j) for j in (None, judge))
    assert plain == [tuple("abc"), tuple("bc"), tuple("c")]
    assert by_judge == [tuple("abc"), tuple("ab"), tuple("a")]
    assert tuple("abc") not in asked  # the whole model needs no healing


def test_runs_of_neighbours_are_judged_too_however_much_damage_they_do_unhealed():
    whole = tuple("abcdefgh")

    def neighbours(kept) -> bool:
        gone = sorted(set(whole) - set(kept))
        return len(gone) == 2 and ord(gone[1]) - ord(gone[0]) == 1

    measure, _ = fixed(lambda kept: 1.0 + (8 - len(kept)) + 9 * neighbours(kept))

    def judge(versions, _tick):
        return [1.0 if neighbours(v) else 2.0 for v in versions]

    plain, by_judge = (_search.search(whole, children, measure, 3, 2, parents, 1, j) for j in (None, judge))
    assert not neighbours(plain[2])
    assert neighbours(by_judge[2])


def test_the_damage_is_that_of_the_healed_model(tiny_folder):
    """Layer 2 out: its weights changed by hand in a model of transformers, on the windows that healing does not see."""
    m = torch_model.load(tiny_folder("llama"))
    windows = [[(token * (k + 1)) % 290 + 3 for token in random_windows()[0]] for k in range(8)]
    text, cut = Windows(windows, SOME, (0, 1) * 4), from_text("0-1 3-4")
    (found,) = after_heal.judge(m, text, "refit", Work())([tuple(kept_sublayers(cut))], lambda _: None)

    kinds = [closed_form.Kind(str(k), windows[k::4], windows[k + 2 :: 4]) for k in range(2)]
    best = closed_form.choose(closed_form.attempt(m, cut, [catalog.load("edgeprune.healers", "refit")], kinds))
    pruned = torch_model.view(m, cut)
    for change in best.changes if best else ():
        kind, layer = change.half
        block = pruned.model.layers[layer - (layer > 2)]
        output = block.self_attn.o_proj if kind == "A" else block.mlp.down_proj
        output.weight = type(output.weight)(output.weight + change.delta.T, requires_grad=False)
    healed = [divergence_of(pruned, m, kind.aside) for kind in kinds]
    assert found == pytest.approx(statistics.fmean(healed), rel=1e-3)
    unhealed = statistics.fmean(measured(m, cut, kind.aside, "kl") for kind in kinds)
    assert found <= unhealed * (1 + 1e-6)


def divergence_of(pruned, m, windows) -> float:
    import torch

    total = 0.0
    for w in windows:
        with torch.inference_mode():
            p, q = (x(torch.tensor([w]), use_cache=False).logits[0, :-1].double().log_softmax(-1) for x in (m, pruned))
        total += ((p.exp() * (p - q)).sum() / (len(w) - 1)).item()
    return total / len(windows)


@pytest.mark.slow
def test_the_path_says_how_it_was_chosen(tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    out = tmp_path / "scores.json"
    args = ["score", str(folder), "-o", str(out), "--after-heal", "refit", "--windows", "6", "--window", "32"]
    result = CliRunner().invoke(app, [*args, "--max-steps", "2", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert found["source"].endswith("chosen by damage after healing by refit")
    assert [len(step["blocks"]) for step in found["path"]] == [5, 4, 3]


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (score.Method("block_influence", 2, after_heal="refit"), "block_influence with --effort 1 is none"),
        (score.Method("kl_search", 2, effort=0, after_heal="refit"), "--effort 0 is none"),
        (score.Method("kl_search", 2, after_heal="lora"), "that one is trained"),
        (score.Method("kl_search", 2, after_heal="prayer"), "prayer"),
    ],
)
def test_what_can_not_rank_is_refused(method, says):
    with pytest.raises(UsageError, match=says):
        score.check_method(method)


def test_too_little_text_is_refused(tiny_folder):
    m = torch_model.load(tiny_folder("llama"))
    with pytest.raises(UsageError, match="two windows of each kind"):
        after_heal.judge(m, Windows(random_windows()[:1], SOME, (0,)), "refit", Work())
