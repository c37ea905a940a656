"""Report -> section: speed at batch 1, from an empty cache and along the context."""

from __future__ import annotations

from statistics import median

from edgeprune.report import facts
from edgeprune.report.cells import foretold, name_of, percentiles, rate, strong, times
from edgeprune.report.doc import Figures, Part, Section, Table, Text
from edgeprune.report.facts import Row
from edgeprune.report.record import Report
from edgeprune.report.text import NOT_MEASURED, Cell, Num, missing, percent
from edgeprune.types import Measurement

COLUMNS = (
    "File",
    "Prefill, tok/s",
    "Decode, tok/s",
    "Predicted decode",
    "Error",
    "Against whole",
    "Per token, ms",
    "First token, s",
)


def speed(report: Report, table: list[Row]) -> Section:
    timed = [r for r in table if r.measurement]
    if not timed:
        return Section("speed", "Speed", (Text("Speed is not measured: the folder holds no measurements."),))
    plan = report.plan
    loads = sorted({protocol(r.measurement) for r in timed})
    text = f"Batch 1, {'; '.join(loads)}; each file in a fresh process, after a warm-up that is not counted. "
    text += "First token is the whole prompt's time to its first logits; tokenising and sampling are not timed."
    if not facts.is_host(plan):
        text += f" These are speeds of the machine in section 8, not of {plan.device}; "
        text += f"predictions are for {plan.device}, so no error is given."
    w = timed[0].measurement.workload
    caption = (
        "Medians; the smaller figure is the range over repetitions. Against whole: the ratio within each repetition, "
        "where files took turns. Per token and first token: the median and the 90th percentile. "
        f"pp{w.n_prompt} and tg{w.n_gen} are llama-bench's names for prefill and decode."
    )
    gains = ", × the gain over the whole model" if any(facts.baseline_of(r, table) for r in timed) else ""
    see = f"Each dot is one repetition, the bar their median{gains}."
    hollow = " Hollow marks are predictions with their interval." if facts.is_host(plan) else ""
    parts: list[Part] = [
        Text(text),
        Table(COLUMNS, tuple(_row(r, table) for r in table), caption, strong=strong(table)),
        Figures((("decode", "Decode", see + hollow), ("prefill", "Prefill", see))),
    ]
    return Section("speed", "Speed at batch 1", (*parts, *contexts(table)))


def protocol(m: Measurement) -> str:
    """ "prompt 512, generate 128, depth 0, 5 repetitions, 2 threads"."""
    w = m.workload
    return (
        f"prompt {w.n_prompt:,}, generate {w.n_gen:,}, depth {w.n_depth:,}, "
        f"{w.repetitions} repetitions, {m.n_threads} threads"
    )


def _row(r: Row, table: list[Row]) -> tuple[Cell, ...]:
    m, p = r.measurement, r.prediction
    if m is None:
        return (name_of(r), missing(), missing(), foretold(p), "–", "–", missing(), missing())
    decode = facts.decode_rate(m)
    comparable = decode and p and p.decode_tok_per_s is not None and facts.speed_counts(m, r.plan)
    base = facts.baseline_of(r, table)
    gains = facts.gain(facts.decode_rates, m, base.measurement if base else None)
    return (
        name_of(r),
        rate(facts.prefill_rates(m)),
        rate(facts.decode_rates(m)),
        foretold(p),
        percent(p.decode_tok_per_s / decode - 1, sign=True) if comparable else "–",
        times(gains) if gains else Num(NOT_MEASURED if r.pruned else "–", tone="mute"),
        percentiles(m.token_samples_ns, 1e3),
        percentiles(m.prefill_samples_ns, 1),
    )


# --- along the context --------------------------------------------------------------------------


def contexts(table: list[Row]) -> list[Part]:
    """Decode speed with tokens already in the cache, of the files where that was timed."""
    timed = [r for r in table if len(r.depths) > 1]
    if not timed:
        return [Text("Speed later in the context is not measured: every file was timed from one depth only.")]
    depths = sorted({m.workload.n_depth for r in timed for m in r.depths})
    columns = ("Decode, tok/s", *(f"after {d:,} tokens" for d in depths), "Last against first", "Against whole, last")
    rows = tuple(_context_row(r, depths, table) for r in timed)
    loads = sorted({protocol(m) for r in timed for m in r.depths[1:]})
    caption = f"Medians with their range. Later in the context: {'; '.join(loads)}. Each repetition fills the cache first, untimed."
    see = "Bars span the repetitions. Every attention sub-layer reads its cache for each token; removed ones have none."
    return [
        Table(columns, rows, caption, "Along the context", tuple(i for i, r in enumerate(timed) if r.planned)),
        Figures((("contexts", "Decode along the context", see),)),
    ]


def _context_row(r: Row, depths: list[int], table: list[Row]) -> tuple[Cell, ...]:
    by_depth = {m.workload.n_depth: m for m in r.depths}
    cells = tuple(rate(facts.decode_rates(by_depth[d])) if d in by_depth else missing() for d in depths)
    first, last = facts.decode_rate(r.depths[0]), facts.decode_rate(r.depths[-1])
    base = facts.baseline_of(r, table)
    same = next((m for m in base.depths if m.workload == r.depths[-1].workload), None) if base else None
    gains = facts.gain(facts.decode_rates, r.depths[-1], same)
    kept = Num(percent(last / first - 1, sign=True), "measured") if first and last else missing()
    return (name_of(r), *cells, kept, Num(f"{median(gains):.2f}×", "measured") if gains else Num("–", tone="mute"))
