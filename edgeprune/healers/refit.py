"""Closed-form refit (ours): output projections solved anew by ridge regression on their own inputs, to give what the removed
sub-layers gave. No gradients, no cost at run time.

D = argmin ‖f D − r‖² + λ m ‖D‖² = (Σfᵀf + λ m I)⁻¹ Σfᵀr with f what goes into the projection of the pruned model, r what the
whole model's stream has there that the pruned one's lacks, and m the mean of the diagonal: ridge towards the old weights
(Hoerl and Kennard 1970). Every token counts, the first one too: it feeds the attention sink, and a fit that does not see it
destroys it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgeprune.healers._moments import Moments, Seen, Solution, moments, together

if TYPE_CHECKING:
    import torch

SOURCE = "closed-form refit (edgeprune)"
BIASES = True  # they stay as they are
THINNER = True
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Half of what is solved, at every projection in turn, leaves less damage than all of it: what the first ones give beyond the
# text they were fitted to is noise to those after them, and these see what is still lacking (benchmarks/healing).
SCOPES: dict[str, Callable[[bool], float]] = {
    "projections before a cut": float,
    "half of the way, projections from the first cut on": lambda before_cut: 0.5,
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

    @functools.cache
    def left(at: int) -> float:
        found = 0.0
        for kind in of_kinds:
            others = together([m for m in of_kinds if m is not kind])
            found += kind.part_left(ridge(others, STRENGTHS[at])) / len(of_kinds)
        return found

    best = _lowest(left, len(STRENGTHS))
    return Solution(ridge(every, STRENGTHS[best]), STRENGTHS[best], left(best)) if left(best) < 1 else None


def _lowest(height: Callable[[int], float], n: int) -> int:
    """Of 0 … n−1 the one at which a walk downhill from the middle ends: too weak and too strong a ridge are both worse."""
    at = n // 2
    while (best := min((i for i in (at, at - 1, at + 1) if 0 <= i < n), key=height)) != at:
        at = best
    return at


def ridge(found: Moments, strength: float) -> torch.Tensor:
    """(Σfᵀf + strength · mean(diag Σfᵀf) · I)⁻¹ Σfᵀr (k, d); NaN where rounding leaves that sum without an inverse."""
    import torch

    damped = found.ff.clone()
    damped.diagonal().add_(strength * damped.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(damped)
    return torch.cholesky_solve(found.fr, factor) if not failed else torch.full_like(found.fr, math.nan)
