"""Relative magnitude: how large a block's update is beside what leaves the block.

RM_i = E_t[ ‖h_i+1,t − h_i,t‖ / ‖h_i+1,t‖ ], the ‖f(x)‖ / ‖x + f(x)‖ of a residual block, over every token.
Weight subcloning, Samragh et al. 2023, arXiv:2312.09299; the baseline of that name in ShortGPT and BlockPruner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeprune.metrics._streams import mean_change

if TYPE_CHECKING:
    import torch

SOURCE = "Weight subcloning, Samragh et al. 2023, arXiv:2312.09299"


def rate(model: Any, windows: list[list[int]], work: Any) -> list[float]:
    return mean_change(model, windows, work, _update_ratio)


def _update_ratio(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (y - x).norm(dim=-1) / y.norm(dim=-1)
