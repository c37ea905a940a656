"""The README, from the results alone."""

from __future__ import annotations

import json
import math
import statistics
import textwrap
from collections.abc import Iterable
from typing import Any

from edgeprune.catalog import load
from edgeprune.comparison import Comparison, Contender, Cut, Damage, difference

HEAD = """# Which layers to leave out: every method side by side

```
python benchmarks/plan_quality/run.py            # --help: other models, texts, amounts; --redraw: this page again
```

{about}

![Damage against megabytes removed](curves.png)
"""

NOTES = """- All methods read the same calibration windows. One that removes halves of blocks gets as many steps as it needs to remove
  as many parameters; where no step removes exactly that many, the nearest that removes less counts, which favours it.
- KL is KL(whole ‖ pruned), nats per token, mean over windows ± standard error; perplexity is over the same tokens. Windows
  are taken from the start of each text, or of its half.
- Differences are of pairs, window by window, with the 95 % interval of Student's t. Each interval stands for itself: none is
  widened for the number of comparisons on this page. "Better" and "worse" are said only where it leaves zero out.
- Nothing is healed. Timings are of choosing alone, on {machine}.
"""


def readme(results: dict[str, Any]) -> str:
    c = Comparison.from_json(json.dumps(results["comparison"]))
    ours = next(x for x in c.contenders if x.metric == results["ours"])
    parts = [
        HEAD.format(about=_about(c, results)),
        "## Damage\n\n" + "\n".join(_damage_table(c, t) for t in range(len(c.texts))),
        "## Ours against the best of the others\n\n" + _against(c, ours),
        *_ablation(c, ours),
        "## How much is over-fitted to the calibration text\n\n" + _gap(c, ours),
        "## What each removes, and how long it takes to choose\n\n" + _removed(c),
        "## How the numbers are made\n\n" + NOTES.format(machine=_machine(results["machine"])),
    ]
    return "\n".join(parts)


def _about(c: Comparison, results: dict[str, Any]) -> str:
    amounts = _list(str(cut.asked_blocks) for cut in c.contenders[0].cuts)
    t, precisions = c.calibration, sorted({x.precision for x in c.contenders})
    paragraphs = [
        f"{c.model}, {c.n_blocks} blocks: {amounts} blocks' worth of parameters are removed ({c.block_params / 1e6:.2f} M each,"
        f" of {c.params / 1e6:.1f} M), chosen by {len(c.contenders)} methods on {_windows(t)} of {t.name}, and judged on"
        f" {_list(f'{x.name} ({_windows(x)})' for x in c.texts)}. Weights are {_list(precisions)} while methods choose and"
        f" {c.precision} while damage is measured.",
        *(note[0].upper() + note[1:] + "." for note in results["notes"]),
    ]
    return "\n\n".join(map(_fill, paragraphs))


def _damage_table(c: Comparison, t: int) -> str:
    """Methods in order of their damage at the largest amount, the least of each column in bold."""
    title = f"{c.texts[t].name}, {_windows(c.texts[t])}; the whole model's perplexity is {c.whole_perplexity[t]:.4g}"
    amounts = range(len(c.contenders[0].cuts))
    least = [min(x.cuts[a].damage[t].kl for x in c.contenders) for a in amounts]
    rows = []
    for x in sorted(c.contenders, key=lambda x: x.cuts[-1].damage[t].kl):
        cells = [_cell(x.cuts[a].damage[t], x.cuts[a].damage[t].kl == least[a]) for a in amounts]
        rows.append([f"`{x.metric}`", *(cell for pair in cells for cell in pair)])
    head = ["method"]
    for cut in c.contenders[0].cuts:
        head += [f"{_blocks(cut)}: KL", "perplexity"]
    return f"{title}:\n\n" + _table(head, rows)


def _cell(d: Damage, least: bool) -> tuple[str, str]:
    mark = "**" if least else ""
    spread = "" if d.kl_stderr is None else f" ± {d.kl_stderr:.3f}"
    return f"{mark}{d.kl:.3f}{mark}{spread}", f"{d.perplexity:.4g}"


def _against(c: Comparison, ours: Contender) -> str:
    """Text by amount: the least damaging method of others', and what tells it from ours."""
    others = [x for x in c.contenders if not x.source.startswith("edgeprune")]
    if not others:
        return "Nothing else was compared.\n"
    rows, found = [], []
    for t, text in enumerate(c.texts):
        for a, cut in enumerate(ours.cuts):
            best = min(others, key=lambda x: x.cuts[a].damage[t].kl)  # noqa: B023
            more, verdict = _paired(best.cuts[a].damage[t], cut.damage[t])
            found.append((verdict, best.metric, f"{text.name} ({_windows(text)}) at {_blocks(cut)}"))
            kl = f"{cut.damage[t].kl:.3f}", f"{best.cuts[a].damage[t].kl:.3f}"
            rows.append(
                [
                    f"{text.name}, {text.context_tokens}",
                    str(cut.asked_blocks),
                    kl[0],
                    f"`{best.metric}`",
                    kl[1],
                    more,
                    verdict,
                ]
            )
    head = ["text, window", "blocks", f"`{ours.metric}`", "best other", "its KL", "more than ours (95 %)", "ours is"]
    counted = {verdict: [f for f in found if f[0] == verdict] for verdict in ("better", "not told apart", "worse")}
    lines = [
        f"Of {len(found)} places, `{ours.metric}` does less damage than the best of all other methods in"
        f" {len(counted['better'])}, can't be told from it in {len(counted['not told apart'])}, and does more in"
        f" {len(counted['worse'])}."
    ]
    if counted["worse"]:
        lines.append(f"It loses to {_list(f'`{metric}` on {where}' for _, metric, where in counted['worse'])}.")
    return _fill(" ".join(lines)) + "\n\n" + _table(head, rows)


