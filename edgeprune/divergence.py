"""Perplexity and KL divergence from logits, in nats, without a second copy of the vocabulary for every token."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

CHUNK_TOKENS = 128  # 128 × 150k vocabulary × 4 bytes = 77 MB per temporary


class Divergence(NamedTuple):
    """Sums over the predicted tokens of one window."""

    nll: float
    nll_whole: float
    kl: float  # sum of KL(whole ‖ other)
    agree: int  # same most likely token
    tokens: int


def compare(whole_logp: torch.Tensor, other: torch.Tensor, tokens: torch.Tensor) -> Divergence:
    """Log-probabilities (t, v) of the whole model and logits of another on tokens (t,); 0…t-2 predict 1…t-1.

    KL(p ‖ q) = Σ p (log p − log q), Kullback and Leibler 1951.
    """
    nll = nll_whole = kl = 0.0
    agree = 0
    n = len(tokens) - 1
    for start in range(0, n, CHUNK_TOKENS):
        stop = min(start + CHUNK_TOKENS, n)
        p = whole_logp[start:stop]
        q = other[start:stop].float().log_softmax(-1)
        target = tokens[start + 1 : stop + 1, None]
        nll_whole -= p.gather(1, target).double().sum().item()
        nll -= q.gather(1, target).double().sum().item()
        agree += int((p.argmax(-1) == q.argmax(-1)).sum())
        kl += (p.exp() * (p - q)).sum(-1).double().sum().item()
    return Divergence(nll, nll_whole, kl, agree, n)


def mean_kl(whole: np.ndarray, other: np.ndarray) -> float:
    """Mean over positions of KL(whole ‖ other), from logits (t, v) of both; `compare`'s formula without torch."""
    total = 0.0
    for start in range(0, len(whole), CHUNK_TOKENS):
        p, q = (_log_softmax(x[start : start + CHUNK_TOKENS]) for x in (whole, other))
        total += float((np.exp(p) * (p - q)).sum(dtype=np.float64))
    return total / len(whole)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def nll(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Summed negative log-likelihood of tokens[1:], logits (t, v), tokens (t,)."""
    import torch.nn.functional as F

    return F.cross_entropy(logits[:-1].float(), tokens[1:], reduction="sum").double().item()
