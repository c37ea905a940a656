"""Plots of curves: damage along the removal path, decode speed along the context."""

from __future__ import annotations

from statistics import median
from typing import Any

from edgeprune.blocks import removed_sublayers
from edgeprune.report import facts
from edgeprune.report.facts import Row
from edgeprune.report.plot_rows import colour
from edgeprune.report.record import Report
from edgeprune.report.svg import ACCENT, MUTED, PAPER, RULE, WHOLE, draw, numbers, place
from edgeprune.report.text import figure, short


def damage(report: Report) -> str | None:
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
    name = "KL from the whole model, nats/token: lower is better" if by_kl else "perplexity: lower is better"

    def paint(ax: Any) -> None:
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        ax.plot(xs, ys, "-", color=MUTED, linewidth=1)
        ax.plot(xs, ys, "o", color=WHOLE, markersize=3.6)
        ax.set_xlim(-0.02 * max(xs) - 0.1, max(xs) * 1.04)
        ax.set_ylim(0 if by_kl else min(ys) * 0.9, max(ys) * 1.08)
        _axes(ax, "removed, in layers (a half counts 0.5)", name)
        if chosen:
            px, py, step = chosen
            corner = [px, px, ax.get_xlim()[0]], [ax.get_ylim()[0], py, py]
            ax.plot(*corner, color=ACCENT, linewidth=0.8, linestyle=(0, (2, 2)))
            ax.plot(px, py, "o", color=ACCENT, markersize=7.5, zorder=3)
            told = [f"this plan: {px:g} of {scores.n_blocks} layers"]
            told += [f"KL {figure(step.kl)}"] if step.kl is not None else []
            told += [f"perplexity {figure(step.perplexity)}"] if step.perplexity is not None else []
            blank = {"facecolor": PAPER, "linewidth": 0, "pad": 2}
            ax.text(
                0.04, 0.96, "\n".join(told), transform=ax.transAxes, va="top", bbox=blank
            )  # a rising curve leaves it free

    return draw("damage", "Damage along the removal path, with the planned step marked", 2.7, paint)


def contexts(table: list[Row]) -> str | None:
    """Median decode speed by tokens in the cache, with the range of the repetitions."""
    shown = [r for r in table if len(r.depths) > 1 and all(facts.decode_rates(m) for m in r.depths)]
    if not shown:
        return None

    def paint(ax: Any) -> None:
        ends, curves = [], []
        for r in shown:
            points = [(m.workload.n_depth, median(facts.decode_rates(m))) for m in r.depths]
            ax.plot(*zip(*points, strict=True), "o-", color=colour(r), markersize=5, linewidth=2 if r.planned else 1.1)
            for m in r.depths:
                rates = facts.decode_rates(m)
                ax.plot([m.workload.n_depth] * 2, [min(rates), max(rates)], color=colour(r), linewidth=0.9, alpha=0.7)
            state = " whole" if r.baseline else ", this plan" if r.planned else ""
            run = f"{r.run} " if r.run else ""
            ends.append((*points[-1], f"{run}{short(r.artifact.quant, 14)}{state}", r.planned))
            curves += list(zip(points, points[1:], strict=False))
        last = max(x for x, *_ in ends)
        ax.set_xlim(-0.04 * last, 1.04 * last)
        ax.set_ylim(0, 1.12 * max(max(facts.decode_rates(m)) for r in shown for m in r.depths))
        _axes(ax, "tokens in the cache", "decode, tokens/s: higher is better")
        place(ax, ends, curves)

    return draw("contexts", "Decode speed by tokens in the cache", 2.7, paint)


def _axes(ax: Any, xlabel: str, name: str) -> None:
    ax.grid(color=RULE, linewidth=0.6)
    ax.set_axisbelow(True)
    numbers(ax.xaxis, False, whole=True)
    numbers(ax.yaxis, False)
    ax.set_xlabel(xlabel)
    ax.set_title(name, loc="left", fontsize=8.6, color=MUTED)
