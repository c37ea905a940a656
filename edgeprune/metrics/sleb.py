"""SLEB: whole blocks, one at a time, the one whose absence leaves the text likeliest; rated again after each removal.

The first and the last block stay. Song et al. 2024, arXiv:2402.09025.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeprune.metrics._search import Cut, Half, greedy, loss
from edgeprune.types import Blocks

SOURCE = "SLEB, Song et al. 2024, arXiv:2402.09025"


def path(model: Any, windows: list[list[int]], max_steps: int, progress: Callable[[int, int], None]) -> list[Blocks]:
    return greedy(model, windows, max_steps, progress, candidates=inner_blocks, damage=loss)


def inner_blocks(kept: list[Half]) -> list[Cut]:
    return [(k, k + 1) for k in range(2, len(kept) - 2, 2)]
