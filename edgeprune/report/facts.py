"""What a report derives from its records: which file is which, medians, ratios. Pure; nothing is formatted here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from edgeprune import catalog
from edgeprune.bench import context_tokens
from edgeprune.blocks import kept_sublayers
from edgeprune.errors import EdgepruneError
from edgeprune.types import Artifact, BudgetLine, Measurement, Plan, Prediction, Quality, Report

RUNTIMES = {"gguf": "llamacpp", "onnx": "onnxruntime"}


@dataclass(frozen=True)
class Row:
    """One artifact with everything known about it; `baseline` is the whole model beside a plan that removes something."""

    artifact: Artifact
    runtime: str
    baseline: bool
    planned: bool
    pruned: bool  # something is missing from it
    prediction: Prediction | None
    measurement: Measurement | None
    quality: Quality | None


# --- which is which -----------------------------------------------------------------------------


def is_host(plan: Plan) -> bool:
    """Was the plan made for the machine it was measured on?"""
    return plan.device == "host"


def removes(plan: Plan) -> bool:
    return len(kept_sublayers(plan.blocks)) < 2 * plan.n_blocks_whole


def is_baseline(artifact: Artifact, plan: Plan) -> bool:
    """The whole model: as many blocks as it, while the plan has fewer.

    A plan that leaves out only halves keeps the block count, so nothing can be told apart by it."""
    return artifact.n_blocks == plan.n_blocks_whole != len(plan.blocks)


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


def rows(report: Report) -> list[Row]:
    """Every artifact, by runtime, then quantisation from large to small, the whole model before the pruned one."""
    plan, out = report.plan, []
    for a in report.artifacts:
        runtime, baseline = runtime_of(a, report.measurements), is_baseline(a, plan)
        match = runtime == plan.runtime and a.quant.lower() == plan.quant.lower()
        planned = match and not baseline and a.n_blocks == len(plan.blocks) and not any(r.planned for r in out)
        fallback = plan.prediction if planned else plan.prediction_whole if baseline and match else None
        out.append(
            Row(
                artifact=a,
                runtime=runtime,
                baseline=baseline,
                planned=planned,
                pruned=removes(plan) and not baseline,
                prediction=report.predictions.get(a.path, fallback),
                measurement=_worst(
                    [m for m in report.measurements if m.artifact == a.path and same_file(a, m.artifact_sha256)]
                ),
                quality=next((q for q in report.qualities if q.subject == a.path and same_file(a, q.sha256)), None),
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


def _worst(found: list[Measurement]) -> Measurement | None:
    """Of several measurements of one file, the slowest."""
    return min(found, key=lambda m: (decode_rate(m) or 0, -m.memory_bytes), default=None)


def planned_row(table: list[Row]) -> Row | None:
    return next((r for r in table if r.planned), None)


def baseline_of(row: Row, table: list[Row]) -> Row | None:
    if row.baseline:
        return None
    same = (r for r in table if r.baseline and (r.runtime, r.artifact.quant) == (row.runtime, row.artifact.quant))
    return next(same, None)


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


def prefill_rate(m: Measurement | None) -> float | None:
    found = prefill_rates(m) if m else []
    return median(found) if found else None


def ttft_s(m: Measurement | None, prompt_tokens: int | None = None) -> float | None:
    """Median time from prompt to the first token's logits, or None when another prompt length was timed."""
    if m is None or not m.prefill_samples_ns or prompt_tokens not in (None, m.workload.n_prompt):
        return None
    return median(m.prefill_samples_ns) / 1e9


def token_percentile_s(m: Measurement | None, q: int) -> float | None:
    """The smallest time that q % of the decoded tokens did not exceed (nearest rank)."""
    if m is None or not m.token_samples_ns:
        return None
    ordered = sorted(m.token_samples_ns)
    return ordered[max(0, math.ceil(len(ordered) * q / 100) - 1)] / 1e9


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


