"""ReplaceMe (Shopkhoev et al. 2025, arXiv:2505.02819), least squares: what was removed is replaced by one linear map T of the
feed-forward's output before it, which its output projection takes in.

T = (MᵀM + αI)⁻¹ Mᵀ(L_e − L_s + M), W ← TᵀW (their "LSTSQ", α = 0), with M the feed-forward's output, L_s the stream after it
and L_e the stream after the last removed block. Several cuts are taken in order, each with the stream that those before it
leave. M = f Wᵀ, so that all of it follows from the sums over f. T is the identity where nothing is lacking.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.healers._linear import least_squares
from edgeprune.healers._moments import Scope, Seen

if TYPE_CHECKING:
    import torch

SOURCE = "ReplaceMe, least squares (Shopkhoev et al. 2025, arXiv:2505.02819)"
BIASES = False


def solve(seen: Seen, weight: torch.Tensor) -> torch.Tensor | None:
    """W changes by (T − I)ᵀ W; weight (d, k). None where nothing is lacking."""
    less_identity = least_squares(seen, weight)
    return None if less_identity is None else weight.double().T @ less_identity


SCOPES = {"feed-forwards before a cut": Scope(solve, float)}
