"""Report -> sections: removal, fit, quality, speed. The first is in verdict, the rest in appendix."""

from __future__ import annotations

from statistics import median

from edgeprune.blocks import is_portable, kept_sublayers
from edgeprune.report import facts
from edgeprune.report.doc import Figures, Section, Strip, Table, Text
from edgeprune.report.facts import Row
from edgeprune.report.text import (
    NOT_MEASURED,
    Cell,
    Num,
    figure,
    missing,
    num,
    percent,
    runtime_name,
    size,
)
from edgeprune.report.words import removed_text
from edgeprune.types import Prediction, Quality, Report
from edgeprune.units import show_bytes


def name_of(row: Row) -> Num:
    """Quantisation over runtime and state, the first cell of every table of artifacts."""
    return Num(row.artifact.quant, sub=f"{runtime_name(row.runtime)}, {state_of(row)}")


def state_of(row: Row) -> str:
    return (
        "whole model" if row.baseline else "this plan" if row.planned else "pruned" if row.pruned else "nothing removed"
    )


def speed_kind(p: Prediction) -> str:
    return "prior" if p.basis.startswith("prior") else "predicted"


def _strong(table: list[Row]) -> tuple[int, ...]:
    return tuple(i for i, r in enumerate(table) if r.planned)


# --- 2 removal ----------------------------------------------------------------------------------


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
    return Section("removal", "What was removed", (Text(text), Strip(), Text(f"{state} {chosen}".strip())))


# --- 3 fit --------------------------------------------------------------------------------------


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
    less = any(facts.missing_cache_bytes(report.plan, r) for r in table)
    columns = [
        "File",
        "Weights",
        "KV cache",
        "Compute",
        "Runtime",
        "Total predicted",
        "Total measured",
        "Error",
        "Headroom",
    ]
    caption = (
        "Measured is what the model adds to a process: peak resident memory less the interpreter's own. Error is predicted over "
        "measured, less one. Headroom is the limit less the measured total, or the predicted one where nothing was measured."
    )
    see = "Outlines are the predicted parts end to end: weights, KV cache, compute, runtime. The dot is the measured process."
    if less:
        columns.insert(6, "Predicted as run")
        caption += " Runs opened a shorter context than the plan reserves: error compares like with like, "
        caption += "headroom has the missing cache taken off."
        see += " The thin line adds the cache that the run did not need."
    rows = tuple(_fit_row(r, report, less) for r in table)
    parts = (
        Text(text),
        Table(tuple(columns), rows, caption, _strong(table)),
        Figures((("memory", "Memory of each file", see),)),
    )
    return Section("fit", "Device fit", parts)


def _fit_row(r: Row, report: Report, less: bool) -> tuple[Cell, ...]:
    limit, missing_cache = report.plan.memory_limit_bytes, facts.missing_cache_bytes(report.plan, r)
    p, measured = r.prediction, r.measurement.memory_bytes if r.measurement else None
    parts = (p.weights_bytes, p.kv_bytes, p.compute_bytes, p.runtime_bytes, p.memory_bytes) if p else (None,) * 5
    parts += (parts[-1] - missing_cache if p else None,) if less else ()
    predicted = tuple(Num("not predicted", tone="mute") if n is None else size(n, "predicted") for n in parts)
    like = p and measured and facts.same_backend(r.measurement, report.plan)
    error = percent((p.memory_bytes - missing_cache) / measured - 1, sign=True) if like else "–"
    total = measured + missing_cache if measured is not None else p.memory_bytes if p else None
    if limit is None or total is None:
        headroom = Num("–", tone="mute")
    else:
        free = limit - total
        kind = "measured" if measured is not None and not missing_cache else "predicted"
        headroom = size(free, kind, "bad" if free < 0 else "")
        headroom = Num(headroom.text.replace("-", "−"), kind, headroom.sub.replace("-", "−"), headroom.tone)
    return (name_of(r), *predicted, size(measured, "measured"), Num(error), headroom)


# --- 4 quality ----------------------------------------------------------------------------------


def quality(report: Report, table: list[Row]) -> Section:
    rows: list[tuple[Cell, ...]] = []
    after = "pruned" if facts.removes(report.plan) else "nothing removed"
    titles = {
        "whole": "whole model",
        "pruned": f"{after}, before quantisation",
        "healed": "healed, before quantisation",
    }
    for subject, title in titles.items():
        rows += [
            _quality_row(Num("unquantised", sub=f"{runtime_name(q.runtime)}, {title}"), q, report, table, None)
            for q in report.qualities
            if q.subject == subject
        ]
    strong = tuple(len(rows) + i for i in _strong(table))
    rows += [_quality_row(name_of(r), r.quality, report, table, r) for r in table]
    parts: list = []
    if rows and any(q for q in report.qualities):
        columns = ("What", "Perplexity", "Whole model", "Ratio", "KL, nats/token", "Top-1 agrees", "File")
        texts = {(q.text, q.windows) for q in report.qualities}
        told = [
            f"Text: {t.name} (SHA-256 {t.sha256[:12]}…), {windows} windows of {t.context_tokens:,} tokens, stride {t.stride_tokens:,}."
            for t, windows in sorted(texts, key=lambda pair: (pair[0].name, pair[0].sha256, pair[1]))
        ]
        told.append("KL is from the whole model to this one, ± its standard error over windows.")
        parts.append(Table(columns, tuple(rows), " ".join(told), strong))
        see = (
            "An arrow leads from each whole model to its pruned form. "
            if any(facts.baseline_of(r, table) for r in table)
            else ""
        )
        parts.append(
            Figures(
                (
                    ("quality_size", "Quality against file size", f"{see}Good is down and to the left."),
                    (
                        "quality_speed",
                        "Quality against decode speed",
                        f"{see}Good is down and to the right. Speeds are of the machine in section 8.",
                    ),
                )
            )
        )
    else:
        parts.append(Text("Perplexity, KL and agreement are not measured."))
    see = (
        f"Every step removes more. Read on {report.scores.text.name} while scoring, before quantisation."
        if report.scores
        else ""
    )
    if report.scores:
        parts.append(Figures((("damage", "Damage along the removal path", see),)))
    else:
        parts.append(Text("The damage curve of the removal path is not measured: no scores of this model."))
    return Section("quality", "Quality", tuple(parts))


