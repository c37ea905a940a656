"""The page's part on training, from trained.json alone."""

from __future__ import annotations

import math
import operator
import statistics
from typing import Any

TEXT = """## Training beside it

```
python benchmarks/healing/trained.py        # --path, --remove: the cut; then run.py --redraw
```

The commands that a user types: `prune`, `heal` (a+b: b trains what a healed), `evaluate` on {texts}, `export` to {quant}, and
`bench` of all files taking turns.

Perplexity, and in brackets the part of the cut's damage in log perplexity that is won back. Time is of healing, here, all steps.
Bytes and decode speed of {quant} in llama.cpp, which differ from cut to cut by what else the machine did: median of
repetitions, and of the ratios within them. "Left alone": what training gave was worse on a text held aside, so what it began
from was kept.

"""

CUT = """### {blocks} blocks out: {removed} ({path})

{table}

{tokens}

"""

ASKED = """### Zero-shot

The {quant} files in llama.cpp, by the first {limit} documents of each set: accuracy with lm-eval's standard error,
normalised by length where the set has that. Guessing gives 50 % on boolq, piqa and winogrande, 25 % on the others: 36 % in
the mean.

{table}

"""

GENERATED = """### Generated text

Greedy, of the same files: the part of four neighbouring tokens that were there before in a continuation (lower is
better), and right answers of {n} to small questions after {shots} answered ones.

{table}
"""

Row = dict[str, Any]


def section(cuts: list[dict[str, Any]]) -> str:
    """All cuts, by blocks removed, that were healed by the same commands."""
    first = cuts[0]
    text = TEXT.format(texts=told(first["texts"]), quant=first["quant"])
    for cut in cuts:
        rows = {row["method"]: row for row in cut["rows"]}
        names = [t["name"] for t in cut["texts"]]
        text += CUT.format(**cut | {"table": _measured(rows, names), "tokens": _tokens(rows)})
    asked = {name: _by_task(scores) for name, scores in _each(cuts, "tasks").items()}
    if asked:
        text += ASKED.format(limit=first["limit"], quant=first["quant"], table=_tasks(asked))
    wrote = _each(cuts, "generation")
    return text + (_generated(wrote) if wrote else "")


def told(texts: list[dict[str, Any]]) -> str:
    return ", ".join(f"{t['name']} ({t['windows']} windows)" for t in texts)


def _measured(rows: dict[str, Row], names: list[str]) -> str:
    lines = ["| | " + " | ".join(names) + " | KL | minutes | bytes | decode, tokens/s (× the cut's) |"]
    lines.append("|---|" + "---|" * (len(names) + 4))
    for name, row in rows.items():
        left = "healing" in row and not row["healing"][-1]["changed"]  # what it gave was worse on some text held aside
        cells = [f"{name}: left alone" if left else name]
        cells += (_quality(q, cut) for q, cut in zip(row["quality"], rows["cut"]["quality"], strict=True))
        cells.append(
            " / ".join("–" if q["kl"] is None or name == "whole" else f"{q['kl']:.3f}" for q in row["quality"])
        )
        cells.append(f"{sum(h['seconds'] for h in row['healing']) / 60:.1f}" if "healing" in row else "–")
        cells += [f"{row['bytes'] / 1e6:.1f} MB", _speed(row, rows["cut"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _each(cuts: list[dict[str, Any]], what: str) -> dict[str, Any]:
    """What was found of each model, by its name on the page: the whole one once."""
    return {
        "whole" if row["method"] == "whole" else f"{cut['removed']}: {row['method']}": row[what]
        for cut in cuts
        for row in cut["rows"]
        if what in row
    }


def _quality(q: dict[str, Any], cut: dict[str, Any]) -> str:
    """Perplexity, and won back where there is something to win."""
    loss, before, whole = (math.log(x) for x in (q["perplexity"], cut["perplexity"], cut["perplexity_whole"]))
    won = f" ({(before - loss) / (before - whole):.0%})" if q is not cut and loss != whole else ""
    return f"{q['perplexity']:.1f}{won}"


def _speed(row: Row, cut: Row) -> str:
    """The files took turns, so what a method changes is the ratio within a repetition."""
    rates, times = row["decode_tok_per_s"], map(operator.truediv, row["decode_tok_per_s"], cut["decode_tok_per_s"])
    return f"{statistics.median(rates):.0f} ({statistics.median(times):.2f})"


def _tokens(rows: dict[str, Any]) -> str:
    """What was solved by and trained on, of each method once."""
    steps = {h["method"]: h for row in rows.values() for h in row.get("healing", [])}
    said = [f"{m} {(h['trained'] or h['text'])['tokens']:,}" for m, h in steps.items()]
    return f"Tokens: {', '.join(said)}."


def _by_task(scores: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The score of each task that the study's page shows too."""
    from edgeprune.evaluation import telling

    by_name = {(score["task"], score["metric"]): score for score in scores}
    return {task: by_name[task, metric] for task, metric in telling(by_name)}


def _tasks(asked: dict[str, dict[str, dict[str, Any]]]) -> str:
    tasks = list(next(iter(asked.values())))
    lines = ["| | " + " | ".join(tasks) + " | mean |", "|---|" + "---|" * (len(tasks) + 1)]
    for name, scores in asked.items():
        cells = [f"{scores[t]['value']:.0%} ± {scores[t]['stderr']:.0%}" for t in tasks]
        mean = statistics.fmean(scores[t]["value"] for t in tasks)
        error = math.sqrt(sum(scores[t]["stderr"] ** 2 for t in tasks)) / len(tasks)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {mean:.1%} ± {error:.1%} |")
    return "\n".join(lines)


def _generated(wrote: dict[str, dict[str, Any]]) -> str:
    from edgeprune.behaviour.generation import SHOTS

    tasks = next(iter(wrote.values()))["exact_match"]
    lines = ["| | repeated | " + " | ".join(m["task"] for m in tasks) + " |", "|---|---|" + "---|" * len(tasks)]
    for name, found in wrote.items():
        right = " | ".join(str(m["n_correct"]) for m in found["exact_match"])
        lines.append(f"| {name} | {found['repetition']:.0%} | {right} |")
    return GENERATED.format(n=tasks[0]["n_questions"], shots=SHOTS, table="\n".join(lines))
