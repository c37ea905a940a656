"""Plots with a line per file: memory, and speed. Labels stand above the marks, so that the data have the whole width."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from edgeprune.report import facts
from edgeprune.report.budget import missing_cache_bytes
from edgeprune.report.facts import Row
from edgeprune.report.svg import ACCENT, INK, MUTED, PAPER, WHOLE, draw, row, rows
from edgeprune.report.text import figure, runtime_name, short
from edgeprune.types import Measurement
from edgeprune.units import show_bytes

PARTS = {"weights": 0.5, "KV cache": 0.3, "compute": 0.16, "runtime": 0.08}  # and how dark each is


def colour(row: Row) -> str:
    return WHOLE if row.baseline else ACCENT


def label(row: Row) -> str:
    """ "Q8_0 llama.cpp, whole"."""
    state = ", whole" if row.baseline else ", this plan" if row.planned else ""
    run = f"{row.run}  " if row.run else ""
    return f"{run}{short(row.artifact.quant, 14)} {short(runtime_name(row.runtime), 14)}{state}"


def memory(table: list[Row], limit_bytes: int | None) -> str | None:
    """Predicted parts end to end, measured process memory as a dot, the limit as a line."""
    shown = [r for r in table if r.prediction or r.process]
    if not shown:
        return None
    tops = [r.prediction.memory_bytes for r in shown if r.prediction]
    tops += [r.process.memory_bytes + missing_cache_bytes(r) for r in shown if r.process]
    unit, name = (1e9, "GB") if max(tops) >= 2e9 else (1e6, "MB")
    near = limit_bytes is not None and limit_bytes <= 1.6 * max(tops)
    end = 1.06 * max(*tops, limit_bytes if near else 0, 1) / unit

    def paint(ax: Any) -> None:
        for y, r in enumerate(shown):
            p, left = r.prediction, 0.0
            sizes = (p.weights_bytes, p.kv_bytes, p.compute_bytes, p.runtime_bytes) if p else ()
            for n, dark in zip(sizes, PARTS.values(), strict=False):
                ax.barh(y, n / unit, left=left, height=0.4, color=colour(r), alpha=dark, linewidth=0)
                left += n / unit
            ax.barh(y, left, height=0.4, fill=False, edgecolor=colour(r), linewidth=0.8)
            if r.process:
                used = r.process.memory_bytes / unit
                ax.plot([used, used + missing_cache_bytes(r) / unit], [y, y], "-", color=INK, linewidth=1, zorder=2.5)
                ax.plot(used, y, "o", color=INK, markersize=5.5, zorder=3)
            told = figure(r.process.memory_bytes / unit) if r.process else "not measured"
            _line(ax, y, r, told)
        rows(ax, len(shown), f"memory of the process, {name}", "measured")
        ax.set_xlim(0, end)
        _legend(ax, _height(shown))
        if near:
            _limit(ax, limit_bytes / unit, f"limit {figure(limit_bytes / unit)}", len(shown), end)
        elif limit_bytes is not None:
            ax.text(0, -1.58, f"limit {show_bytes(limit_bytes)}, off the scale", ha="left", va="center")

    title = "Memory of each file's process, predicted and measured, against the limit"
    return draw("memory", title, _height(shown) + 0.3, paint)


def speed(
    table: list[Row], xlabel: str, rates: Callable[[Measurement], list[float]], asked: float | None, foretold: bool
) -> str | None:
    """Every repetition as a dot, the median as a bar; predictions as hollow marks with their interval."""
    shown = [r for r in table if r.measurement and rates(r.measurement)]
    if not shown:
        return None
    gained = any(facts.baseline_of(r, table) for r in shown)

    def paint(ax: Any) -> None:
        top = asked or 0.0
        for y, r in enumerate(shown):
            found = rates(r.measurement)
            ax.plot(found, [y] * len(found), "o", color=colour(r), markersize=4.4, alpha=0.55, mew=0, zorder=3)
            ax.plot(
                [median(found)] * 2, [y - 0.2, y + 0.2], color=colour(r), linewidth=2.4, solid_capstyle="butt", zorder=4
            )
            top = max(top, *found, *(_foretold(ax, y, r) if foretold else ()))
            base = facts.baseline_of(r, table)
            gains = facts.gain(rates, r.measurement, base.measurement if base else None)
            _line(ax, y, r, figure(median(found)) + (f"  {median(gains):.2f}×" if gains else ""))
        rows(ax, len(shown), xlabel, "median  × the whole model's" if gained else "median")
        ax.set_xlim(0, top * 1.04)
        if asked:
            _limit(ax, asked, f"asked {figure(asked)}", len(shown), top)

    return draw(xlabel.split(",")[0], f"{xlabel}: every repetition, and the median", _height(shown), paint)


def _foretold(ax: Any, y: float, r: Row) -> list[float]:
    """Draws the prediction, where the machine is the planned one; what it reaches to."""
    p = r.prediction
    if p is None or p.decode_tok_per_s is None or not facts.speed_counts(r.measurement, r.plan):
        return []
    span = [p.decode_low_tok_per_s or p.decode_tok_per_s, p.decode_high_tok_per_s or p.decode_tok_per_s]
    mark = "^" if p.basis.startswith("prior") else "o"
    ax.plot(span, [y + 0.26] * 2, color=MUTED, linewidth=0.9, zorder=2)
    ax.plot(p.decode_tok_per_s, y + 0.26, mark, mfc=PAPER, mec=INK, mew=0.9, markersize=4.8, zorder=2.5)
    return span


def _height(shown: list[Row]) -> float:
    return 1.15 + 0.44 * len(shown)


def _line(ax: Any, y: float, r: Row, told: str) -> None:
    row(ax, y, label(r), told, strong=r.planned)


def _limit(ax: Any, x: float, text: str, n: int, end: float) -> None:
    """A dashed line through the marks, not through their names; named at its top, on the side where there is room."""
    for y in range(n):
        ax.plot([x, x], [y - 0.22, y + 0.33], color=INK, linewidth=1.2, linestyle=(0, (3, 1.5)), zorder=5)
    ax.plot([x, x], [-1.75, -1.4], color=INK, linewidth=1.2, linestyle=(0, (3, 1.5)))
    left = x > 0.35 * end
    place = {"textcoords": "offset points", "ha": "right" if left else "left", "va": "center"}
    ax.annotate(text, (x, -1.58), (-4 if left else 4, 0), **place)


def _legend(ax: Any, height: float) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=MUTED, edgecolor=MUTED, alpha=dark, linewidth=0.8) for dark in PARTS.values()]
    handles += ax.plot([], [], "o", color=INK, markersize=5.5)
    ax.legend(
        handles, [*PARTS, "measured"], ncols=5, loc="upper center", bbox_to_anchor=(0.48, -0.4 / height), frameon=False,
        handlelength=0.9, handletextpad=0.35, columnspacing=0.9, fontsize=7.8,
    )  # fmt: skip
