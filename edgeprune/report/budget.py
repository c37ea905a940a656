"""What was asked against what was found: a line per limit, margins, and the cache a run did not open."""

from __future__ import annotations

from edgeprune.bench import context_tokens
from edgeprune.report.facts import Row, decode_rate, speed_counts, ttft_s
from edgeprune.report.record import BudgetLine
from edgeprune.types import Measurement, Plan

QUALITY = ("damage", "perplexity")  # lines that are of the text read, not of the device


def budget_lines(plan: Plan, row: Row | None) -> tuple[BudgetLine, ...]:
    """One line per limit asked for. Memory is a process's; speed counts only from the planned device and backend; size and
    quality are the finished file's, wherever they were measured.

    Memory is met when the process and the cache it did not yet fill stay within the limit; when only the
    process does, the full context was not measured and the line says so.
    """
    fast = row.measurement if row and row.measurement and speed_counts(row.measurement, plan) else None
    b, p, lines = plan.budget, plan.prediction, []
    if plan.memory_limit_bytes is not None:
        measured = row.process.memory_bytes if row and row.process else None
        line = _line("memory", "bytes", plan.memory_limit_bytes, p.memory_bytes, measured, at_most=True)
        if line.verdict == "met" and measured + missing_cache_bytes(row) > plan.memory_limit_bytes:
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


def missing_cache_bytes(row: Row) -> int:
    """KV cache the plan reserves beyond the measured context, by the prediction's own rate per token."""
    context = row.plan.budget.context_tokens
    if not row.process or not row.prediction or context <= cache_tokens(row.process):
        return 0
    return round(row.prediction.kv_bytes * (1 - cache_tokens(row.process) / context))
