"""Run: the whole job in one folder. The only place that chains verbs; a step already done and verified is skipped.

DIR/  model.json scores.json device.json plan.json          what was decided
      base/ pruned/ healed/ gguf/ onnx/ whole/              what was made: `made`; of several ways to heal each has a folder
      predictions.json artifacts.json
      measurements.json perplexity.json behaviour.json      what was found out: `found`; with lm-eval's own in lm-eval/
      quality.json                                          perplexity and behaviour together
      run.json report.{html,md,json,csv}                    how, and what it comes to
      journal.json                                          what each step read and wrote, by SHA-256: `job`
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from edgeprune import heal, plan, score
from edgeprune.behaviour.tasks import suite
from edgeprune.calibration import keep_apart, read_texts
from edgeprune.files import write_text
from edgeprune.run import found, made
from edgeprune.run.facts import chat_templates, environment, late_workloads
from edgeprune.run.job import DEFAULT_EXPORTS, Job, Journal, Options, Progress, claim, shas, write
from edgeprune.types import Budget, DeviceProfile, ModelSpec, Plan, Scores, Workload

__all__ = ["DEFAULT_EXPORTS", "Options", "environment", "run"]


def run(
    source: Path, spec: ModelSpec, device: DeviceProfile, budget: Budget, out: Path, options: Options, *,
    base_model: str, scores: Scores | None, command: str, say: Callable[[str], None], progress: Progress,
) -> Plan:  # fmt: skip
    """Score, plan, prune, heal, export, measure, evaluate and report into `out`. Returns the plan."""
    out = Path(out)
    claim(out)
    late_workloads(options.depths, Workload(context_tokens=budget.context_tokens))
    asked = options.asked._replace(context_tokens=budget.context_tokens)
    with suite(asked, out / "lm-eval", say) as ready:
        journal = Journal(out / "journal.json", say)
        write(out / "model.json", spec)
        job = Job(out, _base(source, spec, out, journal), spec, options, base_model, command, journal, progress)
        made.check_heal(job.base, options)
        if scores is None:
            scores = _score(source, job)
        write(out / "scores.json", scores)
        keep_apart(read_texts(options.texts, "evaluation"), scores.text)
        write(out / "device.json", device)
        planned = plan.make_plan(spec, scores, device, budget, mode=options.mode)
        write(out / "plan.json", planned)
        removed, stay = planned.removed or "nothing", f"{len(planned.blocks)} of {spec.n_blocks} blocks stay"
        say(f"plan: {planned.runtime} {planned.quant}, remove {removed}; {stay}")
        pruned = made.pruned(job, planned)
        final = made.healed(job, planned)
        if final != pruned:
            planned = heal.pruned_plan(final)  # with what healing gave back
        artifacts = made.exported(job, final, planned, device)
        made.foretold(job, planned, device, artifacts)
        found.measured(job, planned, artifacts)
        found.evaluated(job, final, planned, artifacts, scores, ready)
    templates = chat_templates({"whole": job.base, "pruned": pruned, final.name: final})
    told = {"command": command, "environment": environment(), "chat_templates": templates}
    write_text(out / "run.json", json.dumps(told, indent=1) + "\n", force=True)
    return planned


def _base(source: Path, spec: ModelSpec, out: Path, journal: Journal) -> Path:
    """The whole model as a transformers folder."""
    if source.is_dir():
        return source
    from edgeprune.materialise import materialise

    base = out / "base"
    journal.step("read the GGUF into torch", spec.fingerprint, [base], lambda: materialise(source, base, force=True))
    return base


def _score(source: Path, job: Job) -> Scores:
    options, path, log = job.options, job.out / "scores.json", job.out / ".scores.progress"
    steps = options.max_steps or score.default_steps(job.spec.n_blocks)
    method = score.Method(options.metric, steps, effort=options.effort, after_heal=options.after_heal)
    through = score.in_llamacpp(job.spec, source, method, options.through, options.max_bytes is not None)

    def work() -> None:
        asked = dict(files=options.calibration, n_windows=options.windows, context_tokens=options.context)
        asked |= dict(log=log, progress=job.progress, say=job.journal.say)
        if through:
            from edgeprune.score_gguf import score_gguf

            write(path, score_gguf(source, job.spec, method, **asked))
        else:
            write(path, score.score_folder(job.base, job.spec, method, max_bytes=options.max_bytes, **asked))
        log.unlink(missing_ok=True)

    inputs = [job.spec.fingerprint, options.metric, options.effort, steps, options.windows, options.context]
    inputs += [shas(options.calibration), *(["llamacpp"] if through else [])]
    inputs += [options.after_heal] if options.after_heal else []
    job.journal.step("score", inputs, [path], work)
    return Scores.from_json(path.read_text())
