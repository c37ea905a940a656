"""Greedy over all portable cuts by KL(whole ‖ pruned), rated again after each removal. Ours.

A cut removes two neighbours of the kept sequence: a block's attention and feed-forward (aligned), or one block's
feed-forward and the next one's attention (a seam). Both leave ordinary blocks, so every step is portable, and the
path is nested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeprune.metrics._search import Cut, Half, greedy, kl
from edgeprune.types import Blocks

SOURCE = "edgeprune: greedy over aligned and seam cuts by KL against the whole model"


def path(model: Any, windows: list[list[int]], max_steps: int, progress: Callable[[int, int], None]) -> list[Blocks]:
    return greedy(model, windows, max_steps, progress, candidates=neighbours, damage=kl)


def neighbours(kept: list[Half]) -> list[Cut]:
    return [(k, k + 1) for k in range(len(kept) - 1)] if len(kept) > 2 else []
