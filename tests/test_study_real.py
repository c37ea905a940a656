"""A study of a real model: variants are what their files say, quality is of the files, and a method that can't is left out."""

from __future__ import annotations

import functools
import json

import pytest
from _shapes import make_scores

from edgeprune import devices, model
from edgeprune.behaviour import tasks
from edgeprune.errors import WrongWeights
from edgeprune.study import judge, kept, measure, real, run

QUANTS = [("llamacpp", "Q8_0")]


def prepared(folder, work, methods=("wanda_sp",), ratios=(0.4,), roundings=(1,)):
    spec = model.inspect(folder)
    host = devices.load("intel-12-13-ddr5")
    subject = real.subject(folder, spec, "tiny", n_windows=2, context_tokens=48)
    scores = make_scores(spec, [2, 3, 1])
    return real.prepare(subject, scores, host, ratios, methods, roundings, QUANTS, work), subject


def test_variants_are_what_their_files_say(tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    d, subject = prepared(folder, tmp_path, methods=("wanda_sp", "slicegpt"), ratios=(0.4, 0.9))
    by_name = {v.name: v for v in d.variants}
    assert {"whole", "depth-3b", "wanda_sp-3b-1"} <= by_name.keys()
    subject.write("wanda_sp-3b-1", tmp_path / "thin")
    assert by_name["wanda_sp-3b-1"].spec.blocks == model.inspect(tmp_path / "thin").blocks
    assert by_name["depth-3b"].spec.n_blocks == 3
    assert by_name["wanda_sp-3b-1"].params == pytest.approx(by_name["depth-3b"].params, rel=0.01)
    assert any("0.9" in line and "does not go there" in line for line in d.refused)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thin"], "folders made to look at are gone"


def test_a_method_that_can_not_is_left_out_and_the_rest_goes_on(tiny_folder, tmp_path):
    d, _ = prepared(tiny_folder("qwen2"), tmp_path, methods=("flap", "wanda_sp"))
    assert any(line.startswith("flap:") and "left out" in line for line in d.refused)
    assert "wanda_sp-3b-1" in {v.name for v in d.variants}
    spec = model.inspect(tiny_folder("llama"))
    other = make_scores(spec, [2, 3], fingerprint="0" * 64)
    with pytest.raises(WrongWeights):
        subject = real.subject(tiny_folder("llama"), spec, "tiny")
        real.prepare(subject, other, devices.load("rpi5-8gb"), (0.4,), (), (1,), QUANTS, tmp_path)


def test_widths_of_each_layer_are_as_published_and_match_too(tiny_folder, tmp_path):
    d, _ = prepared(tiny_folder("llama"), tmp_path, methods=("taylor", "wanda_sp"), roundings=(0,))
    by_name = {v.name: v for v in d.variants}
    uneven = by_name["taylor-3b-layers"]
    widths = {b.ffn.tensors["ffn_down.weight"][1] for b in uneven.spec.blocks}
    assert len(widths) > 1 and uneven.params == pytest.approx(by_name["depth-3b"].params, rel=0.01)
    assert f"{min(widths)}-{max(widths)} channels" in uneven.label()
    assert any(line.startswith("wanda_sp, 40%") and "as wide as the others" in line for line in d.refused)


@pytest.fixture
def suite(tmp_path):
    """One local task of two questions."""
    pytest.importorskip("lm_eval")
    docs = [{"q": "the quick brown fox", "choices": ["jumps", "over"], "label": i} for i in range(2)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(d) + "\n" for d in docs))
    task = {
        "task": "choice", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "choices",
        "doc_to_target": "label", "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "choice.yaml").write_text(json.dumps(task))
    with tasks.suite(tasks.Asked(("choice",), include=tmp_path, context_tokens=64)) as ready:
        yield ready


@pytest.mark.slow
def test_measured_and_judged_from_the_same_files(tiny_folder, tmp_path, suite):
    d, subject = prepared(tiny_folder("llama"), tmp_path)
    by_what = tmp_path / "by-what.txt"
    by_what.write_text("Rain fell on the hills all night, and the river rose until it reached the mill. " * 12)
    subject = subject._replace(judging=[by_what])
    out = tmp_path / "study"
    protocol = measure.Protocol(contexts=(0,), n_prompt=8, n_gen=2, repetitions=2)
    asked = protocol._asdict() | measure.Limits()._asdict()
    judged = judge.Asked(n_windows=1, context_tokens=64, n_threads=1, healer="refit", heal_windows=6)

    def prepare(begun):
        who = functools.partial(judge.Judge, subject, d.tasks, judged, suite, progress=lambda *_: None, say=print)
        return run.Ready(d, real.source(subject), {kept.QUALITY: who}, subject.plans, subject.widths)

    def study(prepare):
        host = devices.load("intel-12-13-ddr5")
        return run.study(asked, out, prepare=prepare, host=lambda: host, profiles=[], command="test")

    found = study(prepare)
    assert not found.speed_only and {p.what for p in found.pairs} == {"decode", "prefill"} and not found.left_out
    kl = {q.variant: q.kl for q in found.qualities if not q.healed}
    assert set(kl) == {"whole", "depth-3b", "wanda_sp-3b-1"}
    healed = {q.variant: q.kl for q in found.qualities if q.healed}
    assert healed.keys() == {"depth-3b", "wanda_sp-3b-1"} and all(healed[v] != kl[v] for v in healed)
    assert {
        q["variant"] for q in json.loads((out / kept.RESULT).read_text())["qualities"] if q["healed"]
    } == healed.keys()
    assert kl["whole"] < 0.01 < min(kl["depth-3b"], kl["wanda_sp-3b-1"]), "Q8_0 alone hardly differs from torch"
    assert all([(t.task, t.value) for t in q.tasks] == [("choice", 0.5)] for q in found.qualities), (
        "the same question twice"
    )
    text = (out / "report.md").read_text()
    assert {q.text for q in found.qualities} == {"by-what.txt"} and "chosen by: by-what.txt" in text
    assert "What it does to the model" in text and "choice, acc" in text and "Speed only" not in text
    assert not (out / "files").exists()
    assert kept.read(out).design == d and kept.read(out).widths == subject.widths

    def not_again(begun):
        raise AssertionError("a finished study is only drawn again")

    assert study(not_again) == found and run.draw(out, []) == found
    (out / kept.RESULT).unlink()
    lines = (out / kept.QUALITY).read_text().splitlines()
    (out / kept.QUALITY).write_text("\n".join(lines[:2]) + "\n")
    assert {(q.variant, q.healed) for q in study(prepare).qualities} == {(q.variant, q.healed) for q in found.qualities}
