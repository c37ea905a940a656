"""BlockPruner: halves of blocks, one at a time, the one whose absence leaves the lowest perplexity; rated again after
each removal.

A step removes one attention or one feed-forward, about half of what a step of other methods removes.
Zhong et al. 2024, arXiv:2406.10594.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeprune.metrics._search import Cut, Half, greedy, loss
from edgeprune.types import Blocks

SOURCE = "BlockPruner, Zhong et al. 2024, arXiv:2406.10594"


def path(model: Any, windows: list[list[int]], max_steps: int, progress: Callable[[int, int], None]) -> list[Blocks]:
    return greedy(model, windows, max_steps, progress, candidates=single_halves, damage=loss)


def single_halves(kept: list[Half]) -> list[Cut]:
    return [(k,) for k in range(len(kept))] if len(kept) > 1 else []
