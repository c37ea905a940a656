"""KL divergence and negative log-likelihood of every predicted token, in nats, from logits as llama.cpp hands them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

Use = Callable[[int, np.ndarray], None]  # first row, logits (rows, v): a view, gone afterwards
_ROWS = 16  # looked at together, so that they stay in the processor's cache


class Loss:
    """Negative log-likelihood of tokens[1:]; the last row predicts nothing."""

    def __init__(self, tokens: list[int]):
        self._targets = np.array(tokens[1:])

    def rate(self, first: int, logits: np.ndarray, out: np.ndarray) -> None:
        """Fill `out` (t − 1,) where these logits (rows, v) say something of it."""
        for at, x, lse in _shifted(first, logits, len(out)):
            out[at] = lse - x[np.arange(len(x)), self._targets[at]]


class Whole:
    """KL(whole ‖ other) = Σ p (log p − log q), p the whole model's distribution, for all predicted tokens."""

    def __init__(self, tokens: list[int], n_vocab: int):
        self._p = np.empty((len(tokens) - 1, n_vocab), np.float32)
        self._constant = np.empty(len(tokens) - 1)  # Σ p log p

    def learn(self, first: int, logits: np.ndarray) -> None:
        for at, x, lse in _shifted(first, logits, len(self._p)):
            np.exp(x - lse[:, None], out=self._p[at])
            self._constant[at] = self._mean(at, x) - lse

    def is_finite(self) -> bool:
        return bool(np.isfinite(self._constant).all())

    def rate(self, first: int, logits: np.ndarray, out: np.ndarray) -> None:
        for at, x, lse in _shifted(first, logits, len(out)):
            out[at] = np.maximum(self._constant[at] - (self._mean(at, x) - lse), 0)  # rounding

    def _mean(self, at: slice, x: np.ndarray) -> np.ndarray:
        return np.einsum("ij,ij->i", self._p[at], x)


def _shifted(first: int, logits: np.ndarray, n: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Some rows at a time, of the first `n` of all: which, their logits less the largest, and log Σ exp of these."""
    for start in range(0, min(len(logits), n - first), _ROWS):
        at = slice(first + start, min(first + start + _ROWS, first + len(logits), n))
        x = logits[at.start - first : at.stop - first]
        x = x - x.max(-1, keepdims=True)
        yield at, x, np.log(np.exp(x).sum(-1))
