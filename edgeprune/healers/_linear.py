"""ReplaceMe's linear map by least squares, from sums of products."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.healers._moments import Seen, moments

if TYPE_CHECKING:
    import torch

ALPHA = 0.0


def least_squares(seen: Seen, weight: torch.Tensor) -> torch.Tensor | None:
    """T − I = (MᵀM + αI)⁻¹ MᵀR (d, d), float64, with M = f Wᵀ what the projection gives, R what the stream lacks, α = 0 as theirs;
    weight (d, k). None where nothing is lacking."""
    import torch

    found, weight = moments(seen), weight.double()
    if not found.fr.any():
        return None
    mm = weight @ found.ff @ weight.T + ALPHA * torch.eye(len(weight)).to(weight)
    return torch.linalg.lstsq(mm, weight @ found.fr, driver=None if mm.is_cuda else "gelsd").solution
