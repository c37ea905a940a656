"""The report's plots as SVG text. Same report, same bytes; colours are CSS variables, text stays text."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from edgeprune.blocks import removed_sublayers
from edgeprune.report import facts
from edgeprune.report.facts import Row
from edgeprune.report.svg import ACCENT, INK, MUTED, PAPER, RULE, WHOLE, beside, draw, numbers, place
from edgeprune.report.text import figure, runtime_name, short
from edgeprune.types import Report
from edgeprune.units import show_bytes

MARKERS = "osD^v"  # a runtime's shape


def plots(report: Report) -> dict[str, str]:
    """name -> SVG, for every plot the data allows: memory, quality_size, quality_speed, damage, decode, prefill."""
    table = facts.rows(report)
    made = {
        "memory": _memory(report, table),
        "quality_size": _quality(report, table, "file, MB", lambda r: r.artifact.bytes / 1e6),
        "quality_speed": _quality(report, table, "decode, tokens/s", lambda r: facts.decode_rate(r.measurement)),
        "damage": _damage(report),
        "decode": _speed(report, table, "decode, tokens/s", facts.decode_rates, budget=True),
        "prefill": _speed(report, table, "prefill, tokens/s", facts.prefill_rates, budget=False),
    }
    return {name: svg for name, svg in made.items() if svg}


def label(row: Row) -> str:
    """ "Q8_0 llama.cpp, whole"."""
    return f"{short(row.artifact.quant, 14)} {short(runtime_name(row.runtime), 14)}{', whole' if row.baseline else ''}"


# --- drawing ------------------------------------------------------------------------------------


def _colour(row: Row) -> str:
    return WHOLE if row.baseline else ACCENT


def _rows_axis(ax: Any, shown: list[Row], xlabel: str) -> None:
    """One line per artifact, top to bottom, a wider gap between pairs."""
    ax.set_yticks(_places(shown), [label(r) for r in shown], color=INK)
    for tick, row in zip(ax.get_yticklabels(), shown, strict=True):
        tick.set_fontweight("bold" if row.planned else "normal")
    ax.set_ylim(_places(shown)[-1] - 0.7, 0.7)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color=RULE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set_xlabel(xlabel)


def _places(shown: list[Row]) -> list[float]:
    y, out, last = 0.0, [], None
    for r in shown:
        pair = (r.runtime, r.artifact.quant)
        y -= (1.5 if last and pair != last else 1.0) if last else 0
        out.append(y)
        last = pair
    return out


def _height(shown: list[Row]) -> float:
    return 0.55 + 0.255 * (1.4 - _places(shown)[-1])


# --- the plots ----------------------------------------------------------------------------------


def _memory(report: Report, table: list[Row]) -> str | None:
    """Predicted parts as outlines laid end to end, measured process memory as a dot, the limit as a line."""
    shown = [r for r in table if r.prediction or r.measurement]
    if not shown:
        return None
    limit = report.plan.memory_limit_bytes
    tops = [r.prediction.memory_bytes for r in shown if r.prediction]
    tops += [r.measurement.memory_bytes + facts.missing_cache_bytes(report.plan, r) for r in shown if r.measurement]
    unit, name = (1e9, "GB") if max(tops) >= 2e9 else (1e6, "MB")
    near = limit is not None and limit <= 1.6 * max(tops)
    end = 1.06 * max(*tops, limit if near else 0, 1) / unit

    def paint(ax: Any) -> None:
        first = True
        for y, r in zip(_places(shown), shown, strict=True):
            left = 0.0
            p = r.prediction
            parts = (
                (
                    ("weights", p.weights_bytes),
                    ("KV", p.kv_bytes),
                    ("compute", p.compute_bytes),
                    ("runtime", p.runtime_bytes),
                )
                if p
                else ()
            )
            for part, n in parts:
                ax.barh(y, n / unit, left=left, height=0.62, fill=False, edgecolor=_colour(r), linewidth=0.9)
                if first and n / unit > 0.13 * end:
                    ax.text(left + n / unit / 2, y + 0.5, part, ha="center", va="bottom", color=MUTED, fontsize=7.4)
                left += n / unit
            first = first and not parts
            if r.measurement:
                used = r.measurement.memory_bytes / unit
                full = used + facts.missing_cache_bytes(report.plan, r) / unit
                if full > used:
                    ax.plot([used, full], [y, y], color=INK, linewidth=0.9, zorder=2.5)
                    ax.plot([full, full], [y - 0.2, y + 0.2], color=INK, linewidth=0.9, zorder=2.5)
                ax.plot(used, y, "o", color=_colour(r), markersize=6, zorder=3)
        _rows_axis(ax, shown, f"process memory, {name}")
        ax.set_ylim(_places(shown)[-1] - 0.7, 1.9)
        ax.set_xlim(0, end)
        if near:
            ax.axvline(limit / unit, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
            text = f"limit {figure(limit / unit, name)}"
            ax.annotate(text, (limit / unit, 1.2), (-4, 0), textcoords="offset points", ha="right", va="bottom")
        elif limit is not None:
            ax.text(end, 1.2, f"limit {show_bytes(limit)} is off the scale →", ha="right", va="bottom")

    return draw(
        "memory", "Process memory of each file, predicted and measured, against the limit", _height(shown) + 0.25, paint
    )


def _speed(
    report: Report, table: list[Row], xlabel: str, rates: Callable[..., list[float]], budget: bool
) -> str | None:
    """Every repetition as a dot, the median as a bar; predictions as hollow dots with their interval."""
    shown = [r for r in table if r.measurement and rates(r.measurement)]
    if not shown:
        return None
    plan = report.plan
    asked = plan.budget.min_decode_tok_per_s if budget and facts.is_host(plan) else None
    foretold = [
        r
        for r in shown
        if budget and r.prediction and r.prediction.decode_tok_per_s and facts.speed_counts(r.measurement, plan)
    ]

    def paint(ax: Any) -> None:
        top = asked or 0.0
        for y, r in zip(_places(shown), shown, strict=True):
            found = rates(r.measurement)
            high = y + (0.14 if foretold else 0)
            ax.plot(
                found,
                [high] * len(found),
                "o",
                color=_colour(r),
                markersize=4.2,
                alpha=0.55,
                markeredgewidth=0,
                zorder=3,
            )
            ax.plot(
                [median(found)] * 2,
                [high - 0.3, high + 0.3],
                color=_colour(r),
                linewidth=2.2,
                zorder=4,
                solid_capstyle="butt",
            )
            right = max(found)
            if r in foretold:
                p = r.prediction
                span = [p.decode_low_tok_per_s or p.decode_tok_per_s, p.decode_high_tok_per_s or p.decode_tok_per_s]
                ax.plot(span, [y - 0.26] * 2, color=MUTED, linewidth=0.8, zorder=2)
                mark = _prediction_mark(p.basis)
                ax.plot(p.decode_tok_per_s, y - 0.26, mark, mfc=PAPER, mec=INK, mew=0.9, markersize=4.6, zorder=2.5)
                right = max(right, *span)
            base = facts.baseline_of(r, table)
            beside(ax, y, 38, figure(median(found)))
            if gains := facts.gain(rates, r.measurement, base.measurement if base else None):
                beside(ax, y, 74, f"{median(gains):.2f}×")
            top = max(top, right)
        _rows_axis(ax, shown, xlabel)
        ax.set_xlim(0, top * 1.04)
        ax.set_ylim(_places(shown)[-1] - 0.7, 1.9)
        beside(ax, 1.25, 38, "median", color=MUTED, fontsize=7.4)
        if any(facts.baseline_of(r, table) for r in shown):
            beside(ax, 1.25, 74, "gain", color=MUTED, fontsize=7.4)
        if asked:
            ax.axvline(asked, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
            side = {"ha": "right", "va": "bottom"} if asked > 0.6 * top else {"ha": "left", "va": "bottom"}
            offset = (-4 if side["ha"] == "right" else 4, 0)
            ax.annotate(f"asked {figure(asked)}", (asked, 1.1), offset, textcoords="offset points", **side)

    return draw(xlabel.split(",")[0], f"{xlabel}: every repetition, and the median", _height(shown) + 0.2, paint)


def _prediction_mark(basis: str) -> str:
    return "^" if basis.startswith("prior") else "o"


def _quality(report: Report, table: list[Row], xlabel: str, x: Callable[[Row], float | None]) -> str | None:
    """Perplexity against size or speed. An arrow leads from each whole model to its pruned form."""
    shown = [r for r in table if r.quality and x(r)]
    if len(shown) < 2:
        return None
    kinds = sorted({r.runtime for r in table})
    ys = [r.quality.perplexity for r in shown]
    log = max(ys) > 3 * min(ys)

    def paint(ax: Any) -> None:
        if log:
            ax.set_yscale("log")
        xs = [x(r) for r in shown]
        pad = 0.22 * (max(xs) - min(xs) or max(xs))
        ax.set_xlim(max(0, min(xs) - pad), max(xs) + pad)
        reach = (max(ys) / min(ys)) ** 0.22 if log else 0.25 * (max(ys) - min(ys) or 1)
        ax.set_ylim(*((min(ys) / reach, max(ys) * reach) if log else (min(ys) - reach, max(ys) + reach)))
        ax.grid(color=RULE, linewidth=0.6)
        ax.set_axisbelow(True)
        arrows: list[tuple[Any, Any]] = []
        for r in shown:
            base = facts.baseline_of(r, table)
            if base in shown:
                start, end = (x(base), base.quality.perplexity), (x(r), r.quality.perplexity)
                arrow = {"arrowstyle": "->", "color": MUTED, "linewidth": 0.8, "shrinkA": 5, "shrinkB": 5}
                ax.annotate("", end, start, arrowprops=arrow)
                arrows.append((start, end))
            mark = MARKERS[kinds.index(r.runtime) % len(MARKERS)]
            ax.plot(x(r), r.quality.perplexity, mark, color=_colour(r), markersize=6.5, zorder=3)
        numbers(ax.xaxis, False)
        numbers(ax.yaxis, log)
        ax.set_xlabel(xlabel)
        ax.set_title("perplexity, lower is better", loc="left", fontsize=8.6, color=MUTED)
        points = [(x(r), r.quality.perplexity, short(r.artifact.quant, 14), r.planned) for r in shown]
        place(ax, points, arrows)
        states = {r.baseline: "whole" if r.baseline else "pruned" if r.pruned else "nothing removed" for r in shown}
        handles = [ax.plot([], [], "_", color=WHOLE if b else ACCENT, markersize=7, mew=5)[0] for b in states]
        names = list(states.values())
        for i, kind in enumerate(kinds):
            handles.append(ax.plot([], [], MARKERS[i % len(MARKERS)], color=MUTED, markersize=5)[0])
            names.append(short(runtime_name(kind), 16))
        ax.legend(
            handles, names, ncols=4, loc="upper center", bbox_to_anchor=(0.45, -0.17), frameon=False, handletextpad=0.2, columnspacing=1.1
        )  # fmt: skip

    name = "qsize" if xlabel.startswith("file") else "qspeed"
    return draw(name, f"Perplexity against {xlabel}", 3.0, paint)


def _damage(report: Report) -> str | None:
    """KL after each step of the removal path (perplexity when KL is unknown), with the planned step marked."""
    scores, plan = report.scores, report.plan
    if not scores:
        return None
    by_kl = any(s.kl is not None for s in scores.path)
    points = [
        (len(removed_sublayers(s.blocks, scores.n_blocks)) / 2, s.kl if by_kl else s.perplexity, s) for s in scores.path
    ]
    points = [p for p in points if p[1] is not None]
    if len(points) < 2:
        return None
    chosen = next((p for p in points if p[2].blocks == plan.blocks), None)
    name = "KL against the whole model, nats per token" if by_kl else "perplexity, lower is better"

    def paint(ax: Any) -> None:
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        ax.plot(xs, ys, "-", color=MUTED, linewidth=1)
        ax.plot(xs, ys, "o", color=WHOLE, markersize=3.6)
        ax.set_xlim(-0.02 * max(xs) - 0.1, max(xs) * 1.04)
        ax.set_ylim(0 if by_kl else min(ys) * 0.9, max(ys) * 1.08)
        if chosen:
            px, py, step = chosen
            ax.plot(
                [px, px, ax.get_xlim()[0]],
                [0 if by_kl else ax.get_ylim()[0], py, py],
                color=ACCENT,
                linewidth=0.8,
                linestyle=(0, (2, 2)),
            )
            ax.plot(px, py, "o", color=ACCENT, markersize=7.5, zorder=3)
            lines = [
                f"this plan: {px:g} of {scores.n_blocks} layers",
                f"KL {figure(step.kl)}" if step.kl is not None else "",
            ]
            lines.append(f"perplexity {figure(step.perplexity)}" if step.perplexity is not None else "")
        ax.grid(color=RULE, linewidth=0.6)
        ax.set_axisbelow(True)
        numbers(ax.xaxis, False, whole=True)
        numbers(ax.yaxis, False)
        ax.set_xlabel("removed, in layers (a half counts 0.5)")
        ax.set_title(name, loc="left", fontsize=8.6, color=MUTED)
        if chosen:
            curve = [(a[:2], b[:2]) for a, b in zip(points, points[1:], strict=False)]
            place(ax, [(px, py, "\n".join(t for t in lines if t), False)], curve)

    return draw("damage", "Damage along the removal path, with the planned step marked", 2.9, paint)
