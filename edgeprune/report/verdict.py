"""Report -> the first section: the verdict, a line per limit of the budget."""

from __future__ import annotations

from edgeprune.report import budget, facts, words
from edgeprune.report.cells import UNPREDICTED, speed_kind
from edgeprune.report.doc import Section, Table, Text
from edgeprune.report.facts import Row
from edgeprune.report.record import BudgetLine, Report
from edgeprune.report.text import (
    Cell,
    Num,
    amount,
    figure,
    num,
    percent,
    runtime_name,
    size,
)
from edgeprune.report.words import BROKEN, MUCH_WORSE, NOTICEABLE, removed_text
from edgeprune.units import show_bytes

TONES = {"met": "good", "missed": "bad", "not measured": "mute"}


def verdict(report: Report, table: list[Row]) -> Section:
    row = facts.planned_row(table)
    rows = tuple(_budget_row(line, report, row) for line in report.verdict)
    parts = [Text(_about(report, row))]
    if rows:
        columns = ("Budget", "Asked", "Predicted", "Measured", "Verdict", "Margin", "What it covers")
        parts.append(Table(columns, rows))
    found = facts.damage(report, table)
    if found:
        ratio = f"{found.ratio:.2f} times" if found.ratio else "an unknown multiple of"
        parts.append(
            Text(
                f"The quality of this result: perplexity is {ratio} the whole model's "
                f"({figure(found.before)} → {figure(found.after)}, {found.of}). "
                f"The headline calls up to {NOTICEABLE} holding, from {MUCH_WORSE:g} a reason to heal, from {BROKEN:g} broken; "
                "these limits are edgeprune's own convention."
            )
        )
    else:
        parts.append(Text("Quality was not measured: a budget met says nothing of what the model still can do."))
    if told := words.equal_bytes(table):
        parts.append(Text(f"The other way to that size: {told[0].lower()}{told[1:]}"))
    return Section("verdict", "Verdict", tuple(parts))


def _about(report: Report, row: Row | None) -> str:
    plan = report.plan
    file = f"{row.artifact.path}, {show_bytes(row.artifact.bytes)}" if row else "no exported file is listed"
    mode = f" in mode {plan.mode}" if plan.mode else ""
    return (
        f"Judged is {plan.quant}{budget.cache_text(plan)} for {runtime_name(plan.runtime)} ({plan.backend}) "
        f"on {plan.device}{mode}: {file}. "
        f"Removed: {removed_text(report)}."
    )


def _budget_row(line: BudgetLine, report: Report, row: Row | None) -> tuple[Cell, ...]:
    predicted = "predicted" if line.unit == "bytes" else speed_kind(report.plan.prediction)
    predicted = "prior" if line.line in budget.QUALITY else predicted
    value = line.measured if line.measured is not None else line.predicted
    full = ""
    if line.line == "memory" and line.measured is not None and budget.missing_cache_bytes(row):
        value += budget.missing_cache_bytes(row)
        full = ", full cache"
    gap = budget.margin(line, value)
    absolute = amount(abs(value - line.asked), line.unit) if value is not None else ""
    side = "" if gap is None else "to spare" if gap >= 0 else "short"
    if line.unit == "bytes":
        cells = size(line.asked), size(line.predicted, predicted), size(line.measured, "measured")
        absolute = absolute.partition(" (")[0]
    else:
        cells = (
            num(line.asked, "", line.unit),
            num(line.predicted, predicted, line.unit) if line.predicted is not None else UNPREDICTED,
            num(line.measured, "measured", line.unit),
        )
    if gap is None:
        spare = Num("–", tone="mute")
    else:
        kind = "measured" if line.measured is not None else predicted
        spare = Num(percent(gap, sign=True), "predicted" if full else kind, f"{absolute} {side}{full}")
    sign = {"met": "✓ ", "missed": "✗ ", "not measured": ""}[line.verdict]
    return (
        Num(line.line, sub=_limit_name(line, report)),
        *cells,
        Num(sign + line.verdict, tone=TONES[line.verdict]),
        spare,
        _note(line, report, row),
    )


def _limit_name(line: BudgetLine, report: Report) -> str:
    if line.line in (*budget.QUALITY, "file size"):
        return "at most"
    if line.line == "memory":
        return "at most" if report.plan.memory_limit_from != "device" else "what the device can give"
    return "at least" if line.unit == "tok/s" else f"at most, {report.plan.budget.prompt_tokens:,}-token prompt"


def _note(line: BudgetLine, report: Report, row: Row | None) -> str:
    if line.line == "file size":
        return "The finished file, or folder." if row else "The planned file was not made."
    if line.line in budget.QUALITY:
        text = f", on {row.quality.text.name}" if row and row.quality else ""
        return f"Against the whole, unquantised model{text}."
    plan, m = report.plan, row.measurement if row else None
    if m is None:
        return "No measurement of the planned file."
    elsewhere = not facts.is_host(plan)
    if line.line == "memory":
        text = "Peak resident memory of the process. Left out: the interpreter and bindings, the operating system, other processes"
        extra = budget.missing_cache_bytes(row)
        text += (
            f", and cache beyond {budget.cache_tokens(row.process):,} tokens, which the margin adds ({show_bytes(extra)})."
            if extra
            else "."
        )
        return text + (" Measured on another machine." if elsewhere else "")
    value = facts.decode_rate(m) if line.unit == "tok/s" else facts.ttft_s(m, plan.budget.prompt_tokens)
    if elsewhere:
        return f"Another machine ran at {figure(value, line.unit)}; that says little of {plan.device}."
    if not facts.same_backend(m, plan):
        return f"Measured was {m.backend} ({figure(value, line.unit)}), the plan is for {plan.backend}."
    if line.unit == "s" and value is None:
        return f"Timed was a prompt of {m.workload.n_prompt:,} tokens, asked is {plan.budget.prompt_tokens:,}."
    n = len(m.decode_samples_ns if line.unit == "tok/s" else m.prefill_samples_ns)
    return f"Median of {n} repetitions, {m.n_threads} threads."