def _ablation(c: Comparison, ours: Contender) -> list[str]:
    off = next((x for x in c.contenders if x.metric == f"{ours.metric}_aligned"), None)
    if off is None:
        return []
    rows = []
    for t, text in enumerate(c.texts):
        found = [_paired(off.cuts[a].damage[t], cut.damage[t]) for a, cut in enumerate(ours.cuts)]
        rows.append([f"{text.name}, {text.context_tokens}", *(f"{more}, {_SEAMS[verdict]}" for more, verdict in found)])
    head = ["text, window", *(f"{_blocks(cut)}: more KL with seams off" for cut in ours.cuts)]
    about = f"`{off.metric}` is the same search with whole blocks as its only cuts.\n\n"
    return ["## What the seam cuts add\n\n" + about + _table(head, rows)]


_SEAMS = {
    "better": "seams help",
    "worse": "seams hurt",
    "not told apart": "not told apart",
    "the same": "the same cuts",
}


def _paired(other: Damage, ours: Damage) -> tuple[str, str]:
    d = difference(other.window_kl, "ours", ours.window_kl)
    if d is None:
        return "", "not told apart"
    verdict = "better" if d.low > 0 else "worse" if d.high < 0 else "not told apart"
    return f"{d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})", verdict


def _gap(c: Comparison, ours: Contender) -> str:
    """Held-out against calibration damage, where windows are as long."""
    like = [t for t, text in enumerate(c.texts) if text.context_tokens == c.calibration.context_tokens]
    if not like:
        return "No text was read in windows as long as calibration's.\n"
    ratio = {x.metric: [_ratio(cut, like) for cut in x.cuts] for x in c.contenders}
    rows = []
    for x in c.contenders:
        cells = ((f"{cut.on_calibration.kl:.3f}", f"{r:.2f}") for cut, r in zip(x.cuts, ratio[x.metric], strict=True))
        rows.append([f"`{x.metric}`", *(cell for pair in cells for cell in pair)])
    head = ["method"]
    for cut in ours.cuts:
        head += [f"{_blocks(cut)}: KL on calibration", "held out ÷ calibration"]
    about = (
        "KL on the calibration windows, and how many times that it is on held-out text (geometric mean of"
        f" {_list(c.texts[t].name for t in like)}). A text may be harder than another for every method; over-fitted is"
        " what a method that measures damage has more than those that measure none. "
    )
    blind = [ratio[m] for m in ratio if not _measures(m)]
    if blind:
        told = (
            f"{statistics.median(r[a] for r in blind):.2f} and {ratio[ours.metric][a]:.2f} at {_blocks(cut)}"
            for a, cut in enumerate(ours.cuts)
        )
        about += f"The median of these, and `{ours.metric}`: {_list(told)}."
    return _fill(about) + "\n\n" + _table(head, rows)


def _ratio(cut: Cut, texts: list[int]) -> float:
    seen = cut.on_calibration.kl
    return math.exp(statistics.fmean(math.log(max(cut.damage[t].kl, 1e-9) / max(seen, 1e-9)) for t in texts))


def _measures(metric: str) -> bool:
    return metric == "perplexity" or hasattr(load("edgeprune.metrics", metric), "children")


def _blocks(cut: Cut) -> str:
    return f"{cut.asked_blocks} block{'s' if cut.asked_blocks > 1 else ''}"


def _fill(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False)


def _removed(c: Comparison) -> str:
    rows = []
    for x in c.contenders:
        for k, cut in enumerate(x.cuts):
            head = ["", "", ""] if k else [f"`{x.metric}`", f"{x.seconds:.0f}", f"{x.cpu_seconds:.0f}"]
            rows.append([*head, f"{cut.params_removed / 1e6:.2f}", cut.removed])
    papers = "\n".join(f"- `{x.metric}`: {x.source}" for x in c.contenders)
    return _table(["method", "time, s", "CPU, s", "M parameters", "removed"], rows) + "\n" + papers + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]]) + "\n"


def _windows(text: Any) -> str:
    return f"{text.tokens // text.context_tokens} windows of {text.context_tokens}"


def _list(items: Iterable[str]) -> str:
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last


def _machine(m: dict[str, Any]) -> str:
    host = m["host"]
    name = host["cpu"] or "an unnamed processor"
    return f"{name}, {m['processes']} process{'es' if m['processes'] > 1 else ''} of {m['threads']} threads"
