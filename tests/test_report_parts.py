"""What a report says beside the verdict: fewer bits at equal bytes, healing, the context, intervals, the CSV."""

from __future__ import annotations

import csv
import io
import json
import random
import statistics
from pathlib import Path

import numpy as np
import pytest
from _report_extras import FEWER, HEALING, PLANNED, behaving, late, with_fewer_bits
from _report_records import TEXT, artifacts, measurements, plan, qualities, run_folder

import edgeprune
from edgeprune import devices
from edgeprune import report as reporting
from edgeprune.errors import InputRejected, UsageError
from edgeprune.report import facts
from edgeprune.run.facts import chat_templates, fewer_bits, late_workloads
from edgeprune.types import ModelSpec, Plan, Workload


# The planned file has 124.1 MB and KL 0.97 ± 0.02425 over 40 windows; t of 39 degrees is 2.0227 (tables).
@pytest.mark.parametrize(
    ("size", "kl", "mb", "words"),
    [
        (130_305_000, 1.5, 140, "5.0 % larger (about equal bytes). It loses more (KL 1.5 against 0.97)"),
        (130_305_000, 0.5, 140, "It loses less (KL 0.5 against 0.97): here fewer bits are the better way"),
        (117_895_000, 0.99, 140, "5.0 % smaller (about equal bytes). Their losses cannot be told apart"),
        (300_000_000, 1.5, 140, "15 % smaller (not equal bytes, but the nearest exported)"),
        (130_305_000, 1.5, 155.264, "With 170 MB (162 MiB) of memory it meets the limit"),
        (130_305_000, 1.5, 155.265, "of memory it misses the limit"),  # with the cache it did not open
    ],
)
def test_fewer_bits_at_equal_bytes_is_told_as_it_is(tmp_path, size, kl, mb, words):
    report = reporting.build(run_folder(tmp_path, **with_fewer_bits(size, kl, mb)))
    assert reporting.render_md(report).replace("\\_", "_").count(words) == 2, "in the verdict and under the table"
    assert not any("equal bytes" in text for text in report.not_measured)


@pytest.mark.parametrize(("most", "words"), [(130_305_000, "meets"), (130_304_999, "misses")])
def test_fewer_bits_are_held_against_a_limit_on_the_file(tmp_path, most, words):
    records = with_fewer_bits(130_305_000, 1.5, 140)
    planned = plan()
    planned["budget"]["max_file_bytes"] = most
    said = reporting.render_md(reporting.build(run_folder(tmp_path, **records | {"plan": planned})))
    assert said.count(f"With 130 MB (124 MiB) of file it {words} the limit of 130 MB (124 MiB).") == 2


def test_a_run_without_fewer_bits_says_so(tmp_path):
    report = reporting.build(run_folder(tmp_path))
    row = facts.planned_row(facts.rows(report))
    assert row.artifact.path == PLANNED
    found = facts.equal_bytes(facts.rows(report))  # the fixture has a whole Q4_K_M of another purpose
    assert found.artifact.quant == "Q4_K_M"
    alone = [a for a in artifacts() if "whole" not in a["path"] or "Q8_0" in a["path"]]
    report = reporting.build(run_folder(tmp_path / "alone", artifacts=alone))
    assert any("equal bytes" in text for text in report.not_measured)
    assert "quantised further until its file is as small as the planned one, is not measured" in reporting.render_md(
        report
    )


def test_intervals_are_students(tmp_path):
    report = reporting.build(run_folder(tmp_path, **with_fewer_bits(1, 1.0, windows=4)))
    by_path = {r.artifact.path: r.quality for r in facts.rows(report)}
    assert facts.kl_interval(by_path[PLANNED]) == pytest.approx(
        (0.97 - 2.0227 * 0.02425, 0.97 + 2.0227 * 0.02425), abs=1e-5
    )
    assert facts.kl_interval(by_path[FEWER]) == pytest.approx((1 - 3.1824 * 0.025, 1 + 3.1824 * 0.025), abs=1e-5)
    assert facts.kl_interval(None) is None and facts.kl_interval(report.qualities[0]) is None


@pytest.mark.parametrize("more", [False, True])
def test_the_front_is_what_no_point_beats(more):
    rng = random.Random(3)
    points = [(rng.randint(1, 9), rng.randint(1, 9)) for _ in range(40)]

    def better(a: tuple[int, int], b: tuple[int, int]) -> bool:
        first = a[0] >= b[0] if more else a[0] <= b[0]
        return first and a[1] <= b[1] and a != b

    kept = {points[i] for i in facts.front(points, more)}
    assert kept == {p for p in points if not any(better(other, p) for other in points)}


