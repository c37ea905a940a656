"""Cosine span: the run of n blocks whose input and output are most alike.

argmax_l E_t[ cos(h_l,t , h_l+n,t) ], h_l the stream before block l, over every token; blocks l … l + n − 1 go.
LLM-Streamline, Chen et al. 2024, arXiv:2403.19135 (its choice of layers, not its replacement network).

Step n of the path is the best run of n, so a step need not contain the one before it: a plan takes one step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeprune.metrics._spans import cosines, span_path
from edgeprune.types import Blocks

if TYPE_CHECKING:
    import torch

SOURCE = "LLM-Streamline, Chen et al. 2024, arXiv:2403.19135"


def path(model: Any, windows: list[list[int]], max_steps: int, work: Any) -> list[Blocks]:
    return span_path(model, windows, max_steps, work, _unlikeness)


def _unlikeness(between_blocks: list[torch.Tensor]) -> torch.Tensor:
    import torch

    return -cosines(torch.stack(between_blocks, dim=1)).sum(0, dtype=torch.float64)
