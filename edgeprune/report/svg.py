"""A matplotlib axes as clean SVG: the parts of a plot that know nothing of reports.

Text is kept as text: it can be searched, read aloud and takes the page's font. Layout is computed with
DejaVu Sans, wider than what pages use, so labels that do not touch here do not touch there.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

# Stand-ins that matplotlib carries through; replaced by CSS variables afterwards.
INK, MUTED, RULE, ACCENT, WHOLE, PAPER = "#010203", "#020304", "#030405", "#040506", "#050607", "#060708"
_CSS = {INK: "ink", MUTED: "muted", RULE: "rule", ACCENT: "accent", WHOLE: "whole", PAPER: "paper"}
_LIGHT = {
    "paper": "#fff",
    "ink": "#1c2127",
    "muted": "#5c6670",
    "rule": "#dde1e5",
    "accent": "#1d5fa6",
    "whole": "#8a949e",
}
WIDTH = 3.72  # inches of 96 CSS pixels: a phone's width less its margins, so that text keeps its size there
LARGEST = 1.3  # times that, where a page is wide


def draw(name: str, title: str, height: float, paint: Callable[[Any], None]) -> str:
    """One axes, painted and cleaned: no metadata, ids of its own, colours as CSS variables."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "edgeprune",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 8.6,
        "axes.edgecolor": RULE,
        "axes.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "axes.linewidth": 0.8,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
    }
    with rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that DejaVu lacks is the page's to draw
        fig = Figure(figsize=(WIDTH, height), layout="constrained")
        fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
        ax = fig.add_subplot()
        ax.set_facecolor("none")
        paint(ax)
        buffer = io.StringIO()
        meta = {"Date": None, "Creator": None, "Format": None, "Type": None}
        fig.savefig(buffer, format="svg", transparent=True, metadata=meta)
    return _tidy(buffer.getvalue(), name, title)


def alone(svg: str) -> str:
    """The same as a file of its own, which no page gives its colours: the page's, on its light ground."""
    colours = "".join(f"--{name}:{value};" for name, value in _LIGHT.items())
    style = f"<style>svg{{{colours}background:var(--paper);font-family:sans-serif}}</style>"
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    size = f'width="{LARGEST * float(box[1]) * 4 / 3:.0f}" height="{LARGEST * float(box[2]) * 4 / 3:.0f}"'
    head, _, rest = svg.partition(">")
    return f"{head} {size}>{style}{rest}\n"


def _tidy(svg: str, name: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([^;\"]*?)([\d.]+px) [^;\"]*", r"font-size: \2", svg)
    for stand_in, css in _CSS.items():
        svg = svg.replace(stand_in, f"var(--{css})")
    box = re.search(r'viewBox="([^"]+)"', svg).group(1)
    width = LARGEST * float(box.split()[2]) * 4 / 3  # points to CSS pixels
    head = (
        f'<svg class="plot" role="img" aria-label="{html.escape(title, quote=True)}" viewBox="{box}" '
        f'style="max-width:{width:.0f}px" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return head + svg[svg.index(">") + 1 :].strip()


def row(ax: Any, y: float, name: str, told: str, strong: bool = False) -> None:
    """One line of a plot with a line for each thing: its name above its marks at the left, its figure at the right."""
    style = {"va": "center", "transform": ax.get_yaxis_transform(), "fontweight": "bold" if strong else "normal"}
    style |= {"bbox": {"facecolor": PAPER, "linewidth": 0, "pad": 1.2}, "zorder": 1.5}
    ax.text(0, y - 0.42, name, ha="left", **style)
    ax.text(1, y - 0.42, told, ha="right", **style)


def rows(ax: Any, n: int, xlabel: str, told: str, room: float = 0.6) -> None:
    """The frame of `n` such lines; `told` heads their figures, `room` lines are left above it."""
    ax.set_yticks([])
    ax.set_ylim(n - 0.45, -1.25 - room)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color=RULE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set_xlabel(xlabel)
    ax.text(1, -1.05, told, ha="right", va="center", color=MUTED, transform=ax.get_yaxis_transform())


def numbers(axis: Any, log: bool, whole: bool = False) -> None:
    """Plain numbers, also on a log axis that spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 3, 5, 7)) if log else MaxNLocator(5, integer=whole))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 100 else f"{v:.3g}"))
    axis.set_minor_formatter(NullFormatter())


def place(ax: Any, points: list[tuple[float, float, str, bool]], arrows: list[tuple[Any, Any]]) -> None:
    """A label beside each point, at the first place where it covers no point, arrow or other label, or the least."""
    fig = ax.figure
    fig.canvas.draw()
    pixel = fig.dpi / 72
    spots = [tuple(ax.transData.transform((px, py))) for px, py, _, _ in points]
    taken = [(sx - 5 * pixel, sy - 5 * pixel, sx + 5 * pixel, sy + 5 * pixel) for sx, sy in spots]
    steps = [n / 40 for n in range(41)]
    for start, end in arrows:
        (x0, y0), (x1, y1) = ax.transData.transform([start, end])
        taken += [
            (x0 + (x1 - x0) * t - 1, y0 + (y1 - y0) * t - 1, x0 + (x1 - x0) * t + 1, y0 + (y1 - y0) * t + 1)
            for t in steps
        ]
    frame = ax.get_window_extent()
    sides = [(dx, dy) for dy in (5, 10, 22, 40, 60) for dx in (7, -7)]
    ways = [(8, 0), (-8, 0), (0, 9), (0, -9), *(w for dx, dy in sides for w in ((dx, dy), (dx, -dy)))]
    for (px, py, text, strong), own in zip(points, taken[: len(points)], strict=True):
        best = None
        for dx, dy in ways:
            ha = "left" if dx > 0 else "right" if dx < 0 else "center"
            va = "bottom" if dy > 0 else "top" if dy < 0 else "center"
            note = ax.annotate(text, (px, py), (dx, dy), textcoords="offset points", ha=ha, va=va)
            note.set_fontweight("bold" if strong else "normal")
            box = note.get_window_extent()
            area = (box.x0, box.y0, box.x1, box.y1)
            hits = sum(_overlap(area, t) for t in taken if t != own) + (0 if _inside(box, frame) else 1e4)
            if best is None or hits < best[0]:
                if best:
                    best[1].remove()
                best = (hits, note, area)
            else:
                note.remove()
            if best[0] == 0:
                break
        taken.append(best[2])


def _inside(box: Any, frame: Any) -> bool:
    return frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
