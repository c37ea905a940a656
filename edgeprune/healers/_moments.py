"""What a least-squares fit needs to know of any number of tokens: sums of products, no activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Moments(NamedTuple):
    """Sums over the tokens of one kind of text, float64, of what goes into an output projection, f (tokens, k), and of what
    its output lacks, r (tokens, d)."""

    ff: torch.Tensor  # Σ fᵀf (k, k)
    fr: torch.Tensor  # Σ fᵀr (k, d)
    rr: torch.Tensor  # Σ r² (d)

    def left(self, delta: torch.Tensor) -> torch.Tensor:
        """Σ (f D − r)² (d) of a change D (k, d): diag(DᵀΣfᵀf D − 2 DᵀΣfᵀr) + Σ r²."""
        return (delta * (self.ff @ delta - 2 * self.fr)).sum(0) + self.rr


class Solution(NamedTuple):
    """delta (k, d): the projection gives f (Wᵀ + D). strength: of the ridge, relative to the mean of the diagonal. left_out: what
    is left of Σ‖r‖² where each kind in turn is predicted from the others, as a fraction. None where a method has no such thing.
    """

    delta: torch.Tensor
    strength: float | None
    left_out: float | None


def together(moments: Sequence[Moments]) -> Moments:
    return Moments(*(sum(of[1:], of[0]) for of in zip(*moments, strict=True)))