def _quality_row(name: Cell, q: Quality | None, report: Report, table: list[Row], row: Row | None) -> tuple[Cell, ...]:
    file = size(row.artifact.bytes, "measured") if row else Num("–", tone="mute")
    if q is None:
        return (name, missing(), missing(), Num("–", tone="mute"), missing(), missing(), file)
    if q.subject == "whole":
        none = Num("–", tone="mute")
        return (name, num(q.perplexity, "measured"), none, none, Num("the reference", tone="mute"), none, file)
    before = facts.whole_quality(q, report, table)
    whole = num(before, "measured")
    kl = num(q.kl, "measured", sub=f"± {q.kl_stderr:.2g}" if q.kl_stderr is not None and q.kl is not None else "")
    agree = Num(percent(q.top1_agreement), "measured") if q.top1_agreement is not None else missing()
    ratio = Num(f"{q.perplexity / before:.2f}", "measured") if before else Num("–", tone="mute")
    return (name, num(q.perplexity, "measured"), whole, ratio, kl, agree, file)


# --- 5 speed ------------------------------------------------------------------------------------


def speed(report: Report, table: list[Row]) -> Section:
    timed = [r for r in table if r.measurement]
    if not timed:
        return Section("speed", "Speed", (Text("Speed is not measured: the folder holds no measurements."),))
    plan = report.plan
    columns = (
        "File",
        "Prefill, tok/s",
        "Decode, tok/s",
        "Predicted decode",
        "Error",
        "Against whole",
        "Per token, ms",
        "First token, s",
    )
    rows = tuple(_speed_row(r, report, table) for r in table)
    w = timed[0].measurement.workload
    loads = sorted(
        {(r.measurement.workload.n_prompt, r.measurement.workload.n_gen, r.measurement.workload.n_depth) for r in timed}
    )
    what = "; ".join(f"prompt {p:,}, generate {g:,}, depth {d:,}" for p, g, d in loads)
    threads = ", ".join(str(n) for n in sorted({r.measurement.n_threads for r in timed}))
    text = f"Batch 1, {what}; {w.repetitions} repetitions in a fresh process, {threads} threads. "
    text += "First token is the whole prompt's time to its first logits; tokenising and sampling are not timed."
    if not facts.is_host(plan):
        text += f" These are speeds of the machine in section 8, not of {plan.device}; "
        text += f"predictions are for {plan.device}, so no error is given."
    caption = (
        "Medians; the smaller figure is the range over repetitions. Against whole: the ratio within each repetition, "
        "where files took turns. Per token: the median and the 90th percentile. "
        f"pp{w.n_prompt} and tg{w.n_gen} are llama-bench's names for prefill and decode."
    )
    gains = ", × the gain over the whole model" if any(facts.baseline_of(r, table) for r in timed) else ""
    see = f"Each dot is one repetition, the bar their median{gains}."
    hollow = " Hollow marks are predictions with their interval." if facts.is_host(plan) else ""
    figures = Figures((("decode", "Decode", see + hollow), ("prefill", "Prefill", see)))
    return Section("speed", "Speed at batch 1", (Text(text), Table(columns, rows, caption, _strong(table)), figures))


def _speed_row(r: Row, report: Report, table: list[Row]) -> tuple[Cell, ...]:
    m, p = r.measurement, r.prediction
    if p and p.decode_tok_per_s is not None:
        low, high = p.decode_low_tok_per_s, p.decode_high_tok_per_s
        foretold = num(
            p.decode_tok_per_s,
            speed_kind(p),
            sub=f"{figure(low)} – {figure(high)}" if low is not None and high is not None else "",
        )
    else:
        foretold = Num("not predicted", tone="mute")
    if m is None:
        return (name_of(r), missing(), missing(), foretold, "–", "–", missing(), missing())
    rate = facts.decode_rate(m)
    comparable = rate and p and p.decode_tok_per_s is not None and facts.speed_counts(m, report.plan)
    base = facts.baseline_of(r, table)
    gains = facts.gain(facts.decode_rates, m, base.measurement if base else None)
    p50, p90 = facts.token_percentile_s(m, 50), facts.token_percentile_s(m, 90)
    return (
        name_of(r),
        _rate(facts.prefill_rates(m)),
        _rate(facts.decode_rates(m)),
        foretold,
        percent(p.decode_tok_per_s / rate - 1, sign=True) if comparable else "–",
        _gain(gains) if gains else Num(NOT_MEASURED if r.pruned else "–", tone="mute"),
        Num(f"{1e3 * p50:.3g}", "measured", f"p90 {1e3 * p90:.3g}") if p50 and p90 else missing(),
        num(facts.ttft_s(m), "measured"),
    )


def _gain(gains: list[float]) -> Num:
    span = f"{min(gains):.2f} – {max(gains):.2f}" if len(gains) > 1 else ""
    return Num(f"{median(gains):.2f}×", "measured", sub=span)


def _rate(rates: list[float]) -> Num:
    if not rates:
        return missing()
    return num(median(rates), "measured", sub=f"{figure(min(rates))} – {figure(max(rates))}")
