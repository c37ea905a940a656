"""Cosine span: the run of n blocks whose input and output are most alike.

argmax_l E_t[ cos(h_l,t , h_l+n,t) ], h_l the stream before block l, over every token; blocks l … l + n − 1 go.
LLM-Streamline, Chen et al. 2024, arXiv:2403.19135 (its choice of layers, not its replacement network).

Step n of the path is the best run of n, so a step need not contain the one before it: a plan takes one step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeprune.metrics._spans import best_runs, cosines
from edgeprune.metrics._streams import streams
from edgeprune.types import Blocks

SOURCE = "LLM-Streamline, Chen et al. 2024, arXiv:2403.19135"


def path(model: Any, windows: list[list[int]], max_steps: int, progress: Callable[[int, int], None]) -> list[Blocks]:
    import torch

    n = len(model.model.layers)
    total = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    for done, window in enumerate(windows, 1):
        between_blocks = torch.stack(streams(model, window)[::2], dim=1)
        total += cosines(between_blocks).sum(0, dtype=torch.float64).cpu()
        progress(done, len(windows))
    return best_runs(-total, max_steps)
