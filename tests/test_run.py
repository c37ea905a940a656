"""The whole job on a tiny model through the command line: a budget that forces a layer out, resuming, repairing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from edgeprune.files import check_sums
from edgeprune.report.record import Report
from edgeprune.types import Plan


def edgeprune(*args, code=0):
    env = os.environ | {"COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "edgeprune.cli", *map(str, args)], capture_output=True, text=True, env=env
    )
    assert done.returncode == code, done.stderr
    return done


def written(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_run_plans_makes_measures_reports_and_resumes(tiny_folder, tmp_path):
    model, out, text = tiny_folder("qwen2", n_blocks=6), tmp_path / "out", tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog and then the other one sleeps " * 30)
    budget = ["--device", "rpi5", "--context", "128", "--quant", "Q8_0", "--runtime", "llamacpp"]
    whole = json.loads(edgeprune("plan", model, *budget, "--json").stdout)["prediction"]["memory_bytes"]
    command = ["run", model, "-o", out, *budget, "--max-mem", f"{whole - 1}B", "--calibration", text, "--window", "32"]
    command += ["--windows", "2", "--export", "gguf:Q8_0", "--export", "onnx:int8", "--metric", "perplexity"]

    first = edgeprune(*command)
    assert "score" in first.stderr and "already done" not in first.stderr
    plan = Plan.from_json((out / "plan.json").read_text())
    assert len(plan.blocks) == 5 and plan.prediction.memory_bytes < whole
    check_sums(out / "pruned")
    report = Report.from_json((out / "report.json").read_text())
    assert [a.path.split("/")[0] for a in report.artifacts] == ["gguf", "onnx", "whole", "whole"]
    assert [a.n_blocks for a in report.artifacts] == [5, 5, 6, 6]
    asked, fewer = report.artifacts[2:]
    assert asked.quant == "Q8_0" != fewer.quant, "the whole model in as many bits, and in fewer"
    timed = [(m.artifact, m.workload.n_depth) for m in report.measurements]
    judged = [a.path for a in report.artifacts if a.format == "gguf"]
    assert timed == [(a.path, 0) for a in report.artifacts] + [(path, 128 - 32) for path in judged]
    assert list(report.chat_templates) == ["whole", "pruned"] and len(set(report.chat_templates.values())) == 1
    assert {q.subject for q in report.qualities} == {"whole", "pruned"} | {a.path for a in report.artifacts}
    assert [v.line for v in report.verdict] == ["memory"] and report.verdict[0].verdict in (
        "met",
        "missed",
        "not measured",
    )
    assert all(word in (out / "report.html").read_text() for word in ("Verdict", "Sign-off", "<svg"))

    before = written(out)
    again = edgeprune(*command)
    assert again.stderr.count("already done") == 8  # score, prune, four exports, measure, evaluate
    changed = {k for k, v in written(out).items() if before.get(k) != v}
    assert not {k for k in changed if k.startswith(("pruned", "gguf", "onnx", "whole"))}
    assert Report.from_json((out / "report.json").read_text()) == report

    (gguf,) = (out / "gguf").glob("*.gguf")
    damaged = bytearray(gguf.read_bytes())
    damaged[-1] ^= 1
    gguf.write_bytes(damaged)
    repaired = edgeprune(*command)
    assert "export gguf/" in repaired.stderr and f"export gguf/{gguf.name}: already done" not in repaired.stderr
    assert (
        next(a.sha256 for a in report.artifacts if a.path.endswith(gguf.name)) in (out / "artifacts.json").read_text()
    )


@pytest.mark.slow
def test_a_run_on_the_text_that_chose_the_cuts_is_refused(tiny_folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog and then the other one sleeps " * 30)
    args = [
        "run",
        tiny_folder("llama"),
        "--device",
        "rpi5",
        "--context",
        "64",
        "-o",
        tmp_path / "out",
        "--calibration",
        text,
    ]
    done = edgeprune(*args, "--text", text, "--window", "32", "--windows", "2", code=2)
    assert "judge" in done.stderr and "export" not in done.stderr.replace("prune, export", "")
