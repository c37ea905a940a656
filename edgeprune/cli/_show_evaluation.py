"""Scores of tasks and generated text, on stdout: subjects side by side."""

from __future__ import annotations

import math
import statistics

from edgeprune.cli._terminal import clean, say, table
from edgeprune.evaluation import Evaluation, Generation, TaskScore


def beyond(found: list[Evaluation]) -> None:
    if all(q.tasks for q in found):
        _tasks(found)
    if all(q.generation for q in found):
        _generation(found)


def _tasks(found: list[Evaluation]) -> None:
    columns = ["task", "metric", "documents", "shots", *(q.subject for q in found)]
    by_key = [{(s.task, s.metric): s for s in q.tasks.scores} for q in found]
    rows = []
    for (task, metric), s in by_key[0].items():
        n = "" if s.n_documents is None else f"{s.n_documents} of {s.n_documents_whole}"
        shots = "" if s.n_fewshot is None else str(s.n_fewshot)
        rows.append([task, metric, n, shots, *(_value(scores.get((task, metric))) for scores in by_key)])
    of_acc = [[s for (_, metric), s in scores.items() if metric == "acc"] for scores in by_key]
    if len(of_acc[0]) > 1 and all(len(found) == len(of_acc[0]) for found in of_acc):
        rows.append([f"mean of {len(of_acc[0])}", "acc", "", "", *map(_mean, of_acc)])
    table(None, columns, rows, right=(2, 3, *range(4, len(columns))))
    t = found[0].tasks
    asked = "asked in a dialogue" if t.chat_template else "asked as plain text"
    cut = [f"{q.subject}: {q.tasks.n_cut} texts cut at their beginning" for q in found if q.tasks.n_cut]
    say(f"{t.harness}, {asked}, at most {t.context_tokens} tokens; ± standard error" + "".join(f"; {c}" for c in cut))


def _mean(scores: list[TaskScore]) -> str:
    """Over tasks, whose errors are independent: the root of the sum of their squares, over their number."""
    mean, errors = statistics.fmean(s.value for s in scores), [s.stderr for s in scores]
    return f"{mean:.4f}" + ("" if None in errors else f" ± {math.hypot(*errors) / len(errors):.4f}")


def _value(s: TaskScore | None) -> str:
    if s is None:
        return "not measured"
    return f"{s.value:.4f}" + ("" if s.stderr is None else f" ± {s.stderr:.4f}")


def _generation(found: list[Evaluation]) -> None:
    made: list[Generation] = [q.generation for q in found]
    rows = [
        ["repetition, seq-rep-4", *(_rate(g.repetition) for g in made)],
        ["distinct 2-grams", *(_rate(g.distinct_2) for g in made)],
    ]
    for matches in zip(*(g.exact_match for g in made), strict=True):
        n = matches[0].n_questions
        rows.append(
            [f"{matches[0].task}, exact, {n} questions", *(f"{m.rate:.2f} ± {m.stderr or 0:.2f}" for m in matches)]
        )
    table(None, ["greedy text", *(q.subject for q in found)], rows, right=tuple(range(1, len(found) + 1)))
    for parts in zip(*(g.continuations for g in made), strict=True):
        say(f"\n{clean(parts[0].prompt)}")
        for q, part in zip(found, parts, strict=True):
            end = "" if part.ended else " …"
            say(f"  {q.subject}: {' '.join(part.text.split())}{end}")


def _rate(x: float | None) -> str:
    return "not measured" if x is None else f"{x:.3f}"
