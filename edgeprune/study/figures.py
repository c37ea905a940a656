"""The study's figures, drawn as the reports' are: a phone's width, text kept as text, the page's colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeprune.report.svg import ACCENT, INK, MUTED, PAPER, RULE, WHOLE, draw, numbers, row, rows
from edgeprune.report.text import figure
from edgeprune.study.explain import PARTS
from edgeprune.study.record import Curve, Interval, Model, Study

# Told apart by people who confuse red and green, and on a dark ground (Okabe and Ito 2008).
COLOURS = ("#3b8fc4", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#8a949e")
PART_COLOURS = dict(zip(PARTS, ("#56b4e9", "#d55e00", "#009e73", "#e69f00", "#9aa4ae"), strict=True))
PART_NAMES = dict(zip(PARTS, ("weights", "larger types", "blocks", "attention", "unexplained"), strict=True))
WINNERS = {"depth": ACCENT, "width": "#d55e00"}
Figure = tuple[str, str, str]  # name, title, what to see


def drawn(s: Study) -> dict[str, str]:
    """Name -> SVG, of those that there is something to draw for."""
    made = {f"speed-{q}": _speed(s, q) for q in quants(s)}
    made |= {f"time-{c}": _time(s, c) for c in s.contexts} | {"predicted": _predicted(s), "quality": _quality(s)}
    made |= {f"context-{c.device}": _curves(s, "context", c.device) for c in s.curves if c.axis == "context"}
    made |= {axis: _curves(s, axis, None) for axis in ("model", "bandwidth", "threads")}
    return {name: svg for name, svg in made.items() if svg}


def quants(s: Study) -> list[str]:
    return list(dict.fromkeys(m.quant for m in s.models))


def main_quant(s: Study) -> str:
    """The one that is shown where there is room for one."""
    return next((q for q in ("Q4_K_M", "Q4_0") if q in quants(s)), quants(s)[0])


def middle(s: Study) -> float:
    return s.ratios[(len(s.ratios) - 1) // 2] if s.ratios else 0.0


def name(m: Model, quant: bool = False) -> str:
    """Short, for a plot: "width in 32s, 24 heads"."""
    if m.kind == "whole":
        told = "whole model"
    elif m.kind == "depth":
        told = f"depth, {m.n_blocks} blocks"
    else:
        told = {0: "width per layer", 1: "odd width"}.get(m.rounding, f"width in {m.rounding}s")
        told += "" if m.equal == "parameters" else ", equal bytes"
        told += f", {m.heads} heads" if m.rounding else ""
        told += f" ({m.method})" if m.method else ""
    return f"{m.quant} {told}" if quant else told


def _speed(s: Study, quant: str) -> str | None:
    """Ratios of decode speeds, depth over width, with intervals: what was measured side by side, at the middle ratio."""
    known = [p for p in s.pairs if (p.what, p.ratio, p.threads) == ("decode", middle(s), s.threads[-1])]
    mine = [p for p in known if p.quant == quant]
    by_width = {w: [p for p in mine if p.width == w] for w in dict.fromkeys(p.width for p in mine)}
    if not mine:
        return None
    models = {m.variant: m for m in s.models if m.quant == quant}
    every = [x for p in known for x in (p.measured.middle, p.predicted or 1.0, 0.97, 1.03)]
    low = max(0.8 * min(every), min(p.measured.low for p in known))
    high = min(1.25 * max(every), max(p.measured.high for p in known))

    def paint(ax: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        for y, (width, states) in enumerate(by_width.items()):
            for i, p in enumerate(states):
                at = y + 0.22 * i
                colour, m = WINNERS.get(p.winner, MUTED), p.measured
                ax.plot([m.low, m.high], [at, at], color=colour, linewidth=1.6)
                ax.plot(m.middle, at, "o", mfc=PAPER if i else colour, mec=colour, markersize=5.5)
                if p.predicted:
                    ax.plot(p.predicted, at, "|", color=INK, markersize=9, mew=1.3)
            row(ax, y, name(models[width]), ", ".join(f"{p.measured.middle:.2f}" for p in states))
        rows(ax, len(by_width), "speed of depth over width: ▸ depth faster, ◂ width faster", "× as fast", 0)
        for y in range(len(by_width)):
            ax.plot([1, 1], [y - 0.22, y + 0.4], color=INK, linewidth=0.8, zorder=1)
        ax.set_xlim(0.98 * min(low, *every), 1.02 * max(high, *every))
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))

    return draw(f"speed-{quant}", f"{quant}: decode speed of depth over each width", 0.85 + 0.5 * len(by_width), paint)


def _time(s: Study, context: int) -> str | None:
    """Milliseconds of a token by what they go to, stacked; of the main quantisation, at the middle ratio."""
    wanted = {m.variant: m for m in s.models if m.quant == main_quant(s) and m.ratio in (0.0, middle(s))}
    found = {
        c.variant: c for c in s.cells if (c.quant, c.context, c.threads) == (main_quant(s), context, s.threads[-1])
    }
    shown = [(m, found[v]) for v, m in wanted.items() if v in found]
    if not shown:
        return None

    def paint(ax: Any) -> None:
        from matplotlib.patches import Patch

        for y, (m, c) in enumerate(shown):
            left = 0.0
            for part in PARTS:
                value = 1e3 * max(0.0, c.parts[part])
                ax.barh(y, value, left=left, color=PART_COLOURS[part], height=0.4, linewidth=0)
                left += value
            ax.plot([1e3 * c.measured_s] * 2, [y - 0.26, y + 0.26], color=INK, linewidth=1.3)
            row(ax, y, name(m), figure(1e3 * c.measured_s))
        rows(ax, len(shown), "milliseconds per token, fitted; stroke: measured", "measured", 0)
        ax.set_xlim(0, 1.04e3 * max(max(c.measured_s, sum(map(abs, c.parts.values()))) for _, c in shown))
        handles = [Patch(color=PART_COLOURS[k], linewidth=0) for k in PARTS]
        _legend(ax, handles, list(PART_NAMES.values()), 1.4 + 0.44 * len(shown))

    title = f"{main_quant(s)}: milliseconds of a token after {context:,}, by what they go to"
    return draw(f"time-{context}", title, 1.2 + 0.44 * len(shown), paint)


def _predicted(s: Study) -> str | None:
    """Every token's time, foretold by a fit that had not seen the model, against what was measured."""
    if not s.cells:
        return None
    kinds = {(m.variant, m.quant): m.kind for m in s.models}
    groups = {"whole": ("whole model", "o", WHOLE), "depth": ("fewer blocks", "s", ACCENT)}
    groups |= {"width": ("thinner blocks", "^", COLOURS[1])}
    every = [1e3 * x for c in s.cells for x in (c.measured_s, c.predicted_s)]
    ends = [0.9 * min(every), 1.1 * max(every)]

    def paint(ax: Any) -> None:
        ax.plot(ends, ends, color=MUTED, linewidth=0.8)
        for kind, (label, mark, colour) in groups.items():
            mine = [c for c in s.cells if kinds[c.variant, c.quant] == kind]
            xy = [1e3 * c.measured_s for c in mine], [1e3 * c.predicted_s for c in mine]
            ax.plot(*xy, mark, color=colour, markersize=4.5, label=label, linestyle="")
        log = ends[1] > 4 * ends[0]
        if log:
            ax.set_xscale("log")
            ax.set_yscale("log")
        _axes(ax, "milliseconds per token, measured", "milliseconds per token, predicted")
        numbers(ax.xaxis, log)
        numbers(ax.yaxis, log)
        ax.set_xlim(*ends)
        ax.set_ylim(*ends)
        ax.legend(frameon=False, loc="upper left", handletextpad=0.2)

    return draw("predicted", "A token's time predicted against measured", 3.0, paint)


