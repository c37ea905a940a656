"""Plots of damage against a cost or a gain: measured files, and what the planner foretold."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

from edgeprune.report import facts
from edgeprune.report.facts import Row
from edgeprune.report.plot_rows import colour
from edgeprune.report.svg import ACCENT, INK, MUTED, PAPER, RULE, draw, numbers, place
from edgeprune.report.text import figure, runtime_name, short
from edgeprune.types import Alternative, Plan

MARKERS = "osD^v"  # a runtime's shape
TOUCHING = 0.04  # of the plot's width or height
LOG = 3  # a damage axis that spans more than this many times is logarithmic


class Point(NamedTuple):
    x: float
    x_span: tuple[float, float]
    y: float
    y_span: tuple[float, float]
    run: str  # its letter, where several are shown
    text: str
    runtime: str
    colour: str
    chosen: bool
    measured: bool = True


def pareto(
    name: str, table: list[Row], xlabel: str, x: Callable[[Row], list[float]], *, limit: float | None = None, more_is_better: bool = False
) -> str | None:  # fmt: skip
    """KL, or perplexity where KL is unknown, against x: the median of its samples. An arrow leads from each whole model to
    its pruned form; a dashed line joins the files that no other beats in both."""
    shown = [r for r in table if r.quality and x(r)]
    if len(shown) < 2:
        return None
    by_kl = all(r.quality.kl is not None for r in shown)
    points = [_point(r, x(r), by_kl) for r in shown]
    arrows = [
        (points[shown.index(base)], p)
        for r, p in zip(shown, points, strict=True)
        if (base := facts.baseline_of(r, table)) in shown
    ]
    ylabel = "KL from the whole model, nats/token: lower is better" if by_kl else "perplexity: lower is better"
    return _scatter(name, points, arrows, xlabel, ylabel, limit, more_is_better)


def _point(r: Row, samples: list[float], by_kl: bool) -> Point:
    y = r.quality.kl if by_kl else r.quality.perplexity
    state = " whole" if r.baseline else ""
    return Point(
        x=median(samples), x_span=(min(samples), max(samples)), y=y,
        y_span=(facts.kl_interval(r.quality) if by_kl else None) or (y, y),
        run=r.run, text=f"{short(r.artifact.quant, 14)}{state}", runtime=r.runtime, colour=colour(r),
        chosen=r.planned,
    )  # fmt: skip


def front(plan: Plan) -> str | None:
    """The planner's front: expected damage against predicted decode speed with its interval."""
    known = [a for a in plan.front if _expected(a) is not None and a.prediction.decode_tok_per_s]
    if len(known) < 2:
        return None
    points = []
    for a in known:
        p = a.prediction
        chosen = (a.runtime, a.quant, a.kv_type, a.n_blocks) == (
            plan.runtime,
            plan.quant,
            plan.kv_type,
            len(plan.blocks),
        )
        text = f"{short(a.quant, 14)}, {a.n_blocks} blocks" if a.n_blocks < plan.n_blocks_whole else short(a.quant, 14)
        span = p.decode_low_tok_per_s or p.decode_tok_per_s, p.decode_high_tok_per_s or p.decode_tok_per_s
        y = _expected(a)
        points.append(Point(p.decode_tok_per_s, span, y, (y, y), "", text, a.runtime, ACCENT, chosen, measured=False))
    ylabel = "expected KL from the whole model, nats/token: lower is better"
    asked = plan.budget.min_decode_tok_per_s
    return _scatter("front", points, [], "predicted decode, tokens/s", ylabel, asked, True)


def _expected(a: Alternative) -> float | None:
    parts = (a.damage_kl, a.quant_kl, a.kv_kl)
    return None if None in parts else sum(parts)


