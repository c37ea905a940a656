"""What a healer sees at an output projection, and what a least-squares fit needs to know of it: sums of products."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

TOGETHER = 8  # windows of one product: as many more take no less time


class Seen(NamedTuple):
    """g windows of t tokens at an output projection of the pruned model."""

    inputs: torch.Tensor  # of the projection (g, t, k)
    stream: torch.Tensor  # after its sub-layer (g, t, d)
    target: torch.Tensor  # the whole model's stream that the next kept sub-layer should get (g, t, d)
    scale: float  # the sub-layer's output is added to the stream times this

    def lacks(self, windows: int | slice) -> torch.Tensor:
        """What the projection should give as well, float32 (t, d) or (some windows, t, d)."""
        return (self.target[windows].float() - self.stream[windows].float()) / self.scale


class Scope(NamedTuple):
    """One way to solve a model anew, that is tried."""

    # What went into an output projection and what is wanted, and its weight (d, k): the change D (k, d), so that it gives
    # f (Wᵀ + D); None leaves it alone.
    solve: Callable[[Seen, torch.Tensor], torch.Tensor | None]
    # How much of the change is made, 0 does not ask: of whether what comes right after the sub-layer was removed, or some of
    # the sub-layer itself. Nothing before the first cut is asked for.
    share: Callable[[bool], float]


class Moments(NamedTuple):
    """Sums over tokens, float64, of what goes into an output projection, f (tokens, k), and of what its output lacks, r
    (tokens, d)."""

    ff: torch.Tensor  # Σ fᵀf (k, k)
    fr: torch.Tensor  # Σ fᵀr (k, d)


def moments(seen: Seen) -> Moments:
    """Products of some windows in float32, their sum in float64."""
    import torch

    k, d = seen.inputs.shape[-1], seen.stream.shape[-1]
    like = {"dtype": torch.float64, "device": seen.inputs.device}
    found = Moments(torch.zeros(k, k, **like), torch.zeros(k, d, **like))
    with _factors_of(seen.inputs.dtype):
        for at in range(0, len(seen.inputs), TOGETHER):
            some = slice(at, at + TOGETHER)
            f, r = seen.inputs[some].float().flatten(0, 1), seen.lacks(some).flatten(0, 1)
            found.ff.add_(f.T @ f)
            found.fr.add_(f.T @ r)
    return found


@contextlib.contextmanager
def _factors_of(dtype: torch.dtype) -> Iterator[None]:
    """Where hardware multiplies bfloat16 numbers, with sums in float32, it takes half the time. Products of what is bfloat16
    already are exact so; what is lacking, a difference of two, is rounded in its third digit, up and down alike."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if dtype == torch.bfloat16 else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
