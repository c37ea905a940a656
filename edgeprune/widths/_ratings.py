"""What width pruning can remove, rated: groups of heads that share keys and values, and channels of the feed-forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Ratings(NamedTuple):
    """One list per layer; less is removed first. Layers compare with each other, and groups with channels, only where the
    method says so (SPREAD "global")."""

    groups: list[list[float]]
    channels: list[list[float]]
    attn_means: list[list[float]] | None = None  # mean input of each layer's output projections, where means compensate
    ffn_means: list[list[float]] | None = None


def by_group(columns: torch.Tensor, n_groups: int, mean: bool = False) -> torch.Tensor:
    """Ratings of an attention output's input columns (…, n_groups · width), or of rows alike, as one per group."""
    grouped = columns.reshape(*columns.shape[:-1], n_groups, -1)
    return grouped.mean(-1) if mean else grouped.sum(-1)


def lists(rows: Sequence[torch.Tensor]) -> list[list[float]]:
    return [row.double().tolist() for row in rows]