def whole_quality(q: Quality, report: Report, table: list[Row]) -> float | None:
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


# --- the verdict --------------------------------------------------------------------------------

QUALITY = ("damage", "perplexity")  # lines that are of the text read, not of the device


def budget_lines(plan: Plan, row: Row | None) -> tuple[BudgetLine, ...]:
    """One line per limit asked for. Memory is a process's; speed counts only from the planned device and backend; size and
    quality are the finished file's, wherever they were measured.

    Memory is met when the process and the cache it did not yet fill stay within the limit; when only the
    process does, the full context was not measured and the line says so.
    """
    m = row.measurement if row else None
    fast = m if m and speed_counts(m, plan) else None
    b, p, lines = plan.budget, plan.prediction, []
    if plan.memory_limit_bytes is not None:
        measured = m.memory_bytes if m else None
        line = _line("memory", "bytes", plan.memory_limit_bytes, p.memory_bytes, measured, at_most=True)
        if line.verdict == "met" and measured + missing_cache_bytes(plan, row) > plan.memory_limit_bytes:
            line = line.model_copy(update={"verdict": "not measured"})
        lines.append(line)
    if b.min_decode_tok_per_s is not None:
        asked = b.min_decode_tok_per_s
        lines.append(_line("decode speed", "tok/s", asked, p.decode_tok_per_s, decode_rate(fast), at_most=False))
    if b.max_ttft_s is not None:
        measured = ttft_s(fast, b.prompt_tokens)
        lines.append(_line("time to first token", "s", b.max_ttft_s, p.ttft_s, measured, at_most=True))
    if b.max_file_bytes is not None:
        measured = row.artifact.bytes if row else None
        lines.append(_line("file size", "bytes", b.max_file_bytes, p.file_bytes, measured, at_most=True))
    quality = row.quality if row else None
    if b.max_kl is not None:
        measured = quality.kl if quality else None
        lines.append(_line("damage", "nats", b.max_kl, plan.expected_kl, measured, at_most=True))
    if b.max_ppl_ratio is not None:
        whole_one = quality.perplexity_whole if quality else None
        measured = quality.perplexity / whole_one if quality and whole_one else None
        lines.append(_line("perplexity", "×", b.max_ppl_ratio, plan.expected_ppl_ratio, measured, at_most=True))
    return tuple(lines)


def _line(
    line: str, unit: str, asked: float, predicted: float | None, measured: float | None, at_most: bool
) -> BudgetLine:
    if measured is None:
        verdict = "not measured"
    else:
        verdict = "met" if (measured <= asked if at_most else measured >= asked) else "missed"
    return BudgetLine(line=line, unit=unit, asked=asked, predicted=predicted, measured=measured, verdict=verdict)


def margin(line: BudgetLine, value: float | None) -> float | None:
    """How far `value` is on the good side, as a fraction of what was asked; negative when it falls short."""
    if value is None or not line.asked:
        return None
    gain = value - line.asked if line.unit == "tok/s" else line.asked - value
    return gain / line.asked


def cache_text(plan: Plan) -> str:
    """ " with a q8_0 KV cache", where it is not the runtime's own; whoever runs the file has to ask for it."""
    return f" with a {plan.kv_type} KV cache (-ctk {plan.kv_type} -ctv {plan.kv_type})" if plan.kv_kl else ""


def cache_tokens(m: Measurement) -> int:
    """The context a measurement opened: what was reserved, or what its longer half needs."""
    return context_tokens(m.workload)


def missing_cache_bytes(plan: Plan, row: Row) -> int:
    """KV cache the plan reserves beyond the measured context, by the prediction's own rate per token."""
    context = plan.budget.context_tokens
    if not row.measurement or not row.prediction or context <= cache_tokens(row.measurement):
        return 0
    return round(row.prediction.kv_bytes * (1 - cache_tokens(row.measurement) / context))