AXES = {
    "context": "tokens in the context",
    "model": "parameters, billions",
    "bandwidth": "memory this much faster than here",
    "threads": "threads",
}


def _curves(s: Study, axis: str, device: str | None) -> str | None:
    """Depth's advantage along an axis; a line for each width, of the model's size for each device."""
    mine = [c for c in s.curves if c.axis == axis and device in (None, c.device)]
    if not mine:
        return None
    by_name = {(c.device if axis == "model" else c.width): c for c in mine}
    unit = 1e9 if axis == "model" else 1

    def paint(ax: Any) -> None:
        for (label, c), colour in zip(by_name.items(), _cycle(by_name), strict=True):
            x = [v / unit for v in c.x]
            ax.plot(x, [y.middle for y in c.y], "o-", markersize=3, linewidth=1.2, color=colour, label=_short(label))
            ax.fill_between(x, [y.low for y in c.y], [y.high for y in c.y], color=colour, alpha=0.15, linewidth=0)
        ax.axhline(1, color=INK, linewidth=0.8)
        _axes(ax, AXES[axis], "depth's speed over width's: above 1 depth is faster")
        _ticks(ax, axis, next(iter(by_name.values())))
        numbers(ax.yaxis, False)
        ax.set_ylim(*_reach([y for c in mine for y in c.y]))
        _legend(ax, *ax.get_legend_handles_labels(), 2.6, ncols=1)

    key, at = (f"context-{device}", f" on {device}") if device else (axis, "")
    return draw(key, f"Depth over width along {AXES[axis]}{at}", 2.9 + 0.16 * len(by_name), paint)


