"""What a healer sees at an output projection, and what a least-squares fit needs to know of it: sums of products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

TOGETHER = 8  # windows of one product: as many more take no less time


class Seen(NamedTuple):
    """g windows of t tokens of one kind of text, at an output projection of the pruned model."""

    inputs: torch.Tensor  # of the projection (g, t, k)
    stream: torch.Tensor  # after its sub-layer (g, t, d)
    target: torch.Tensor  # the whole model's stream that the next kept sub-layer should get (g, t, d)
    scale: float  # the sub-layer's output is added to the stream times this

    def lacks(self, windows: int | slice) -> torch.Tensor:
        """What the projection should give as well, float32 (t, d) or (some windows, t, d)."""
        return (self.target[windows].float() - self.stream[windows].float()) / self.scale


class Moments(NamedTuple):
    """Sums over the tokens of one kind of text, float64, of what goes into an output projection, f (tokens, k), and of what
    its output lacks, r (tokens, d)."""

    ff: torch.Tensor  # Σ fᵀf (k, k)
    fr: torch.Tensor  # Σ fᵀr (k, d)
    rr: torch.Tensor  # Σ r² (d)

    def left(self, delta: torch.Tensor) -> torch.Tensor:
        """Σ (f D − r)² (d) of a change D (k, d): diag(DᵀΣfᵀf D − 2 DᵀΣfᵀr) + Σ r²."""
        return (delta * (self.ff @ delta - 2 * self.fr)).sum(0) + self.rr

    def part_left(self, delta: torch.Tensor) -> float:
        """Of Σ‖r‖²: 0 where a change gives all that is lacking, 1 where it gives nothing, ∞ for one that is not a number."""
        return float((self.left(delta).sum() / self.rr.sum()).nan_to_num(math.inf))


class Solution(NamedTuple):
    """delta (k, d): the projection gives f (Wᵀ + D). strength: of the ridge, relative to the mean of the diagonal. left_out: the part
    of Σ‖r‖² that is left where each kind in turn is predicted from the others, their mean. None where a method has no such thing.
    """

    delta: torch.Tensor
    strength: float | None
    left_out: float | None


def moments(seen: Seen) -> Moments:
    """Products of some windows in float32, their sum in float64."""
    import torch

    k, d = seen.inputs.shape[-1], seen.stream.shape[-1]
    like = {"dtype": torch.float64, "device": seen.inputs.device}
    found = Moments(torch.zeros(k, k, **like), torch.zeros(k, d, **like), torch.zeros(d, **like))
    for at in range(0, len(seen.inputs), TOGETHER):
        some = slice(at, at + TOGETHER)
        f, r = seen.inputs[some].float().flatten(0, 1), seen.lacks(some).flatten(0, 1)
        found.ff.add_(f.T @ f)
        found.fr.add_(f.T @ r)
        found.rr.add_(r.square().sum(0))
    return found


def together(found: Sequence[Moments]) -> Moments:
    return Moments(*(sum(of[1:], of[0]) for of in zip(*found, strict=True)))
