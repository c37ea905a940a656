"""Losses in nats, summed over the learnt tokens of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgeprune.divergence import CHUNK_TOKENS

if TYPE_CHECKING:
    import torch

    from edgeprune.healers._trainee import Batch


def language(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """−Σ log q(token | those before it), of logits (n, t, v)."""
    from torch.nn.functional import cross_entropy

    target = batch.tokens[:, 1:][batch.learn[:, 1:]]
    return _by_chunks(lambda q, t: cross_entropy(q.float(), t, reduction="sum"), predicting(logits, batch), target)


def distilled(logits: torch.Tensor, whole_logits: torch.Tensor, batch: Batch, temperature: float = 1.0) -> torch.Tensor:
    """T² Σ KL(p ‖ q) of softened distributions, p the whole model's. Hinton, Vinyals and Dean 2015, arXiv:1503.02531."""

    def divergence(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        p, q = ((x.float() / temperature).log_softmax(-1) for x in (p, q))
        return temperature**2 * (p.exp() * (p - q)).sum()

    return _by_chunks(divergence, predicting(logits, batch), predicting(whole_logits, batch))


def logits_of(model: Any, batch: Batch) -> torch.Tensor:
    """(n, t, v)"""
    return model(input_ids=batch.tokens, use_cache=False).logits


def predicting(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The logits (tokens, v) from which learnt tokens are predicted, of all (n, t, v)."""
    return logits[:, :-1][batch.learn[:, 1:]]


def _by_chunks(f: Callable[..., torch.Tensor], *parts: torch.Tensor) -> torch.Tensor:
    """Σ f(chunk of each part). What f works in is made again for the gradient: it would be several times the logits."""
    from torch.utils.checkpoint import checkpoint

    chunks = zip(*(part.split(CHUNK_TOKENS) for part in parts), strict=True)
    return sum(checkpoint(f, *chunk, use_reentrant=False) for chunk in chunks)
