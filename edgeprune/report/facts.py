"""What a report derives from its records: which file is which, medians, ratios. Pure; nothing is formatted here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from edgeprune import catalog
from edgeprune.bench import context_tokens
from edgeprune.blocks import kept_sublayers
from edgeprune.comparison import t_95
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation import Evaluation, TaskScore
from edgeprune.report.record import Report
from edgeprune.types import Artifact, Measurement, Plan, Prediction

RUNTIMES = {"gguf": "llamacpp", "onnx": "onnxruntime"}


@dataclass(frozen=True)
class Row:
    """One artifact with everything known about it; `baseline` is the whole model beside a plan that removes something."""

    plan: Plan
    artifact: Artifact
    runtime: str
    baseline: bool
    planned: bool
    pruned: bool  # something is missing from it
    prediction: Prediction | None
    measurement: Measurement | None  # of speed, with the fewest tokens in the cache
    depths: tuple[Measurement, ...]  # that one and those later in the context, in order
    process: Measurement | None  # that took most memory
    quality: Evaluation | None
    run: str = ""  # its letter, where several runs are shown


# --- which is which -----------------------------------------------------------------------------


def is_host(plan: Plan) -> bool:
    """Was the plan made for the machine it was measured on?"""
    return plan.device == "host"


def removes(plan: Plan) -> bool:
    return len(kept_sublayers(plan.blocks)) < 2 * plan.n_blocks_whole


def is_baseline(artifact: Artifact, plan: Plan) -> bool:
    """The whole model beside a plan that removes something: `run` keeps it in whole/, else its blocks tell.

    A plan that leaves out only halves keeps the block count, so nothing can be told apart by it."""
    if not removes(plan):
        return False
    return artifact.path.startswith("whole/") or artifact.n_blocks == plan.n_blocks_whole != len(plan.blocks)


def runtime_of(artifact: Artifact, measurements: tuple[Measurement, ...]) -> str:
    for m in measurements:
        if m.artifact == artifact.path:
            return m.runtime
    try:
        return catalog.load("exporters", artifact.format).RUNTIME
    except (EdgepruneError, ImportError, AttributeError):
        return RUNTIMES.get(artifact.format, artifact.format)


def same_file(artifact: Artifact, sha256: str) -> bool:
    """False when a result names another file than the one listed."""
    return not sha256 or not artifact.sha256 or sha256 == artifact.sha256


def rows(report: Report, run: str = "") -> list[Row]:
    """Every artifact, by runtime, then quantisation from large to small, the whole model before the pruned one."""
    plan, out = report.plan, []
    for a in report.artifacts:
        runtime, baseline = runtime_of(a, report.measurements), is_baseline(a, plan)
        match = runtime == plan.runtime and a.quant.lower() == plan.quant.lower()
        planned = match and not baseline and a.n_blocks == len(plan.blocks) and not any(r.planned for r in out)
        fallback = plan.prediction if planned else plan.prediction_whole if baseline and match else None
        timed = [m for m in report.measurements if m.artifact == a.path and same_file(a, m.artifact_sha256)]
        depths = _by_depth(timed)
        out.append(
            Row(
                plan=plan,
                artifact=a,
                runtime=runtime,
                baseline=baseline,
                planned=planned,
                pruned=removes(plan) and not baseline,
                prediction=report.predictions.get(a.path, fallback),
                measurement=depths[0] if depths else None,
                depths=depths,
                process=max(timed, key=lambda m: (context_tokens(m.workload), m.memory_bytes), default=None),
                quality=next((q for q in report.qualities if q.subject == a.path and same_file(a, q.sha256)), None),
                run=run,
            )
        )
    largest = {(r.runtime, r.artifact.quant): 0 for r in out}
    for r in out:
        key = (r.runtime, r.artifact.quant)
        largest[key] = max(largest[key], r.artifact.bytes)
    return sorted(
        out,
        key=lambda r: (
            r.runtime != plan.runtime, r.runtime, -largest[r.runtime, r.artifact.quant], r.artifact.quant,
            not r.baseline, r.artifact.path,
        ),
    )  # fmt: skip


def _by_depth(timed: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """The slowest at each number of tokens in the cache."""
    found = {
        depth: min((m for m in timed if m.workload.n_depth == depth), key=lambda m: decode_rate(m) or 0)
        for depth in sorted({m.workload.n_depth for m in timed})
    }
    return tuple(found.values())


def planned_row(table: list[Row]) -> Row | None:
    return next((r for r in table if r.planned), None)


def baseline_of(row: Row, table: list[Row]) -> Row | None:
    """The whole model at the same quantisation in the same run."""
    if row.baseline:
        return None
    key = (row.run, row.runtime, row.artifact.quant)
    return next((r for r in table if r.baseline and (r.run, r.runtime, r.artifact.quant) == key), None)


def equal_bytes(table: list[Row]) -> Row | None:
    """The whole model at another quantisation, whose file is nearest to the planned one's: the other way to that size."""
    row = planned_row(table)
    if row is None:
        return None
    others = [r for r in table if r.baseline and r.runtime == row.runtime and r.artifact.quant != row.artifact.quant]
    return min(others, key=lambda r: abs(math.log(max(1, r.artifact.bytes) / max(1, row.artifact.bytes))), default=None)


