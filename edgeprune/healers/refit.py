"""Closed-form refit (ours): output projections solved anew by ridge regression on their own inputs, to give what the removed
sub-layers gave. No gradients, no cost at run time.

D = argmin ‖f D − r‖² + λ ‖diag(Σfᵀf)^½ D‖² = (Σfᵀf + λ diag Σfᵀf)⁻¹ Σfᵀr with f what goes into the projection of the pruned
model, r what the whole model's stream has there that the pruned one's lacks: ridge towards the old weights, of inputs brought
to one scale (Hoerl and Kennard 1970). Every token counts, the first one too: it feeds the attention sink, and a fit that does
not see it destroys it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgeprune.healers._moments import Moments, Scope, Seen, moments, together

if TYPE_CHECKING:
    import torch

SOURCE = "closed-form refit (edgeprune)"
BIASES = True  # they stay as they are
THINNER = True
UNUSED = 1e-9  # of the mean square of all inputs, so that one that is always 0 has an inverse too


def solve(strength: float, seen: Sequence[Seen], weight: torch.Tensor) -> torch.Tensor | None:
    """The change by all kinds of text; None where nothing is lacking."""
    every = together([moments(s) for s in seen])
    return ridge(every, strength) if every.fr.any() else None


def ridge(found: Moments, strength: float) -> torch.Tensor:
    """(Σfᵀf + strength · diag Σfᵀf)⁻¹ Σfᵀr (k, d); NaN where that sum has no inverse, as where it is not finite."""
    import torch

    damped = found.ff.clone()
    own = damped.diagonal()
    own.add_(strength * own + UNUSED * own.mean())
    factor, failed = torch.linalg.cholesky_ex(damped)
    return torch.cholesky_solve(found.fr, factor) if not failed else torch.full_like(found.fr, math.nan)


def _scope(strength: float, share: Callable[[bool], float]) -> Scope:
    return Scope(functools.partial(solve, strength), share)


# The same strength for all projections, chosen by KL on text held aside: chosen for each by the squared error on kinds left out
# it is the strongest offered nearly everywhere, and does worse. A third of what is solved, at every projection in turn, leaves
# less damage than all of it: what the first ones give beyond the text they were fitted to is noise to those after them, and
# these see what is still lacking. Weaker ones gain on more text of the kinds that heal, and not on others (benchmarks/healing).
SCOPES = {
    "projections before a cut": _scope(0.1, float),
    **{
        f"a third of the way, projections from the first cut on, λ {strength:g}": _scope(
            strength, lambda before_cut: 0.35
        )
        for strength in (0.1, 0.3)
    },
}
