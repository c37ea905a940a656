"""Report -> sections: what was removed, and what memory it takes."""

from __future__ import annotations

from edgeprune.blocks import is_portable, kept_sublayers
from edgeprune.report import facts
from edgeprune.report.budget import missing_cache_bytes
from edgeprune.report.cells import NONE, UNPREDICTED, name_of, strong
from edgeprune.report.doc import Figures, Section, Strip, Table, Text
from edgeprune.report.facts import Row
from edgeprune.report.record import Report
from edgeprune.report.text import Cell, Num, percent, size
from edgeprune.report.words import removed_text
from edgeprune.units import show_bytes

COLUMNS = (
    "File",
    "Weights",
    "KV cache",
    "Compute",
    "Runtime",
    "Total predicted",
    "Total measured",
    "Error",
    "Headroom",
)


def removal(report: Report) -> Section:
    plan = report.plan
    gone = 2 * plan.n_blocks_whole - len(kept_sublayers(plan.blocks))
    seams = sum(b.attn is not None and b.ffn is not None and b.attn != b.ffn for b in plan.blocks)
    text = (
        f"Removed: {removed_text(report)}. {gone} of {2 * plan.n_blocks_whole} sub-layers go, "
        f"{len(plan.blocks)} blocks remain of {plan.n_blocks_whole}."
    )
    if seams:
        text += f" {seams} seam joint{'s' if seams > 1 else ''}: attention and feed-forward of different layers become one block."
    if report.model:
        kept = set(kept_sublayers(plan.blocks))
        lost = sum(
            (b.attn if kind == "A" else b.ffn).params for i, b in enumerate(report.model.blocks) for kind in "AF" if (kind, i) not in kept
        )  # fmt: skip
        text += f" That is {lost / 1e6:,.1f} M of {report.model.params / 1e6:,.1f} M parameters ({percent(lost / report.model.params)})."
    state = "Every block is complete: the architecture is unchanged and stock loaders take it." if is_portable(plan.blocks) else (
        "Some blocks lack a half: only loaders that allow it take the result."
    )  # fmt: skip
    chosen = f"Chosen by {plan.metric}." if plan.metric else ""
    strip = Strip(plan.blocks, plan.n_blocks_whole)
    return Section("removal", "What was removed", (Text(text), strip, Text(f"{state} {chosen}".strip())))


def fit(report: Report, table: list[Row]) -> Section:
    limit = report.plan.memory_limit_bytes
    limit_text = (
        "No memory limit was set."
        if limit is None
        else f"The limit is {show_bytes(limit)}, from {report.plan.memory_limit_from}."
    )
    text = f"{limit_text} KV cache for {report.plan.budget.context_tokens:,} tokens."
    if not table:
        return Section("fit", "Device fit", (Text(text), Text("No artifacts are listed: memory is not measured.")))
    less = any(missing_cache_bytes(r) for r in table)
    columns = list(COLUMNS)
    caption = (
        "Measured is what the model adds to a process: peak resident memory less the interpreter's own. Error is predicted over "
        "measured, less one. Headroom is the limit less the measured total, or the predicted one where nothing was measured."
    )
    see = "Boxes: the predicted parts end to end (weights, KV cache, compute, runtime). Dot: the measured process."
    if less:
        columns.insert(6, "Predicted as run")
        caption += " Runs opened a shorter context than the plan reserves: error compares like with like, "
        caption += "headroom has the missing cache taken off."
        see += " The thin line adds the cache that the run did not need."
    rows = tuple(_row(r, limit, less) for r in table)
    parts = (
        Text(text),
        Table(tuple(columns), rows, caption, strong=strong(table)),
        Figures((("memory", "Memory of each file", see),)),
    )
    return Section("fit", "Device fit", parts)


def _row(r: Row, limit: int | None, less: bool) -> tuple[Cell, ...]:
    missing_cache = missing_cache_bytes(r)
    p, measured = r.prediction, r.process.memory_bytes if r.process else None
    parts = (p.weights_bytes, p.kv_bytes, p.compute_bytes, p.runtime_bytes, p.memory_bytes) if p else (None,) * 5
    parts += (parts[-1] - missing_cache if p else None,) if less else ()
    predicted = tuple(UNPREDICTED if n is None else size(n, "predicted") for n in parts)
    like = p and measured and facts.same_backend(r.process, r.plan)
    error = percent((p.memory_bytes - missing_cache) / measured - 1, sign=True) if like else "–"
    total = measured + missing_cache if measured is not None else p.memory_bytes if p else None
    if limit is None or total is None:
        headroom = NONE
    else:
        free = limit - total
        kind = "measured" if measured is not None and not missing_cache else "predicted"
        headroom = size(free, kind, "bad" if free < 0 else "")
        headroom = Num(headroom.text.replace("-", "−"), kind, headroom.sub.replace("-", "−"), headroom.tone)
    return (name_of(r), *predicted, size(measured, "measured"), Num(error), headroom)
