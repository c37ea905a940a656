"""Damage against megabytes removed: a panel per text, a line per method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

OURS, VARIANT = "#0072B2", "#56B4E9"  # Okabe and Ito's blue and sky blue
OTHERS = ("#CC6677", "#117733", "#882255", "#661100", "#332288", "#44AA99", "#999933", "#AA4499")  # Tol's muted
MARKERS = "s^vDPX<>hpd*"
FAR = 4.0  # a method that does so many times the damage of the middle one is named at the top, not drawn
NOTHING = 1e-6
MB = 2 / 1e6  # per parameter, at 16 bits


def draw(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    c, ours = results["comparison"], results["ours"]
    columns = min(3, len(c["texts"]))
    rows = -(-len(c["texts"]) // columns)
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(
        rows, columns, figsize=(1 + 4.1 * columns, 0.4 + 4.4 * rows), squeeze=False, sharex=True, layout="constrained"
    )
    panels = [axis for row in axes for axis in row]
    for t, (axis, text) in enumerate(zip(panels, c["texts"], strict=False)):
        _panel(axis, c["contenders"], t, ours)
        axis.set_title(f"{text['name']}\nwindows of {text['context_tokens']} tokens", loc="left", fontsize=9)
    for axis in panels[len(c["texts"]) :]:
        axis.remove()
    figure.supxlabel("megabytes of parameters removed, at 16 bits", fontsize=9)
    figure.supylabel("KL(whole ‖ pruned), nats per token", fontsize=9)
    figure.suptitle(f"{c['model']}: damage of every method's cuts, nothing healed", x=0.01, ha="left", fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axis: Any, contenders: list[dict[str, Any]], t: int, ours: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    variants = [c["metric"] for c in contenders if c["metric"].startswith(f"{ours}_")]
    others = [c["metric"] for c in contenders if c["metric"] not in (ours, *variants)]
    last = sorted(c["cuts"][-1]["damage"][t]["kl"] for c in contenders)
    most = max(kl for kl in last if kl <= FAR * last[len(last) // 2])
    ends = []
    for contender in contenders:
        name = contender["metric"]
        if name == ours:
            style = {"color": OURS, "linewidth": 3, "marker": "o", "markersize": 6, "zorder": 5}
        elif name in variants:
            style = {"color": VARIANT, "linewidth": 2, "linestyle": ("--", ":")[variants.index(name) % 2]}
            style |= {"marker": "o", "markersize": 4, "zorder": 4}
        else:
            k = others.index(name)
            style = {
                "color": OTHERS[k % len(OTHERS)],
                "linewidth": 1,
                "marker": MARKERS[k % len(MARKERS)],
                "markersize": 4,
            }
        points = [(cut["params_removed"] * MB, cut["damage"][t]["kl"]) for cut in contender["cuts"]]
        points = [(x, y) for x, y in points if y > NOTHING]  # a logarithm has no zero
        if points and points[-1][1] <= most:
            axis.plot(*zip(*points, strict=True), **style)
            ends.append((*points[-1], name, style["color"]))
        elif points:
            label = f"{name} ↑ {points[-1][1]:.1f}"
            ends.append((points[-1][0], most * 1.4, label, style["color"]))
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylim(top=most * 1.4)
    axis.grid(axis="y", which="both", color="0.92", linewidth=0.6)
    axis.set_axisbelow(True)
    _labels(axis, ends, ours)


def _labels(axis: Any, ends: list[tuple[float, float, str, str]], ours: str) -> None:
    """Names beside the last points, moved apart where they would overlap, each tied to its point."""
    axis.figure.canvas.draw()
    low, high = axis.get_ylim()
    to_height = axis.transData.transform
    bottom, top = to_height((0, low))[1], to_height((0, high))[1]
    apart = 11 * axis.figure.dpi / 72  # of 8-point text
    ends = sorted(ends, key=lambda end: end[1])
    wanted = [to_height((0, end[1]))[1] for end in ends]
    places = _spread(wanted, apart, bottom, top)
    right = axis.get_xlim()[1]
    axis.set_xlim(axis.get_xlim()[0], right)
    for (x, y, name, color), place in zip(ends, places, strict=True):
        height = (place - bottom) / (top - bottom)
        axis.annotate(
            name, xy=(x, y), xytext=(1.03, height), textcoords="axes fraction", va="center", fontsize=8, color=color,
            fontweight="bold" if name == ours else "normal", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip


def _spread(wanted: list[float], apart: float, bottom: float, top: float) -> list[float]:
    """Ascending places as near to `wanted` (ascending) as keeping `apart` allows: groups that touch are centred."""
    groups: list[list[float]] = []  # [sum of wanted, count]
    for w in wanted:
        groups.append([w, 1])
        while len(groups) > 1 and _end(groups[-2], apart) > _start(groups[-1], apart):
            total, count = groups.pop()
            groups[-1] = [groups[-1][0] + total, groups[-1][1] + count]
    places = [_start(g, apart) + apart / 2 + k * apart for g in groups for k in range(int(g[1]))]
    over = max(0.0, places[-1] - top)
    return [max(bottom, p - over) if over else p for p in places]


def _start(group: list[float], apart: float) -> float:
    return group[0] / group[1] - group[1] * apart / 2


def _end(group: list[float], apart: float) -> float:
    return group[0] / group[1] + group[1] * apart / 2
