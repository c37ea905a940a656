"""The plot of growth, and the README, from the results alone."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

STYLES = {
    "plain loop": ("#D55E00", "s", 1.5), "search": ("#0072B2", "o", 3), "forward pass": ("0.45", "^", 1.5),
    "block influence": ("#009E73", "D", 1.5),
}  # Okabe and Ito's colours  # fmt: skip
NUDGE = {"block influence": 6, "forward pass": -6}  # of labels that would touch
AXES = {"depth": "blocks", "width": "hidden size", "tokens": "tokens per window"}


def draw(growth: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), sharey=True, layout="constrained")
    for axis, (name, label) in zip(axes, AXES.items(), strict=True):
        part = growth[name]
        for method, (color, marker, width) in STYLES.items():
            y = part["cpu_s"][method]
            axis.plot(part["at"], y, color=color, marker=marker, linewidth=width, markersize=5)
            axis.annotate(
                f"{method}, {part['exponent'][method]:.2f}", (part["at"][-1], y[-1]), xytext=(8, NUDGE.get(method, 0)),
                textcoords="offset points", va="center", color=color, annotation_clip=False,
                fontweight="bold" if method == "search" else "normal",
            )  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(part["at"], [str(v) for v in part["at"]])
        axis.minorticks_off()
        axis.set_xlabel(label)
        axis.grid(axis="y", color="0.92", linewidth=0.6)
    axes[0].set_ylabel("CPU seconds")
    base = growth["base"]
    figure.suptitle(
        f"{growth['steps']} removals on {growth['windows']} windows; random llamas of {base['depth']} blocks, width"
        f" {base['width']}, {base['tokens']} tokens, but for what varies; with fitted exponents",
        x=0.01, ha="left", fontsize=11,
    )  # fmt: skip
    figure.savefig(path, dpi=110)
    plt.close(figure)


def readme(r: dict[str, Any]) -> str:
    s, small, b = r["search"], r["small"], r["search"]["block_influence"]
    plain_cpu, plain_s = (sum(step[k] for step in s["plain"]) for k in ("cpu_s", "s"))
    run, of = (sum(step[k] for step in s["plain"]) for k in ("run", "candidates"))
    full = run == of
    ratio, depth = s["cpu_ratio"], r["growth"]["depth"]["exponent"]
    about = (
        f"{s['metric']} with effort 0, which is greedy, on {s['model']} ({s['n_blocks']} blocks, {s['precision']}):"
        f" {len(s['plain'])} removals, chosen on"
        f" {s['windows']} windows of {s['context_tokens']} tokens of {s['text']}, against the plain loop, which for every"
        f" candidate runs the whole pruned model on every window. On {r['machine']['host']['cpu'] or 'an unnamed processor'},"
        f" {r['machine']['threads']} threads, in one run."
    )
    speed = (
        f"{'What was asked is met.' if ratio <= 0.3 else 'What was asked is missed.'} {_sampled(full, run, of)} Building the"
        " pruned models and the whole model's probabilities are not counted for the plain loop; everything is counted for"
        " the search."
    )
    answer = f"The answer: {_least(full, [step['excess'] for step in s['plain']])} {_small(small)}"
    growth = (
        "Exponents k of time ∝ xᵏ are fitted by least squares of logarithms over the points of the plot. With depth both the"
        f" candidates and what each costs grow: the plain loop with depth to the {depth['plain loop']:.1f}, the search, which"
        f" drops candidates and shares what they have in common, to the {depth['search']:.1f}."
    )
    return f"""# How fast the search is

```
python benchmarks/search_speed/run.py            # --help: other models, texts, sizes; --redraw: this page again
```

{_fill(about)}

| | greedy search | plain loop | ratio | asked | refined search |
|---|---|---|---|---|---|
| CPU time | {s["ours"]["cpu_s"]:.1f} s | {plain_cpu:.1f} s | {ratio:.2f} | ≤ 0.3 | {s["refined"]["cpu_s"]:.1f} s |
| time | {s["ours"]["s"]:.1f} s | {plain_s:.1f} s | {s["time_ratio"]:.2f} | | {s["refined"]["s"]:.1f} s |

| on the same text | CPU time | of a forward pass |
|---|---|---|
| forward pass, logits included | {b["forward"]:.2f} s | 1 |
| the same without the head | {b["without_head"]:.2f} s | {b["without_head"] / b["forward"]:.2f} |
| block influence | {b["block_influence"]:.2f} s | {b["block_influence"] / b["forward"]:.2f} |

{_fill(speed, "- ")}
{_fill(answer, "- ")}
{_fill("The refined search, the default, finds other removals than greed; what it gains is in ../plan_quality.", "- ")}
{_fill("Block influence needs no logits, so that it can cost less than a forward pass with them.", "- ")}

## Growth

![CPU time against depth, width and tokens](growth.png)

{_exponents(r["growth"])}
{_fill(growth)}
"""


def _fill(text: str, bullet: str = "") -> str:
    return textwrap.fill(text, 120, initial_indent=bullet, subsequent_indent=" " * len(bullet), break_on_hyphens=False)


def _sampled(full: bool, run: int, of: int) -> str:
    if full:
        return "The plain loop was run in full."
    return f"The plain loop was timed on {run} of its {of} candidates, evenly spread, and scaled; each costs about the same."


def _least(full: bool, excess: list[float]) -> str:
    whom = "every candidate" if full else "the candidates that the plain loop ran"
    wrong = [e for e in excess if e > 0]
    if not wrong:
        return f"at every step the search's choice is the least damaging of {whom}."
    return (
        f"at {len(wrong)} of {len(excess)} steps the search's choice is not the least damaging of {whom}; it does up to"
        f" {max(wrong):.1%} more damage."
    )


def _small(small: list[dict[str, Any]]) -> str:
    same = sum(x["same"] for x in small)
    steps = len(small[0]["more_damage"])
    told = (
        f"On {len(small)} random llamas of 10 blocks, reading what they wrote, the plain loop is run in full and goes its own"
        f" way: in {same} both take the same {steps} removals"
    )
    if same == len(small):
        return f"{told}."
    worst = max(m for x in small for m in x["more_damage"])
    return f"{told}; in the others the search's blocks do up to {worst:.1%} more damage on that text."


def _exponents(growth: dict[str, Any]) -> str:
    rows = [[method, *(f"{growth[axis]['exponent'][method]:.2f}" for axis in AXES)] for method in STYLES]
    ranges = [f"{name}, {growth[name]['at'][0]} to {growth[name]['at'][-1]} {label}" for name, label in AXES.items()]
    lines = ["| " + " | ".join(row) + " |" for row in (["exponent of", *ranges], *rows)]
    return "\n".join([lines[0], "|---" * 4 + "|", *lines[1:]]) + "\n"
