"""The sequences of every step, drawn from the step's number, and how they become tensors."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeprune.heal_text import Example
from edgeprune.healers._trainee import Batch

if TYPE_CHECKING:
    import torch

MICRO_TOKENS = {"cpu": 512, "cuda": 8192}  # of one forward pass; one sequence at least


def batch_of(examples: Sequence[Example], step: int, per_step: int, seed: int) -> list[Example]:
    """Of all epochs in a row, each in an order of its own."""
    out = []
    for at in range(step * per_step, (step + 1) * per_step):
        epoch, i = divmod(at, len(examples))
        out.append(examples[_order(len(examples), epoch, seed)[i]])
    return out


@functools.lru_cache(maxsize=2)
def _order(n: int, epoch: int, seed: int) -> list[int]:
    return random.Random(f"{seed} {epoch}").sample(range(n), n)


def micro(batch: Sequence[Example], most: int) -> list[list[Example]]:
    """In turn as many as fit in `most` tokens, filled up to the longest; those of like length together."""
    out: list[list[Example]] = []
    for example in sorted(batch, key=lambda e: -len(e.tokens)):
        if out and len(out[-1][0].tokens) * (len(out[-1]) + 1) <= most:
            out[-1].append(example)
        else:
            out.append([example])
    return out


def as_batch(examples: Sequence[Example], device: Any) -> Batch:
    import torch

    width = max(len(e.tokens) for e in examples)

    def rows(of: Callable[[Example], Sequence[Any]], fill: Any) -> torch.Tensor:
        return torch.tensor([[*of(e), *[fill] * (width - len(e.tokens))] for e in examples], device=device)

    return Batch(
        rows(lambda e: e.tokens, 0), rows(lambda e: e.learn, False), rows(lambda e: [True] * len(e.tokens), False)
    )
