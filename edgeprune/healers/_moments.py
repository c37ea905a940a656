"""What a least-squares fit needs to know of any number of tokens: sums of products, no activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Moments(NamedTuple):
    """Sums over the tokens of one kind of text, float64, of what goes into an output projection, f (tokens, k), and of what
    its output lacks, r (tokens, d)."""

    ff: torch.Tensor  # Σ fᵀf (k, k)
    fr: torch.Tensor  # Σ fᵀr (k, d)
    rr: float  # Σ ‖r‖²

    def left(self, delta: torch.Tensor) -> float:
        """Σ ‖f D − r‖² of a change D (k, d): tr(DᵀΣfᵀf D) − 2 tr(DᵀΣfᵀr) + Σ‖r‖²."""
        return float((delta * (self.ff @ delta)).sum() - 2 * (delta * self.fr).sum()) + self.rr


class Solution(NamedTuple):
    """delta (k, d): the projection gives f (Wᵀ + D). strength: of the ridge, relative to the mean of the diagonal.
    left_out: what is left of Σ‖r‖² where each kind in turn is predicted from the others, as a fraction; None where not asked.
    """

    delta: torch.Tensor
    strength: float | None
    left_out: float | None


def together(moments: list[Moments]) -> Moments:
    return Moments(
        sum((m.ff for m in moments[1:]), moments[0].ff),
        sum((m.fr for m in moments[1:]), moments[0].fr),
        sum(m.rr for m in moments),
    )
