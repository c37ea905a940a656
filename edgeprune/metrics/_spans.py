"""Contiguous runs of blocks, rated by how alike the streams at their two ends are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from edgeprune.blocks import whole
from edgeprune.metrics._streams import per_window
from edgeprune.types import Blocks

if TYPE_CHECKING:
    import torch


def span_path(
    model: Any, windows: list[list[int]], max_steps: int, work: Any,
    distance: Callable[[list[torch.Tensor]], torch.Tensor],
) -> list[Blocks]:  # fmt: skip
    """The path of best runs. distance: the n + 1 streams (t, d) between the blocks of one window -> (n + 1, n + 1)."""
    import torch

    def read(around: Iterator[torch.Tensor]) -> list[list[list[float]]]:
        between_blocks = list(islice(around, 0, None, 2))
        return [distance(list(of_one)).tolist() for of_one in zip(*between_blocks, strict=True)]

    held = 3 * (len(model.model.layers) + 1)  # `distance` stacks them and scales them
    found = per_window(model, windows, work, read, held)
    return best_runs(torch.tensor(found, dtype=torch.float64).sum(0), max_steps)


def cosines(streams: torch.Tensor) -> torch.Tensor:
    """cos(h_i, h_j) of every two streams at every token: (t, s, d) -> (t, s, s)."""
    import torch

    unit = torch.nn.functional.normalize(streams, dim=-1)
    return unit @ unit.mT


def best_runs(distance: torch.Tensor, max_steps: int) -> list[Blocks]:
    """The whole model, then without its best run of 1, 2, … blocks; one block always stays.

    distance (n + 1, n + 1): entry l, m compares the streams before blocks l and m, so the run is l … m − 1. Each length
    has its own best run, so the block lists need not be nested.
    """
    n_blocks = len(distance) - 1
    lists = [whole(n_blocks)]
    for length in range(1, min(max_steps, n_blocks - 1) + 1):
        along = distance.diagonal(length).tolist()
        first = min(range(len(along)), key=along.__getitem__)
        lists.append(tuple(b for b in lists[0] if b.attn not in range(first, first + length)))
    return lists
