"""The host's results as a page and as a picture."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

# what -> (median, worst) error allowed; None: nothing was asked
ASKED = {"decode": (0.03, 0.08), "prefill": (0.08, None), "memory": (None, 0.01), "file": (None, 0.01)}
RUNTIMES = ("llamacpp", "onnxruntime")


def error(row: dict[str, Any]) -> float:
    return row["predicted"] / row["measured"] - 1


def text(r: dict[str, Any]) -> str:
    rows = r["rows"]
    lines = [
        "# This host, after calibration",
        "",
        "```",
        "python benchmarks/prediction/host.py",
        "```",
        "",
        f"{r['when']}, {r['host']}, {r['threads']} threads, {r['repetitions']} repetitions; the calibration's models take turns",
        "with these, of which it runs no shape, depth, file quantisation or context. Decode and prefill are lower quartiles of",
        "the samples, since other work on a machine only adds time; errors are |predicted / measured - 1|. `host.json` holds",
        "every sample; `host.py --again` fits and foretells anew from it. A model's turn begins with a short prompt that is not",
        "timed, since what ran before it has left its own data in the caches and threads that still wait for work.",
        "",
        "![predicted against measured](host.png)",
        "",
        "| runtime | what | rows | median | worst | asked | | halves apart: median | worst |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for runtime in RUNTIMES:
        for what, (middle, worst) in ASKED.items():
            errors = [abs(error(x)) for x in rows if (x["runtime"], x["what"]) == (runtime, what)]
            if not errors:
                continue
            have = statistics.median(errors), max(errors)
            asked = [f"median {middle:.0%}" if middle else "", f"worst {worst:.0%}" if worst else ""]
            met = all(limit is None or x <= limit for x, limit in zip(have, (middle, worst), strict=True))
            lines.append(
                f"| {runtime} | {what} | {len(errors)} | {have[0]:.1%} | {have[1]:.1%} | {', '.join(a for a in asked if a)} | "
                f"{'met' if met else 'missed'} | {_apart(rows, runtime, what)} |"
            )
    lines += [
        "",
        "Halves apart: how far two halves of a cell's own repetitions (every second one) are from each other. That is the machine,",
        "not the formula: calibration rests on samples like these, so no formula gets far below it. An error of several times",
        "that is the formula's.",
    ]
    lines += ["", "| model | runtime | what | tokens | predicted | measured | error |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {x['model']} | {x['runtime']} | {x['what']} | {x['tokens'] or ''} | {_show(x, 'predicted')} | "
        f"{_show(x, 'measured')} | {error(x):+.1%} |"
        for x in rows
    ]
    return "\n".join(lines) + "\n"


def _apart(rows: list[dict[str, Any]], runtime: str, what: str) -> str:
    found = [x["halves_apart"] for x in rows if (x["runtime"], x["what"]) == (runtime, what)]
    known = [x for x in found if x is not None]
    return f"{statistics.median(known):.1%} | {max(known):.1%}" if known else "|"


def _show(row: dict[str, Any], key: str) -> str:
    if row["what"] in ("memory", "file"):
        return f"{row[key] / 1e6:.1f} MB"
    return f"{row[key] * 1e3:.4g} ms"


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(11, 3.6), layout="constrained", dpi=130)
    for n, (what, unit, scale) in enumerate(
        (("decode", "ms per token", 1e3), ("prefill", "s", 1), ("memory", "MB", 1e-6)), 1
    ):
        ax = fig.add_subplot(1, 3, n)
        for runtime, mark, colour in zip(RUNTIMES, "os", ("#1f5fa8", "#c2571a"), strict=True):
            mine = [x for x in rows if (x["runtime"], x["what"]) == (runtime, what)]
            x, y = [m["measured"] * scale for m in mine], [m["predicted"] * scale for m in mine]
            ax.plot(x, y, mark, color=colour, markersize=4.5, alpha=0.8, label=runtime)
        ends = [v * scale for r in rows if r["what"] == what for v in (r["measured"], r["predicted"])]
        low, high = min(ends) / 1.2, max(ends) * 1.2
        ax.plot([low, high], [low, high], color="#999999", linewidth=0.8, zorder=1)
        ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
        ax.set_xlabel(f"measured, {unit}")
        ax.set_ylabel("predicted")
        ax.set_title(what, loc="left", fontsize=10)
        ax.legend(frameon=False, fontsize=8)
    fig.savefig(out)