def test_depths_stand_beside_each_other_and_judge_nothing(tmp_path):
    times = [
        late(PLANNED, 1024, 1.25),
        late(PLANNED, 2016, 2.0),
        late("gguf/whole-Q8_0.gguf", 2016, 2.5),
        *measurements(),
    ]
    report = reporting.build(run_folder(tmp_path, measurements=times))
    speed = next(line for line in report.verdict if line.line == "decode speed")
    assert speed.measured == pytest.approx(74.6, rel=1e-6), "from an empty cache, as it is predicted"
    text = reporting.render_md(report)
    table = next(part for part in text.split("\n\n") if part.startswith("| Decode, tok/s"))
    row = next(line for line in table.splitlines() if "this plan" in line)
    # 74.6 times the first three wobbles' median 1.0, slowed; the whole 62.1 / 2.5: 37.3 / 24.84 = 1.5
    assert ["59.7 ●" in row, "37.3 ●" in row, "−50 % ●" in row, "1.50× ●" in row] == [True] * 4
    assert not any("late in the context" in text for text in report.not_measured)
    assert any("late in the context" in text for text in reporting.build(run_folder(tmp_path / "bare")).not_measured)


def test_memory_is_that_of_the_hungriest_process_with_the_longest_cache(tmp_path):
    more = late(PLANNED, 2016, 2.0) | {"peak_rss_bytes": 50_000_000 + 169_000_000}
    report = reporting.build(run_folder(tmp_path, measurements=[*measurements(), more]))
    assert report.verdict[0].measured == 169_000_000 and report.verdict[0].verdict == "met"


def test_healing_shows_what_it_won_and_what_it_cost(tmp_path):
    folder = run_folder(tmp_path)
    before = reporting.build(folder)
    assert "Healing was not tried" in reporting.render_md(before)
    assert before.headline.endswith(": heal before shipping.")
    (folder / "healed").mkdir()
    (folder / "healed" / "healing.json").write_text(json.dumps(HEALING))
    report = reporting.build(folder)
    text = reporting.render_md(report)
    assert all(word in text for word in ("| 20 % ● |", "21,504 tokens", "61.2 s", "F12", "a paper"))
    assert "Healing was not tried" not in text and not any("records healing" in r for r in report.risks)
    assert report.headline.endswith(": healed already, remove less or train longer before shipping.")
    (folder / "healed" / "healing.json").write_text(json.dumps(HEALING | {"text": TEXT}))
    assert any("also healed" in r for r in reporting.build(folder).risks)
    (folder / "healed" / "healing.json").write_text("{}")
    with pytest.raises(InputRejected, match=r"healing\.json: field method"):
        reporting.build(folder)


def test_healing_in_steps_tells_each(tmp_path):
    folder = run_folder(tmp_path)
    (folder / "healed").mkdir()
    trained = {
        "options": {}, "rate": 1e-4, "sequences_per_step": 4, "steps": 90, "planned_steps": 100, "tokens": 184320,
        "parameters": 1_234_567, "judged_by": "kl", "looks": [], "kept": 0, "processes": 2, "added": [],
    }  # fmt: skip
    both = HEALING | {"method": "distill", "trained": trained, "former": HEALING}
    (folder / "healed" / "healing.json").write_text(json.dumps(both))
    text = reporting.render_md(reporting.build(folder))
    assert text.index("What healing won back, step 1: refit") < text.index("What healing cost, step 2: distill")
    assert "90 of 100 steps, 184,320 tokens, 1,234,567 parameters trained" in text


@pytest.mark.slow
def test_tasks_and_text_stand_beside_the_whole_models(tmp_path):
    found = [
        behaving(q, 0.55, 0.02)
        if q["subject"] == "whole"
        else behaving(q, 0.43, 0.31)
        if q["subject"] == PLANNED
        else q
        for q in qualities()
    ]
    report = reporting.build(run_folder(tmp_path, quality=found))
    assert not any("zero-shot" in r or "generated text" in r for r in report.not_measured)
    text, page = reporting.render_md(report), reporting.render_html(report)
    row = next(line for line in text.splitlines() if line.startswith("| arc\\_easy"))
    assert "0.550 ● (± 0.010)" in row and "0.430 ● (± 0.010 (−0.120))" in row and "100 of 1,000" in row
    assert "0.31 ●" in text and "0.75 ● (± 0.25, 3 of 4)" in text
    assert "Why &lt;b&gt;is&lt;/b&gt; the sky blue?" in page and "Because. So" in page and "1 texts lost" in page
    line = next(x for x in csv.DictReader(io.StringIO(reporting.render_csv(report))) if x["file"] == PLANNED)
    assert float(line["arc_easy acc"]) == 0.43


