"""The table of runs side by side: a line per question, a column per run."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from edgeprune.report import cells, facts, words
from edgeprune.report.budget import missing_cache_bytes
from edgeprune.report.facts import Row
from edgeprune.report.record import Report
from edgeprune.report.text import Cell, Num, amount, missing, num, percent, runtime_name, size
from edgeprune.report.verdict import TONES

Answer = Callable[[Report, Row | None, list[Row]], Cell]


def table_of(runs: list[tuple[Report, list[Row]]]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(
        (question, *(answer(r, facts.planned_row(table), table) for r, table in runs))
        for question, answer in QUESTIONS.items()
    )


def _asked(r: Report, row: Row | None, table: list[Row]) -> Cell:
    lines = [f"{line.line} {amount(line.asked, line.unit)}" for line in r.verdict]
    return "; ".join(lines) or "no limit"


def _verdict(r: Report, row: Row | None, table: list[Row]) -> Cell:
    if not r.verdict:
        return Num("no limit was asked", tone="mute")
    word = words.word(r.verdict)
    tone = TONES[{"Fits": "met", "Does not fit": "missed"}.get(word, "not measured")]
    missed = [line.line for line in r.verdict if line.verdict == "missed"]
    return Num(word, tone=tone, sub=f"misses {', '.join(missed)}" if missed else "")


def _file(r: Report, row: Row | None, table: list[Row]) -> Cell:
    return size(row.artifact.bytes, "measured") if row else missing()


def _memory(r: Report, row: Row | None, table: list[Row]) -> Cell:
    return size(row.process.memory_bytes if row and row.process else None, "measured")


def _full_memory(r: Report, row: Row | None, table: list[Row]) -> Cell:
    """With the cache that was not opened, by prediction."""
    if not row or not row.process:
        return missing()
    extra = missing_cache_bytes(row)
    return size(row.process.memory_bytes + extra, "predicted" if extra else "measured")


def _decode(r: Report, row: Row | None, table: list[Row]) -> Cell:
    return cells.rate(facts.decode_rates(row.measurement)) if row and row.measurement else missing()


def _late(r: Report, row: Row | None, table: list[Row]) -> Cell:
    if not row or len(row.depths) < 2:
        return missing()
    rates, depth = facts.decode_rates(row.depths[-1]), row.depths[-1].workload.n_depth
    return num(median(rates), "measured", sub=f"after {depth:,} tokens") if rates else missing()


def _gain(r: Report, row: Row | None, table: list[Row]) -> Cell:
    base = facts.baseline_of(row, table) if row else None
    found = facts.gain(facts.decode_rates, row.measurement if row else None, base.measurement if base else None)
    return cells.times(found) if found else missing()


def _ttft(r: Report, row: Row | None, table: list[Row]) -> Cell:
    return cells.percentiles(row.measurement.prefill_samples_ns, 1) if row and row.measurement else missing()


def _perplexity(r: Report, row: Row | None, table: list[Row]) -> Cell:
    q = row.quality if row else None
    before = facts.whole_quality(q, r, table) if q else None
    return num(
        q.perplexity if q else None, "measured", sub=f"{q.perplexity / before:.2f}× the whole model's" if before else ""
    )


def _agreement(r: Report, row: Row | None, table: list[Row]) -> Cell:
    q = row.quality if row else None
    return Num(percent(q.top1_agreement), "measured") if q and q.top1_agreement is not None else missing()


def _fewer_bits(r: Report, row: Row | None, table: list[Row]) -> Cell:
    other = facts.equal_bytes(table)
    if not row or not other or not other.quality:
        return missing()
    return num(other.quality.kl, "measured", sub=f"{other.artifact.quant}, {percent(other.artifact.bytes / row.artifact.bytes - 1, True)} bytes")  # fmt: skip  # noqa: E501


def _healing(r: Report, row: Row | None, table: list[Row]) -> Cell:
    return ", then ".join(h.method for h in r.healing.steps()) if r.healing else "none recorded"


QUESTIONS: dict[str, Answer] = {
    "Model": lambda r, row, table: r.plan.model,
    "Device": lambda r, row, table: r.plan.device,
    "Asked": _asked,
    "Verdict": _verdict,
    "Runtime": lambda r, row, table: f"{runtime_name(r.plan.runtime)}, {r.plan.quant}",
    "Removed": lambda r, row, table: words.removed_text(r),
    "Blocks": lambda r, row, table: f"{len(r.plan.blocks)} of {r.plan.n_blocks_whole}",
    "Healed by": _healing,
    "File": _file,
    "Memory": _memory,
    "Memory, whole context": _full_memory,
    "Memory, predicted": lambda r, row, table: size(r.plan.prediction.memory_bytes, "predicted"),
    "Decode, tok/s": _decode,
    "Decode, predicted": lambda r, row, table: cells.foretold(r.plan.prediction),
    "Decode late, tok/s": _late,
    "Against whole": _gain,
    "First token, s": _ttft,
    "Perplexity": _perplexity,
    "KL, nats/token": lambda r, row, table: cells.damage(row.quality if row else None),
    "Top-1 agrees": _agreement,
    "KL of fewer bits": _fewer_bits,
}
