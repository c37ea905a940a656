"""What a run can be asked for beyond its plan: ways to heal in turn, how to score, tasks before, between and after."""

from __future__ import annotations

import json

import pytest
from _exported import in_every_runtime
from test_heal import SEAM, random_texts
from test_prune import cut
from test_tasks import include, scored  # noqa: F401

from edgeprune import heal, model
from edgeprune.errors import UsageError
from edgeprune.healing import Healing
from edgeprune.report.record import Report
from edgeprune.run import made
from edgeprune.run.job import Job, Journal, Options
from edgeprune.training.pace import Budget
from edgeprune.types import Scores


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return random_texts(tmp_path_factory.mktemp("texts"), "abc", 5, 500)


def test_ways_to_heal_go_on_from_one_another(tiny_folder, texts, tmp_path):
    """And what is done and verified is skipped; another text heals again."""
    base, said = tiny_folder("llama"), []
    pruned = cut(base, SEAM, tmp_path / "pruned")
    plan, journal = heal.pruned_plan(pruned), Journal(tmp_path / "journal.json", said.append)

    def step(plan=plan, **asked):
        options = Options(context=32, **asked)
        made.check_heal(base, options)
        spec = model.inspect(base)
        return made.healed(Job(tmp_path, base, spec, options, "tiny", "edgeprune run", journal, lambda *_: None), plan)

    assert step() == pruned and not said
    asked = dict(heal=("refit", "distill"), calibration=tuple(texts), budget=Budget(480), settings={"rate": "3e-4"})
    assert step(plan.model_copy(update={"removed": ""}), **asked) == pruned and not said
    healed = step(**asked)
    assert healed == tmp_path / "healed" and said == ["heal by refit", "heal by distill"]
    found = Healing.from_json((healed / "healing.json").read_text())
    assert [h.method for h in found.steps()] == ["refit", "distill"] and found.trained.tokens == 480
    assert found.former == Healing.from_json((tmp_path / "healed-refit" / "healing.json").read_text())
    assert step(**asked) == healed and said[2:] == ["heal by refit: already done", "heal by distill: already done"]
    step(**asked | {"settings": {"rate": "1e-4"}})
    assert said[4:] == ["heal by refit: already done", "heal by distill"]
    step(**asked | {"heal_windows": 10})
    assert said[6:] == ["heal by refit", "heal by distill"]
    fewer = Healing.from_json((tmp_path / "healed-refit" / "healing.json").read_text())
    assert fewer.text.tokens == 10 * 32 < found.former.text.tokens


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (dict(heal=("distill", "refit")), "name it first"),
        (dict(heal=("distill", "distill")), "twice"),
        (dict(heal=("refit",), budget=Budget(100)), "healing by training"),
        (dict(budget=Budget(100)), "healing by training"),
        (dict(heal=("distill",), heal_windows=8), "closed form"),
        (dict(heal_windows=8), "closed form"),
        (dict(heal=("distill",), settings={"rank": "8"}), "distill has rate"),
        (dict(heal=("prayer",)), "no healers called"),
    ],
)
def test_what_can_not_heal_is_refused_before_any_work(tiny_folder, asked, says):
    with pytest.raises(UsageError, match=says):
        made.check_heal(tiny_folder("llama"), Options(**asked))


def test_text_that_judges_can_not_heal(tiny_folder, texts):
    with pytest.raises(UsageError, match="is to judge"):
        made.check_heal(
            tiny_folder("llama"), Options(heal=("refit",), calibration=tuple(texts), texts=tuple(texts[:1]))
        )


@pytest.mark.slow
def test_a_report_tells_accuracy_before_after_the_cut_and_after_healing(tiny_folder, texts, include, tmp_path, call):  # noqa: F811
    """Of a .gguf, scored in llama.cpp, whole layers only. The tasks are the same as when they are asked alone."""
    source, out = in_every_runtime(tiny_folder("llama"), tmp_path)["llamacpp"], tmp_path / "out"
    budget = ["--device", "rpi5", "--context", 128, "--quant", "Q8_0", "--runtime", "llamacpp"]
    limit = json.loads(call("plan", source, *budget, "--json").stdout)["prediction"]["memory_bytes"] - 1
    command = ["run", source, "-o", out, *budget, "--max-mem", f"{limit}B", "--window", 32, "--windows", 8]
    command += ["--granularity", "aligned", "--through", "llamacpp", "--max-steps", 1, "--effort", 0, "--no-baseline"]
    command += ["--export", "gguf:Q8_0", "--depth", 0, "--heal", "refit,distill", "--tokens", 960, "--set", "rate=3e-4"]
    command += [word for text in texts for word in ("--calibration", text)]
    first = call(*command)
    assert first.returncode == 0, first.stderr
    scores = Scores.from_json((out / "scores.json").read_text())
    assert scores.metric == "kl_search_aligned" and "llamacpp" in scores.versions
    assert not any(q.tasks for q in Report.from_json((out / "report.json").read_text()).qualities)

    asked = [*command, "--tasks", "choice", "--include-path", include, "--limit", 5]
    done = call(*asked)
    assert done.returncode == 0 and done.stderr.count("already done") == 8, done.stderr
    report = Report.from_json((out / "report.json").read_text())
    told = {q.subject: q.tasks for q in report.qualities if q.tasks}
    (planned,) = (a.path for a in report.artifacts)
    assert list(told) == ["whole", "pruned", "healed", planned]
    alone = scored(out / "healed", tasks=("choice",), include=include, limit=5, context_tokens=128, precise=False)
    assert told["healed"] == alone and alone.scores[0].n_documents == 5
    assert "Tasks" in (out / "report.md").read_text()


@pytest.mark.slow
def test_a_run_chooses_by_what_is_left_after_healing_as_score_does(tiny_folder, tmp_path, call):
    source = tiny_folder("llama")
    asked = ["--after-heal", "refit", "--windows", 6, "--window", 32, "--max-steps", 2]
    done = call("score", source, "-o", tmp_path / "scores.json", *asked)
    assert done.returncode == 0, done.stderr
    run = ["run", source, "-o", tmp_path / "out", "--device", "rpi5", "--context", 128, "--no-baseline"]
    done = call(*run, *asked, "--export", "gguf:Q8_0", "--depth", 0)
    assert done.returncode == 0, done.stderr
    alone, within = (
        Scores.from_json(f.read_text()) for f in (tmp_path / "scores.json", tmp_path / "out" / "scores.json")
    )
    assert within.path == alone.path
    assert within.source == alone.source and "healing by refit" in alone.source
