"""What a model writes, which perplexity and choices among given answers do not show: greedy continuations, how much they
repeat, and small tasks with one right answer."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

from edgeprune.chat import Chat, Sampling
from edgeprune.errors import InputRejected
from edgeprune.evaluation import Continuation, ExactMatch, Generation

T = TypeVar("T")
PROMPTS = (
    "The capital of France is",
    "To make a cup of tea, you first",
    "Once upon a time, in a village by the sea,",
    "Water freezes when",
    "def fibonacci(n):",
    "My favourite season is autumn, because",
)
SHOTS = 4
_WORDS = (
    "apple river stone cloud table green music paper house light bread horse chair ocean plant tiger window garden "
    "summer bridge candle silver pocket mountain letter orange winter kitchen farmer island yellow dragon button forest "
    "market needle basket rocket mirror ladder"
).split()
_GREEDY = Sampling()


def copy(rng: random.Random) -> tuple[str, str]:
    words = " ".join(rng.sample(_WORDS, 5))
    return words, words


def sort(rng: random.Random) -> tuple[str, str]:
    numbers = rng.sample(range(10, 100), 4)
    return " ".join(map(str, numbers)), " ".join(map(str, sorted(numbers)))


def add(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(1, 49), rng.randint(1, 49)
    return f"{a} + {b}", str(a + b)


TASKS: dict[str, Callable[[random.Random], tuple[str, str]]] = {"copy": copy, "sort": sort, "add": add}


def questions(task: str, n: int, seed: int) -> list[tuple[str, str]]:
    """(prompt, the right answer) of `n` questions, each after the same SHOTS answered ones; the same for the same seed."""
    rng = random.Random(f"{task} {seed}")
    shots = "".join(
        f"Input: {asked}\nOutput: {answer}\n\n" for asked, answer in (TASKS[task](rng) for _ in range(SHOTS))
    )
    drawn = (TASKS[task](rng) for _ in range(n))
    return [(f"{shots}Input: {asked}\nOutput:", answer) for asked, answer in drawn]


def generate(
    chat: Chat, *, chat_template: bool = False, max_tokens: int = 64, n_questions: int = 50, seed: int = 0,
    prompts: Sequence[str] = PROMPTS, tick: Callable[[int, int], None] = lambda done, total: None,
) -> Generation:  # fmt: skip
    """Continuations of `prompts`, as turns of a dialogue where `chat_template`, and answers to TASKS, always as plain text.

    `tick` is told how many texts are done, of how many. Raises InputRejected for a chat template that is not there.
    """
    if chat_template and not chat.has_template:
        raise InputRejected("the model has no chat template; leave out --apply-chat-template")
    total, done = len(prompts) + len(TASKS) * n_questions, 0
    continuations: list[Continuation] = []
    tokens: list[list[int]] = []
    for prompt in prompts:
        ids = chat.prompt([{"role": "user", "content": prompt}]) if chat_template else chat.completion(prompt)
        reply = chat.generate(ids, max_tokens=max_tokens, sampling=_GREEDY)
        tokens.append(chat.session.tokenize(reply.text))
        continuations.append(
            Continuation(
                prompt=prompt,
                text=reply.text,
                n_tokens=len(tokens[-1]),
                ended=reply.stop == "end",
                repetition=repetition(tokens[-1], 4),
            )  # fmt: skip
        )
        tick(done := done + 1, total)
    matches = []
    for task in TASKS:
        n_correct = 0
        for prompt, answer in questions(task, n_questions, seed):
            reply = chat.generate(chat.completion(prompt), max_tokens=32, sampling=_GREEDY, until=("\n",))
            n_correct += reply.text.strip() == answer
            tick(done := done + 1, total)
        matches.append(ExactMatch(task=task, n_correct=n_correct, n_questions=n_questions))
    known = [c.repetition for c in continuations if c.repetition is not None]
    return Generation(
        max_tokens=max_tokens,
        chat_template=chat_template,
        continuations=tuple(continuations),
        repetition=statistics.fmean(known) if known else None,
        distinct_2=distinct(tokens, 2),
        exact_match=tuple(matches),
        seed=seed,
    )


def repetition(tokens: Sequence[T], n: int) -> float | None:
    """seq-rep-n = 1 − distinct n-grams / n-grams (Welleck et al. 2020, arXiv:1908.04319); None without any."""
    grams = _grams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else None


def distinct(texts: Sequence[Sequence[T]], n: int) -> float | None:
    """Distinct n-grams / n-grams of all texts together (after Li et al. 2016, arXiv:1510.03055, who divide by tokens)."""
    grams = [gram for tokens in texts for gram in _grams(tokens, n)]
    return len(set(grams)) / len(grams) if grams else None


def _grams(tokens: Sequence[T], n: int) -> list[tuple[T, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
