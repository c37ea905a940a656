"""Angular span: the run of n blocks that turns the last token's stream least.

argmin_l E[ (1/π) arccos cos(h_l , h_l+n) ] at the last token of each window, h_l the stream before block l; blocks
l … l + n − 1 go. The Unreasonable Ineffectiveness of the Deeper Layers, Gromov et al. 2024, arXiv:2403.17887.

Step n of the path is the best run of n, so a step need not contain the one before it: a plan takes one step.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edgeprune.metrics._spans import cosines, span_path
from edgeprune.types import Blocks

if TYPE_CHECKING:
    import torch

SOURCE = "The Unreasonable Ineffectiveness of the Deeper Layers, Gromov et al. 2024, arXiv:2403.17887"


def path(model: Any, windows: list[list[int]], max_steps: int, work: Any) -> list[Blocks]:
    return span_path(model, windows, max_steps, work, _angles)


def _angles(between_blocks: list[torch.Tensor]) -> torch.Tensor:
    import torch

    # In float64: near 1, arccos takes the square root of an error, and 1e-7 in the cosine is 4e-4 in the angle.
    at_last_token = torch.stack([h[-1].double() for h in between_blocks])
    return cosines(at_last_token).clamp(-1, 1).arccos() / math.pi