def _scatter(
    name: str, points: list[Point], arrows: list[tuple[Point, Point]], xlabel: str, ylabel: str, limit: float | None, more: bool
) -> str:  # fmt: skip
    ys = [p.y for p in points if p.y > 0]
    log = len(ys) == len(points) and max(ys) > LOG * min(ys)
    kinds = sorted({p.runtime for p in points})

    def paint(ax: Any) -> None:
        _limits(ax, points, limit, log)
        for start, end in arrows:
            style = {"arrowstyle": "->", "color": MUTED, "linewidth": 0.8, "shrinkA": 5, "shrinkB": 7}
            ax.annotate("", (end.x, end.y), (start.x, start.y), arrowprops=style)
        best = [points[i] for i in facts.front([(p.x, p.y) for p in points], more)]
        ax.plot([p.x for p in best], [p.y for p in best], color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
        for p in points:
            bar = {"color": p.colour, "linewidth": 0.9, "alpha": 0.7, "zorder": 2}
            ax.plot(p.x_span, (p.y, p.y), **bar)
            ax.plot((p.x, p.x), (max(p.y_span[0], ax.get_ylim()[0]), p.y_span[1]), **bar)
            mark = MARKERS[kinds.index(p.runtime) % len(MARKERS)]
            face = {"color": p.colour} if p.measured else {"mfc": PAPER, "mec": p.colour}
            ax.plot(p.x, p.y, mark, markersize=6, zorder=3, **face)
            if p.chosen:
                ax.plot(p.x, p.y, "o", mfc="none", mec=INK, mew=1.2, markersize=11.5, zorder=4)
        ax.grid(color=RULE, linewidth=0.6)
        ax.set_axisbelow(True)
        numbers(ax.xaxis, False)
        numbers(ax.yaxis, log)
        ax.set_xlabel(xlabel)
        ax.set_title(ylabel, loc="left", fontsize=8.6, color=MUTED)
        taken = []
        if limit is not None and ax.get_xlim()[0] < limit < ax.get_xlim()[1]:
            ax.axvline(limit, color=INK, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
            left = limit > sum(ax.get_xlim()) / 2
            ax.annotate(
                f"{'asked' if more else 'limit'} {figure(limit)}", (limit, 1), (-4 if left else 4, -3),
                xycoords=ax.get_xaxis_transform(), textcoords="offset points", ha="right" if left else "left", va="top",
            )  # fmt: skip
            at, end = ax.transAxes.inverted().transform(ax.transData.transform((limit, 1)))[0], -0.3 if left else 0.3
            ends = ax.transData.inverted().transform(ax.transAxes.transform([(at, 0.95), (at + end, 0.95)]))
            taken.append(tuple(map(tuple, ends)))  # where that is written
        labels = _labels(ax, points)
        bars = [((p.x, p.y_span[0]), (p.x, p.y_span[1])) for p in points]
        bars += [((p.x_span[0], p.y), (p.x_span[1], p.y)) for p in points]
        place(ax, labels, [((a.x, a.y), (b.x, b.y)) for a, b in arrows] + bars + taken)
        handles = [ax.plot([], [], MARKERS[i % len(MARKERS)], color=MUTED, markersize=5)[0] for i in range(len(kinds))]
        handles += ax.plot([], [], "o", mfc="none", mec=INK, mew=1.2, markersize=8)
        ax.legend(
            handles, [*(short(runtime_name(k), 16) for k in kinds), "the plan"],
            ncols=4, loc="upper center", bbox_to_anchor=(0.45, -0.17), frameon=False, handletextpad=0.2, columnspacing=1.1,
        )  # fmt: skip

    return draw(name, f"{ylabel.split(':')[0]} against {xlabel}", 3.0, paint)


def _labels(ax: Any, points: list[Point]) -> list[tuple[float, float, str, bool]]:
    """One label for points of several runs that fall on each other."""
    spots = ax.transAxes.inverted().transform(ax.transData.transform([(p.x, p.y) for p in points]))
    groups: list[list[int]] = []
    for i, p in enumerate(points):
        near = (g for g in groups if points[g[0]].text == p.text and abs(spots[g[0]] - spots[i]).max() < TOUCHING)
        group = next(near, None)
        groups.append([i]) if group is None else group.append(i)
    out = []
    for group in groups:
        p, runs = points[group[0]], " ".join(points[i].run for i in group).strip()
        out.append((p.x, p.y, f"{runs} {p.text}".strip(), p.chosen))
    return out


def _limits(ax: Any, points: list[Point], limit: float | None, log: bool) -> None:
    """Room for every interval, and for the limit where it is near."""
    xs = [x for p in points for x in p.x_span]
    if limit is not None and min(xs) / 1.5 < limit < 1.5 * max(xs):
        xs.append(limit)
    ys = [y for p in points for y in (p.y, *p.y_span)]
    if log:
        ax.set_yscale("log")
        floor = min(p.y for p in points) / 2
        ys = [max(y, floor) for y in ys]
    pad = 0.16 * (max(xs) - min(xs) or max(xs))
    ax.set_xlim(max(0, min(xs) - pad), max(xs) + pad)
    reach = (max(ys) / min(ys)) ** 0.12 if log else 0.15 * (max(ys) - min(ys) or 1)
    ax.set_ylim(*((min(ys) / reach, max(ys) * reach) if log else (max(0, min(ys) - reach), max(ys) + reach)))
