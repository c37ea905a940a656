"""Report -> parts on what a model does beyond next tokens: tasks and generated text, subjects side by side."""

from __future__ import annotations

from edgeprune.evaluation import Evaluation, Generation, TaskScore
from edgeprune.report import facts
from edgeprune.report.doc import Facts, Part, Table
from edgeprune.report.text import Num, missing, num

Subjects = list[tuple[Num, Evaluation]]
MOST_PROMPTS = 3  # whose continuations are shown; the JSON has all


def tasks(subjects: Subjects) -> list[Part]:
    """Scores by task and metric, with the change from the whole model in its own unit; nothing where none was run."""
    asked = [(name, q) for name, q in subjects if q.tasks]
    keys = list(dict.fromkeys(key for _, q in asked for key in facts.task_scores(q)))
    if not keys:
        return []
    whole = next((q for _, q in asked if q.subject == "whole"), None)
    rows = tuple(
        (_task(key, asked), *(_score(facts.task_scores(q).get(key), None if q is whole else whole) for _, q in asked))
        for key in keys
    )
    first = asked[0][1].tasks
    how = "in a dialogue" if first.chat_template else "as plain text"
    caption = f"{first.harness}, asked {how}, at most {first.context_tokens:,} tokens. ± is the standard error; "
    caption += "in brackets the change from the whole model."
    cut = [f"{_title(name)}: {q.tasks.n_cut} texts lost their beginning." for name, q in asked if q.tasks.n_cut]
    return [Table(("Task", *(_title(name) for name, _ in asked)), rows, " ".join([caption, *cut]), "Tasks")]


def _task(key: tuple[str, str], asked: Subjects) -> Num:
    s = next(s for _, q in asked if (s := facts.task_scores(q).get(key)))
    shots = "" if s.n_fewshot is None else f"{s.n_fewshot}-shot"
    n = "" if s.n_documents is None else f"{s.n_documents:,} of {s.n_documents_whole:,}"
    worse = "lower is better" if s.higher_is_better is False else ""
    return Num(s.task, sub=", ".join(part for part in (s.metric, shots, n, worse) if part))


def _score(s: TaskScore | None, whole: Evaluation | None) -> Num:
    if s is None:
        return missing()
    spread = f"± {s.stderr:.3f}" if s.stderr is not None else ""
    before = facts.task_scores(whole).get((s.task, s.metric))
    change = f"({s.value - before.value:+.3f})".replace("-", "−") if before else ""
    return Num(f"{s.value:.3f}", "measured", f"{spread} {change}".strip())


def generation(subjects: Subjects) -> list[Part]:
    """Repetition, variety and exact answers of greedy text, and what some prompts were continued with."""
    asked = [(name, q.generation) for name, q in subjects if q.generation]
    if not asked:
        return []
    rows = [
        (Num("repeated 4-grams", sub="lower is better"), *(num(g.repetition, "measured") for _, g in asked)),
        (Num("distinct 2-grams", sub="higher is better"), *(num(g.distinct_2, "measured") for _, g in asked)),
    ]
    for task in dict.fromkeys(m.task for _, g in asked for m in g.exact_match):
        rows.append((Num(task, sub="exact answers"), *(_exact(g, task) for _, g in asked)))
    first = asked[0][1]
    how = "in a dialogue" if first.chat_template else "as plain text"
    caption = f"Greedy, at most {first.max_tokens:,} tokens, {how}. A share of 1 of repeated 4-grams is one phrase over and over."
    columns = ("Greedy text", *(_title(name) for name, _ in asked))
    return [Table(columns, tuple(rows), caption, "Generated text"), *_continuations(asked)]


def _exact(g: Generation, task: str) -> Num:
    m = next((m for m in g.exact_match if m.task == task), None)
    if m is None:
        return missing()
    spread = f"± {m.stderr:.2f}, " if m.stderr is not None else ""
    return Num(f"{m.rate:.2f}", "measured", f"{spread}{m.n_correct} of {m.n_questions}")


def _continuations(asked: list[tuple[Num, Generation]]) -> list[Part]:
    parts: list[Part] = []
    for i, said in enumerate(asked[0][1].continuations[:MOST_PROMPTS]):
        texts = [(name, g.continuations[i]) for name, g in asked if i < len(g.continuations)]
        pairs = tuple(
            (_title(name), " ".join(c.text.split()) + ("" if c.ended else " …"))
            for name, c in texts
            if c.prompt == said.prompt
        )
        parts.append(Facts(pairs, f"“{' '.join(said.prompt.split())}”"))
    return parts


def _title(name: Num) -> str:
    return f"{name.text}, {name.sub}"
