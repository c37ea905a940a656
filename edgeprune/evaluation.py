"""What evaluating yields beside perplexity: scores of lm-eval's tasks, and what a model writes."""

from __future__ import annotations

import math
from collections.abc import Iterable

from edgeprune.types import Quality, Record


class TaskScore(Record):
    """One metric of one task; a group's is the aggregate of its tasks."""

    task: str
    metric: str  # as lm-eval names it: "acc", "acc_norm", "exact_match,strict-match"
    value: float
    stderr: float | None
    higher_is_better: bool | None
    n_documents: int | None  # that were asked; None of a group
    n_documents_whole: int | None  # that the set holds
    n_fewshot: int | None


class TaskScores(Record):
    """Of one lm-eval run."""

    harness: str  # "lm-eval 0.4.13"
    context_tokens: int  # a longer text loses its beginning
    n_cut: int  # texts that did
    chat_template: bool
    scores: tuple[TaskScore, ...]


def telling(scores: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of (task, metric)s, each task's length-normalised accuracy where it has one, else its accuracy; all where none has either."""
    keys = dict.fromkeys(scores)
    return [k for k in keys if k[1] == "acc_norm" or (k[1] == "acc" and (k[0], "acc_norm") not in keys)] or [*keys]


class Continuation(Record):
    """What the model goes on with, greedily."""

    prompt: str
    text: str
    n_tokens: int
    ended: bool  # by itself, before the longest length asked for
    repetition: float | None  # seq-rep-4, see Generation; None of fewer than four tokens


class ExactMatch(Record):
    """Greedy answers that are the expected text."""

    task: str  # key of edgeprune.behaviour.generation.TASKS
    n_correct: int
    n_questions: int

    @property
    def rate(self) -> float:
        return self.n_correct / self.n_questions

    @property
    def stderr(self) -> float | None:
        """Of the mean, as lm-eval takes it: √(p(1 − p)/(n − 1))."""
        return math.sqrt(self.rate * (1 - self.rate) / (self.n_questions - 1)) if self.n_questions > 1 else None


class Generation(Record):
    """Greedy text.

    repetition: seq-rep-4, 1 − distinct 4-grams / 4-grams of a continuation's tokens, mean over continuations (Welleck et
    al. 2020, arXiv:1908.04319). distinct_2: distinct 2-grams / 2-grams of all (Li et al. 2016, arXiv:1510.03055, who
    divide by tokens).
    """

    max_tokens: int
    chat_template: bool
    continuations: tuple[Continuation, ...]
    repetition: float | None
    distinct_2: float | None
    exact_match: tuple[ExactMatch, ...]
    seed: int  # of the questions


class Behaviour(Record):
    """What was asked beyond next tokens."""

    tasks: TaskScores | None = None
    generation: Generation | None = None


class Evaluation(Quality):
    """A subject's Quality and its Behaviour."""

    tasks: TaskScores | None = None
    generation: Generation | None = None