def _ticks(ax: Any, axis: str, c: Curve) -> None:
    known = list(c.x)
    if axis == "context":
        ax.set_xscale("symlog", linthresh=512)
        known = [x for x in known if x in (0, 512) or x >= 2048]
        labels = ["0" if not x else f"{x / 1024:g}k" for x in known]
    else:
        if axis != "threads":
            ax.set_xscale("log")
        known = [x / 1e9 for x in known] if axis == "model" else known
        known = [x for i, x in enumerate(known) if not i or axis != "model" or x > 1.35 * known[i - 1]]
        labels = [f"{x:.2g}" if axis == "model" else f"{x:g}×" if axis == "bandwidth" else f"{x:g}" for x in known]
    ax.set_xticks(known, labels)
    ax.minorticks_off()


def _quality(s: Study) -> str | None:
    """Damage against speed, a line for each way of removing and quantisation."""
    least = min(s.contexts)
    speed = {
        (c.variant, c.quant): 1 / c.measured_s for c in s.cells if c.context == least and c.threads == s.threads[-1]
    }
    known = [q for q in s.qualities if q.kl and q.quant and (q.variant, q.quant) in speed]
    if not known:
        return None
    models = {(m.variant, m.quant): m for m in s.models}

    def kind(q: Any) -> tuple[str, str, bool]:
        m = models[q.variant, q.quant]
        how = {"whole": "whole model", "depth": "depth"}.get(m.kind) or name(m).split(",")[0].split(" (")[0]
        return q.quant, how, q.healed

    def paint(ax: Any) -> None:
        kinds = sorted({kind(q) for q in known}, key=lambda k: (k[0], k[1] != "whole model", *k[1:]))
        hows = list(dict.fromkeys(how for _, how, _ in kinds))
        for quant, how, healed in kinds:
            mine = sorted((speed[q.variant, q.quant], q.kl) for q in known if kind(q) == (quant, how, healed))
            first = quant == kinds[0][0]
            colour = COLOURS[hows.index(how) % len(COLOURS)]
            face = {"mfc": colour if first else PAPER, "mec": colour, "color": colour, "marker": "^" if healed else "o"}
            ax.plot(*zip(*mine, strict=True), "-" if first else "--", markersize=4.5, linewidth=1.1, **face)
        ax.set_yscale("log")
        _axes(ax, "decode, tokens/s: more is better", "KL from the whole model, nats/token: lower is better")
        numbers(ax.xaxis, False)
        numbers(ax.yaxis, True)
        handles = [ax.plot([], [], "o", color=COLOURS[i % len(COLOURS)], markersize=5)[0] for i in range(len(hows))]
        names = list(dict.fromkeys(q for q, *_ in kinds))
        for i in range(len(names[:2])):
            handles += ax.plot([], [], "o--" if i else "o-", mfc=PAPER if i else MUTED, color=MUTED, markersize=4.5)
        told = names[:1] + [", ".join(names[1:])] if len(names) > 1 else names
        if any(healed for *_, healed in kinds):
            handles += ax.plot([], [], "^", color=MUTED, markersize=4.5)
            told = [*told, "healed"]
        _legend(ax, handles, [*hows, *told], 3.0, ncols=2)

    return draw("quality", "Damage against decode speed", 3.6, paint)


def _axes(ax: Any, xlabel: str, title: str) -> None:
    ax.grid(color=RULE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set_xlabel(xlabel)
    ax.set_title(title, loc="left", fontsize=8.6, color=MUTED)


def _legend(ax: Any, handles: list[Any], labels: list[str], height: float, ncols: int = 3) -> None:
    ax.legend(
        handles, labels, ncols=ncols, loc="upper center", bbox_to_anchor=(0.48, -0.42 / height), frameon=False,
        handlelength=1.0, handletextpad=0.4, columnspacing=0.9, fontsize=8,
    )  # fmt: skip


def _reach(ys: Sequence[Interval]) -> tuple[float, float]:
    """What an axis shows: all middles, and of wide intervals as much again."""
    low, high = min(1.0, *(y.middle for y in ys)), max(1.0, *(y.middle for y in ys))
    room = max(0.05, 0.6 * (high - low))
    return max(0.0, low - room, 0.98 * min(y.low for y in ys)), min(high + room, 1.02 * max(y.high for y in ys))


def _cycle(of: Sequence[Any] | dict) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(of))]


def _short(label: str) -> str:
    """Labels without what a legend has no room for."""
    return label.replace(", as published", "").replace(", equal ", " = ")
