"""The study's figures as SVG that stands alone: text kept as text, fixed colours, nothing fetched."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from edgeprune.study.explain import PARTS
from edgeprune.study.record import Curve, Study

INK, MUTED, RULE = "#1c2127", "#5c6670", "#dde1e5"
# Readable for people who confuse red and green (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
PART_COLOURS = {
    "bytes": "#56b4e9",
    "fallback": "#d55e00",
    "blocks": "#009e73",
    "attention": "#e69f00",
    "unexplained": "#b8bfc6",
}
PART_NAMES = {
    "bytes": "reading weights", "fallback": "larger types that odd widths force", "blocks": "fixed cost of each block",
    "attention": "attention and its cache", "unexplained": "not explained by these",
}  # fmt: skip
AXES = {
    "context": "tokens already in the context",
    "model": "parameters of the model, billions",
    "bandwidth": "memory this much faster than here",
}
WIDTH = 7.2  # inches


def all_figures(s: Study) -> dict[str, str]:
    """File name -> SVG, of those that there is something to draw for."""
    found = {
        "speed.svg": _speed(s), "time.svg": _time(s), "predicted.svg": _predicted(s),
        **{f"{axis}.svg": _curve(s, axis) for axis in AXES}, "quality.svg": _quality(s),
    }  # fmt: skip
    return {name: svg for name, svg in found.items() if svg}


def _draw(height: float, paint: Callable[[Any], None], panels: int = 1) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none", "svg.hashsalt": "edgeprune", "text.parse_math": False, "font.size": 9.5,
        "font.family": "sans-serif", "axes.edgecolor": RULE, "axes.labelcolor": MUTED, "axes.spines.top": False,
        "axes.spines.right": False, "text.color": INK, "xtick.color": MUTED, "ytick.color": INK, "axes.titlesize": 10,
        "axes.titlelocation": "left", "axes.titleweight": "bold", "xtick.major.size": 0, "ytick.major.size": 0,
        "xtick.minor.size": 0, "legend.frameon": False, "axes.axisbelow": True,
    }  # fmt: skip
    with rc_context(style):
        fig = Figure(figsize=(WIDTH, height), layout="constrained")
        paint(fig.subplots(panels, 1, squeeze=False)[:, 0] if panels > 1 else fig.subplots())
        buffer = io.StringIO()
        fig.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    return svg.replace("<svg ", '<svg role="img" ', 1)


def _speed(s: Study) -> str | None:
    """Ratios of speeds, depth over width, with intervals: what was measured side by side."""
    context, ratio = s.contexts[0], _middle(s)
    rows = [p for p in s.pairs if p.what == "decode" and p.context == context and p.ratio == ratio]
    rows = [p for p in rows if p.threads == s.threads[-1]]
    if not rows:
        return None
    labels = {(m.variant, m.quant): m.label for m in s.models}

    def paint(ax: Any) -> None:
        names = []
        for y, p in enumerate(reversed(rows)):
            colour = {"depth": COLOURS[0], "width": COLOURS[1]}.get(p.winner, MUTED)
            m = p.measured
            ax.plot([m.low, m.high], [y, y], color=colour, lw=2)
            ax.plot([m.middle], [y], "o", color=colour, ms=6)
            if p.predicted:
                ax.plot([p.predicted], [y], "|", color=INK, ms=11, mew=1.5)
            names.append(f"{p.quant}   {_short(labels[p.width, p.quant])}")
        ax.axvline(1, color=INK, lw=0.8)
        ax.set_yticks(range(len(rows)), names)
        ax.grid(axis="x", color=RULE, lw=0.6)
        every = [x for p in rows for x in (p.measured.middle, p.predicted or 1.0, 0.97, 1.03)]
        ax.set_xlim(0.97 * min(every), 1.06 * max(every))
        ax.figure.supxlabel(
            f"speed of depth over width, decoding after {context} tokens: ◂ width faster, 1 equal, depth faster ▸\n"
            "● measured, with 95 %        | foretold without having seen either model",
            color=MUTED, fontsize=9.5,
        )  # fmt: skip

    return _draw(0.9 + 0.3 * len(rows), paint)


def _time(s: Study) -> str | None:
    """Milliseconds of a token by what they go to, stacked, one panel per context."""
    models = sorted(s.models, key=lambda m: list(dict.fromkeys(m.quant for m in s.models)).index(m.quant))
    wanted = {(m.variant, m.quant): m for m in models if m.ratio in (0.0, _middle(s))}
    panels = []
    for context in s.contexts:
        rows = [
            c for c in s.cells if c.context == context and c.threads == s.threads[-1] and (c.variant, c.quant) in wanted
        ]
        if rows:
            panels.append((context, sorted(rows, key=lambda c: list(wanted).index((c.variant, c.quant)))))

    if not panels:
        return None

    def paint(axes: Any) -> None:
        for ax, (context, rows) in zip(axes if len(panels) > 1 else [axes], panels, strict=True):
            for y, c in enumerate(reversed(rows)):
                left = 0.0
                for part in PARTS:
                    value = 1e3 * c.parts[part]
                    if value > 0:
                        ax.barh(y, value, left=left, color=PART_COLOURS[part], height=0.7)
                        left += value
                ax.plot([1e3 * c.measured_s], [y], "k|", ms=11, mew=1.5)
            names = [f"{c.quant}   {_short(wanted[c.variant, c.quant].label)}" for c in reversed(rows)]
            ax.set_yticks(range(len(rows)), names)
            ax.set_title(f"{context} tokens in context")
            ax.set_xlabel("milliseconds per token (| measured)")
            ax.grid(axis="x", color=RULE, lw=0.6)
            if ax is (axes[0] if len(panels) > 1 else axes):
                from matplotlib.patches import Patch

                handles = [Patch(color=PART_COLOURS[k], label=PART_NAMES[k]) for k in PARTS]
                ax.figure.legend(handles=handles, loc="outside upper center", ncols=3)

    return _draw(0.9 + sum(0.7 + 0.27 * len(rows) for _, rows in panels), paint, len(panels))


def _predicted(s: Study) -> str | None:
    """Every token's time, foretold by a fit that had not seen the model, against what was measured."""
    if not s.cells:
        return None
    kinds = {(m.variant, m.quant): m for m in s.models}
    groups = {"whole": ("whole model", "o"), "depth": ("fewer blocks", "s"), "width": ("thinner blocks", "^")}

    def paint(ax: Any) -> None:
        for i, (kind, (name, mark)) in enumerate(groups.items()):
            mine = [c for c in s.cells if kinds[c.variant, c.quant].kind == kind]
            xy = [1e3 * c.measured_s for c in mine], [1e3 * c.predicted_s for c in mine]
            ax.plot(*xy, mark, color=COLOURS[i], ms=5, label=name, ls="")
        every = [1e3 * x for c in s.cells for x in (c.measured_s, c.predicted_s)]
        ends = [0.95 * min(every), 1.05 * max(every)]
        ax.plot(ends, ends, color=MUTED, lw=0.8)
        ax.set_xlabel("milliseconds per token, measured")
        ax.set_ylabel("foretold, the model left out of the fit")
        ax.legend()

    return _draw(3.6, paint)


