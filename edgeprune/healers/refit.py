"""Closed-form refit (ours): output projections solved anew by ridge regression on their own inputs, to give what the removed
sub-layers gave. No gradients, no cost at run time.

D = argmin ‖f D − r‖² + λ m ‖D‖² = (Σfᵀf + λ m I)⁻¹ Σfᵀr with f what goes into the projection of the pruned model, r what the
whole model's stream has there that the pruned one's lacks, and m the mean of the diagonal: ridge towards the old weights
(Hoerl and Kennard 1970). Every token counts, the first one too: it feeds the attention sink, and a fit that does not see it
destroys it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgeprune.healers._moments import Moments, Seen, Solution, moments, together

if TYPE_CHECKING:
    import torch

SOURCE = "closed-form refit (edgeprune)"
BIASES = True  # they stay as they are
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SCOPES: dict[str, Callable[[bool], bool]] = {
    "projections before a cut": lambda before_cut: before_cut,
    "projections from the first cut on": lambda before_cut: True,
}


def solve(seen: Sequence[Seen], weight: torch.Tensor) -> Solution | None:
    """The change at the strength that does best on kinds left out: each in turn is predicted from all others, and counts by the
    part of its squared error that is left, so that a kind of text whose stream is far off does not decide alone.

    None where there is nothing to give, or where no strength helps on what was left out.
    """
    of_kinds = [moments(s) for s in seen]
    every = together(of_kinds)
    if not every.rr.any() or not every.ff.any():
        return None
    left = [0.0] * len(STRENGTHS)
    for i, kind in enumerate(of_kinds):
        others = together([m for j, m in enumerate(of_kinds) if j != i])
        for s, strength in enumerate(STRENGTHS):
            left[s] += kind.part_left(ridge(others, strength)) / len(of_kinds)
    best = min(range(len(STRENGTHS)), key=left.__getitem__)
    if not left[best] < 1:
        return None
    return Solution(ridge(every, STRENGTHS[best]), STRENGTHS[best], left[best])


def ridge(found: Moments, strength: float) -> torch.Tensor:
    """(Σfᵀf + strength · mean(diag Σfᵀf) · I)⁻¹ Σfᵀr (k, d); NaN where rounding leaves that sum without an inverse."""
    import torch

    damped = found.ff.clone()
    damped.diagonal().add_(strength * damped.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(damped)
    return torch.cholesky_solve(found.fr, factor) if not failed else torch.full_like(found.fr, math.nan)
