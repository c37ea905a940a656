"""Won back against calibration tokens: a panel per text, a line per cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _page import ASKED, won_back

COLOURS = ("#0072B2", "#CC6677", "#117733", "#882255")  # of paths: Okabe and Ito's blue, Tol's muted
MARKERS = "osD^v"


def draw(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, names = [r for r in results["rows"] if r["method"] == results["rows"][0]["method"]], results["texts"]
    paths, amounts = sorted({p for r in rows for p in r["paths"]}), sorted({r["blocks"] for r in rows})
    tokens = sorted({r["tokens"] for r in rows})
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(
        1, len(names), figsize=(1 + 3.6 * len(names), 3.8), squeeze=False, sharey=True, layout="constrained"
    )
    for t, (axis, text) in enumerate(zip(axes[0], names, strict=True)):
        for p, name in enumerate(paths):
            for a, amount in enumerate(amounts):
                line = sorted(
                    (r["tokens"], won_back(r["judged"][t]))
                    for r in rows
                    if name in r["paths"] and r["blocks"] == amount
                )
                if not line:
                    continue
                axis.plot(
                    *zip(*line, strict=True), color=COLOURS[p % len(COLOURS)], marker=MARKERS[a % len(MARKERS)],
                    linestyle=("-", "--", ":")[a % 3], label=f"{name}, {amount} blocks out",
                )  # fmt: skip
        axis.axhline(ASKED[t > 0], color="grey", linewidth=1, linestyle=(0, (5, 5)))
        axis.set_xscale("log")
        axis.set_xticks(tokens, [f"{n:,}" for n in tokens])
        axis.minorticks_off()
        axis.set_title(text["name"], loc="left", fontsize=9)
        axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    axes[0][0].set_ylabel("damage in log perplexity won back")
    axes[0][-1].legend(frameon=False, fontsize=8)
    figure.supxlabel("calibration tokens", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)