# --- speed --------------------------------------------------------------------------------------


def decode_rates(m: Measurement) -> list[float]:
    """Tokens per second of each repetition."""
    return [m.workload.n_gen * 1e9 / ns for ns in m.decode_samples_ns if ns > 0]


def prefill_rates(m: Measurement) -> list[float]:
    return [m.workload.n_prompt * 1e9 / ns for ns in m.prefill_samples_ns if ns > 0]


def decode_rate(m: Measurement | None) -> float | None:
    """Median over repetitions."""
    found = decode_rates(m) if m else []
    return median(found) if found else None


def gain(rates: Callable[[Measurement], list[float]], m: Measurement | None, base: Measurement | None) -> list[float]:
    """Speed over the baseline's, one ratio per repetition when they took turns, else one of the medians; [] unknown.

    Repetitions that stood side by side met the same machine: their ratio holds where both rates drift.
    """
    ours, theirs = rates(m) if m else [], rates(base) if base else []
    if not ours or not theirs:
        return []
    if m.interleaved and base.interleaved and len(ours) == len(theirs):
        return [a / b for a, b in zip(ours, theirs, strict=True)]
    return [median(ours) / median(theirs)]


def ttft_s(m: Measurement | None, prompt_tokens: int | None = None) -> float | None:
    """Median time from prompt to the first token's logits, or None when another prompt length was timed."""
    if m is None or not m.prefill_samples_ns or prompt_tokens not in (None, m.workload.n_prompt):
        return None
    return median(m.prefill_samples_ns) / 1e9


def percentile_s(samples_ns: Sequence[int], q: int) -> float | None:
    """The smallest time that q % of the samples did not exceed (nearest rank)."""
    if not samples_ns:
        return None
    return sorted(samples_ns)[max(0, math.ceil(len(samples_ns) * q / 100) - 1)] / 1e9


def spread(rates: list[float]) -> float | None:
    """Half the range over the median."""
    return (max(rates) - min(rates)) / 2 / median(rates) if len(rates) > 1 else None


def same_backend(m: Measurement, plan: Plan) -> bool:
    """A plan speaks of one runtime's backend only; other runtimes are taken as they are."""
    return m.runtime != plan.runtime or m.backend == plan.backend


def speed_counts(m: Measurement, plan: Plan) -> bool:
    """May this speed be set against the device's budget and prediction?"""
    return is_host(plan) and same_backend(m, plan)


# --- quality ------------------------------------------------------------------------------------


def kl_interval(q: Evaluation | None) -> tuple[float, float] | None:
    """95 % of Student's t about the mean over windows, from 0 up; None of a single window or where KL is not known."""
    if q is None or q.kl is None or q.kl_stderr is None or q.windows < 2:
        return None
    half = t_95(q.windows - 1) * q.kl_stderr
    return max(0.0, q.kl - half), q.kl + half


def task_scores(q: Evaluation | None) -> dict[tuple[str, str], TaskScore]:
    """By task and metric; {} where no task was run."""
    return {(s.task, s.metric): s for s in q.tasks.scores} if q and q.tasks else {}


def whole_quality(q: Evaluation, report: Report, table: list[Row]) -> float | None:
    """Perplexity of the whole model on the same text: as stated, else from its own row."""
    if q.perplexity_whole is not None:
        return q.perplexity_whole
    row = next((r for r in table if r.artifact.path == q.subject), None)
    base = baseline_of(row, table) if row else None
    found = [base.quality] if base and base.quality else []
    found += [other for other in report.qualities if other.subject == "whole"]
    return next((other.perplexity for other in found if other.text == q.text), None)


@dataclass(frozen=True)
class Damage:
    """What removal and quantisation did to perplexity, and where that was read."""

    before: float | None
    after: float
    of: str  # "the finished file", "the pruned model before quantisation", "scoring, before quantisation"

    @property
    def ratio(self) -> float | None:
        return self.after / self.before if self.before else None


def damage(report: Report, table: list[Row]) -> Damage | None:
    """The best evidence there is: the planned file, else the pruned folder, else what scoring measured."""
    row = planned_row(table)
    if row and row.quality:
        return Damage(whole_quality(row.quality, report, table), row.quality.perplexity, "the finished file")
    for subject in ("healed", "pruned"):
        for q in report.qualities:
            if q.subject == subject:
                return Damage(whole_quality(q, report, table), q.perplexity, f"the {subject} model before quantisation")
    plan = report.plan
    if plan.damage_perplexity is not None:
        return Damage(plan.whole_perplexity, plan.damage_perplexity, "scoring, before quantisation")
    return None


# --- what nothing beats -------------------------------------------------------------------------


def front(points: Sequence[tuple[float, float]], more_is_better: bool) -> list[int]:
    """Which of (cost or gain, damage) no other point beats or equals in both; positions, by the first coordinate."""
    sign = -1 if more_is_better else 1
    order = sorted(range(len(points)), key=lambda i: (sign * points[i][0], points[i][1]))
    kept, best = [], math.inf
    for i in order:
        if points[i][1] < best:
            kept.append(i)
            best = points[i][1]
    return sorted(kept, key=lambda i: points[i][0])
