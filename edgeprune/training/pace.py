"""How long to train: steps and their size, from a budget of tokens or minutes; the rate at each step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from edgeprune.heal_text import Example
from edgeprune.healers._trainee import Recipe, Trainee
from edgeprune.training.batches import MICRO_TOKENS, as_batch

TOKENS = 200_000  # to train on, unless asked otherwise
LEAST_STEPS = 100  # batches are smaller than the recipe's where that would give fewer
LOOKS = 20  # at the text held aside, over the whole budget


class Budget(NamedTuple):
    """By tokens, by minutes, or whichever comes first. None and None is TOKENS."""

    tokens: int | None = None
    minutes: float | None = None

    def most_tokens(self) -> float:
        return self.tokens or (TOKENS if self.minutes is None else math.inf)

    def seconds(self) -> float:
        return math.inf if self.minutes is None else 60 * self.minutes


class Length(NamedTuple):
    steps: int
    per_step: int  # sequences, over all processes
    look_every: int  # steps
    seconds: float  # when it ends at the latest, of all sittings together


def length(recipe: Recipe, tokens: float, seconds: float, window: int, aside_tokens: int) -> Length:
    """Steps of the recipe's batch, smaller where that would be fewer than LEAST_STEPS; looks cost a fifth at most."""
    per_step = max(1, min(recipe.batch_tokens, int(tokens) // LEAST_STEPS) // window)
    steps = max(1, round(tokens / (per_step * window)))
    look_every = math.ceil(max(steps / LOOKS, 5 * aside_tokens / (per_step * window)))
    return Length(steps, per_step, look_every, seconds)


def rate_at(recipe: Recipe, step: int, steps: int) -> float:
    """Linear to recipe.rate, then half a cosine to recipe.last_rate at the last step."""
    rising = max(1, round(recipe.warmup * steps))
    if step < rising:
        return recipe.rate * (step + 1) / rising
    along = (step - rising) / max(1, steps - 1 - rising)
    return recipe.last_rate + (recipe.rate - recipe.last_rate) * (1 + math.cos(math.pi * along)) / 2


def tokens_within(
    seconds: float, trainee: Trainee, examples: Sequence[Example], mixed: Callable[[], AbstractContextManager[Any]],
    n_processes: int,
) -> int:  # fmt: skip
    """By the speed of a first pass, in four fifths of the time: the rest goes to looks."""
    import torch

    device = next(iter(trainee.parameters.values())).device
    some = examples[: max(1, MICRO_TOKENS[device.type] // len(examples[0].tokens))]
    for _ in range(2):  # the first warms up
        began = time.monotonic()
        with mixed():
            loss = trainee.loss(as_batch(some, device), 0.0)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took = time.monotonic() - began
    for p in trainee.parameters.values():
        p.grad = None
    return max(1, int(0.8 * seconds / took * n_processes * sum(len(e.tokens) for e in some)))
