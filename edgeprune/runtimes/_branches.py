"""Likelihoods in a runtime of batch 1: what texts share at their beginning is computed once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from edgeprune.errors import InputRejected

Pair = tuple[Sequence[int], Sequence[int]]  # context, continuation: neither is empty
_ROWS = 128  # positions whose logits are held at once: 128 × 150k vocabulary × 4 bytes = 77 MB


class Cached(Protocol):
    def reset(self) -> None: ...

    def append(self, tokens: Sequence[int], n_last: int) -> np.ndarray:
        """Put tokens after what is cached; logits (n_last, n_vocab) float32 of the last of them."""

    def rewind(self, n_tokens: int) -> bool:
        """Keep the first n_tokens of the cache. Where it can't: empty it, and False."""


def log_likelihoods(session: Cached, pairs: Sequence[Pair], tick: Callable[[int], None]) -> list[tuple[float, bool]]:
    """See Session.log_likelihoods. Texts are taken in the order of their tokens, so each goes on from the beginning it
    shares with the one before it; the logits that the next one needs of that beginning are kept."""
    texts = [[*context, *continuation] for context, continuation in pairs]
    order = sorted(range(len(pairs)), key=lambda i: texts[i])
    found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    path: list[int] = []  # tokens in the cache
    rows: dict[int, np.ndarray] = {}  # position -> logits, of those in the cache
    session.reset()
    for done, (i, following) in enumerate(itertools.zip_longest(order, order[1:])):
        text, first = texts[i], len(pairs[i][0]) - 1  # the last token is only predicted
        n = len(text) - 1
        shared_next = 0 if following is None else _shared(text[:n], texts[following][:-1])
        keep = _shared(path, text[:n])
        keep = next((p for p in range(first, keep) if p not in rows), keep)
        if keep < len(path) and not session.rewind(keep):
            keep, rows = 0, {}
        known = [rows[p] for p in range(first, keep)]
        total, greedy = rate(np.stack(known), text[first + 1 : keep + 1]) if known else (0.0, True)
        rows = {p: row for p, row in rows.items() if p < min(keep, shared_next)}
        for start in range(max(first, keep), n, _ROWS):
            stop = min(start + _ROWS, n)
            logits = session.append(text[keep:stop], stop - start)
            more, also = rate(logits, text[start + 1 : stop + 1])
            total, greedy, keep = total + more, greedy and also, stop
            rows |= {p: logits[p - start].copy() for p in range(start, min(stop, shared_next))}
        path = text[:n]
        found[i] = total, greedy
        tick(done + 1)
    return found


def rate(logits: np.ndarray, tokens: Sequence[int]) -> tuple[float, bool]:
    """Summed log-probability, nats, of tokens (t,) given logits (t, v) before each; whether each is the likeliest."""
    targets = np.asarray(tokens)
    top = logits.max(-1)
    if not np.isfinite(top).all():
        raise InputRejected("the model gives logits that are not finite; export it again")
    spread = np.log(np.exp(logits - top[:, None]).sum(-1, dtype=np.float64))
    chosen = logits[np.arange(len(targets)), targets]
    return float((chosen - top - spread).sum()), bool((logits.argmax(-1) == targets).all())


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    n = min(len(a), len(b))
    return next((k for k in range(n) if a[k] != b[k]), n)