def test_a_changed_chat_template_is_a_risk(tmp_path):
    same = {"command": "", "chat_templates": {"whole": "a" * 64, "pruned": "a" * 64}}
    report = reporting.build(run_folder(tmp_path / "same", run=same))
    assert not any("chat template" in r for r in report.risks) and "a" * 64 in reporting.render_md(report)
    other = {"command": "", "chat_templates": {"whole": "a" * 64, "pruned": "b" * 64}}
    assert any(
        "chat template of the pruned" in r for r in reporting.build(run_folder(tmp_path / "other", run=other)).risks
    )


def test_the_csv_holds_the_records_figures(tmp_path):
    """Recomputed from the JSON records with numpy and statistics."""
    report = reporting.build(run_folder(tmp_path))
    lines = {line["file"]: line for line in csv.DictReader(io.StringIO(reporting.render_csv(report)))}
    assert set(lines) == {a["path"] for a in artifacts()}
    for m in measurements():
        line, rates = lines[m["artifact"]], [128e9 / ns for ns in m["decode_samples_ns"]]
        assert float(line["measured_decode_tok_per_s"]) == pytest.approx(np.median(rates))
        assert float(line["measured_decode_stdev_tok_per_s"]) == pytest.approx(statistics.stdev(rates))
        assert int(line["measured_memory_bytes"]) == m["peak_rss_bytes"] - m["baseline_rss_bytes"]
        for q in (50, 90):
            for name, samples in (("ttft", m["prefill_samples_ns"]), ("token", m["token_samples_ns"])):
                nearest = np.percentile(samples, q, method="inverted_cdf") / 1e9
                assert float(line[f"{name}_p{q}_s"]) == pytest.approx(nearest)
    assert float(lines[PLANNED]["gain_over_whole"]) == pytest.approx(74.6 / 62.1, rel=1e-6)
    assert lines[PLANNED]["state"] == "planned" and lines["gguf/whole-Q8_0.gguf"]["gain_over_whole"] == ""


def test_no_cell_of_the_csv_is_a_formula(tmp_path):
    bad = [a | {"path": '=HYPERLINK("x")' + a["path"], "quant": "@x"} for a in artifacts()]
    text = reporting.render_csv(reporting.build(run_folder(tmp_path, artifacts=bad)))
    assert all(not cell.startswith(("=", "+", "-", "@")) for line in csv.reader(io.StringIO(text)) for cell in line)


# --- what run records for it --------------------------------------------------------------------


def test_fewer_bits_is_nearest_in_bytes(tmp_path):
    """By what the exporter's sizes foretell of this shape: Q6_K is 0.955 of Q8_0, Q5_K_M 0.774."""
    from edgeprune import cost
    from edgeprune.blocks import whole

    builtin = Path(edgeprune.__file__).parent / "builtin" / "smollm2-135m-instruct.spec.json"
    spec = ModelSpec.from_json(builtin.read_text(encoding="utf-8"))
    device = devices.load("rpi5-4gb")
    made = Plan.model_validate(plan(backend="cpu"))
    sizes = {
        q: cost.predict(spec, whole(spec.n_blocks), device, "llamacpp", "cpu", q, 512, 512).file_bytes
        for q in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q2_K")
    }
    for quant, of in (("Q6_K", 1.01), ("Q5_K_M", 0.98), ("Q2_K", 0.5)):
        near = made.prediction.model_copy(update={"file_bytes": round(of * sizes[quant])})
        assert fewer_bits(spec, made.model_copy(update={"prediction": near}), device) == quant
    near = made.prediction.model_copy(update={"file_bytes": sizes["Q8_0"]})
    assert fewer_bits(spec, made.model_copy(update={"prediction": near}), device) != "Q8_0", "that is the plan's own"


def test_late_workloads_stay_within_the_context():
    load = Workload(context_tokens=2048)
    assert [w.n_depth for w in late_workloads(None, load)] == [2016]
    assert [(w.n_depth, w.n_gen, w.n_prompt) for w in late_workloads((1024, 2016), load)] == [
        (1024, 32, 0),
        (2016, 32, 0),
    ]
    assert late_workloads((0,), load) == [] and late_workloads(None, Workload(context_tokens=64)) == []
    with pytest.raises(UsageError, match="--depth 2017.*2048"):
        late_workloads((2017,), load)


def test_chat_templates_are_told_by_hash(tmp_path):
    for name, files in {
        "file": {"chat_template.jinja": "x"},
        "inside": {"tokenizer_config.json": '{"chat_template": "x"}'},
        "none": {"tokenizer_config.json": "{}"},
    }.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    found = chat_templates({p.name: p for p in sorted(tmp_path.iterdir())})
    assert list(found) == ["file", "inside"] and len(set(found.values())) == 1