def _curve(s: Study, axis: str) -> str | None:
    mine = [c for c in s.curves if c.axis == axis]
    if not mine:
        return None
    names = [c.device if axis == "model" else c.width for c in mine]
    panels = [""] if axis == "model" else list(dict.fromkeys(c.device for c in mine))

    def one(ax: Any, curves: list[Curve], title: str) -> None:
        for c, name in curves:
            colour = COLOURS[list(dict.fromkeys(names)).index(name) % len(COLOURS)]
            x = [v / 1e9 for v in c.x] if axis == "model" else list(c.x)
            ax.plot(x, [y.middle for y in c.y], "-o", ms=3, color=colour, label=_short(name))
            ax.fill_between(x, [y.low for y in c.y], [y.high for y in c.y], color=colour, alpha=0.13, lw=0)
        ax.axhline(1, color=INK, lw=0.8)
        ax.set_title(title)
        ax.set_xscale(
            {"context": "symlog", "model": "log", "bandwidth": "log"}[axis],
            **({"linthresh": 512} if axis == "context" else {}),
        )
        ticks = [t for t in curves[0][0].x if t]
        ticks = [t / 1e9 for t in ticks] if axis == "model" else ticks
        shown = [f"{t:.2g}" if axis == "model" else f"{t:g}×" if axis == "bandwidth" else _thousands(t) for t in ticks]
        ax.set_xticks([0, *ticks] if axis == "context" else ticks, ["0", *shown] if axis == "context" else shown)
        ax.minorticks_off()
        ax.grid(color=RULE, lw=0.6)
        ax.set_ylabel("depth over width")

    def paint(axes: Any) -> None:
        every = axes if len(panels) > 1 else [axes]
        for ax, device in zip(every, panels, strict=True):
            one(ax, [(c, n) for c, n in zip(mine, names, strict=True) if device in ("", c.device)], device)
        every[-1].set_xlabel(AXES[axis] + "   (foretold; band: 90 %)")
        handles, labels = every[0].get_legend_handles_labels()
        every[0].figure.legend(handles, labels, loc="outside upper center", ncols=2)

    return _draw(1.0 + 2.0 * len(panels) if len(panels) > 1 else 3.4, paint, len(panels))


def _quality(s: Study) -> str | None:
    """Damage against speed: what a user gives for what."""
    speed: dict[tuple[str, str], float] = {}
    for c in s.cells:
        if c.context == s.contexts[0]:
            speed.setdefault((c.variant, c.quant), 1 / c.measured_s)
    points = [(q, speed[q.variant, q.quant]) for q in s.qualities if q.kl and q.quant and (q.variant, q.quant) in speed]
    if not points:
        return None

    def paint(ax: Any) -> None:
        for i, method in enumerate(dict.fromkeys(q.method for q, _ in points)):
            mine = sorted((q.kl, v) for q, v in points if q.method == method)
            ax.plot(*zip(*mine, strict=True), "-o", ms=5, color=COLOURS[i % len(COLOURS)], label=method)
        ax.set_xscale("log")
        ax.set_xlabel("KL from the whole model, nats per token (left is better)")
        ax.set_ylabel("tokens per second")
        ax.grid(color=RULE, lw=0.6)
        ax.legend()

    return _draw(3.6, paint)


def _middle(s: Study) -> float:
    return s.ratios[(len(s.ratios) - 1) // 2] if s.ratios else 0.0


def _short(label: str) -> str:
    """Labels without what the axis has no room for."""
    return label.replace(", as published", "").replace(", equal ", " = ")


def _thousands(n: float) -> str:
    return f"{n / 1024:g}k" if n >= 1024 else f"{n:g}"
