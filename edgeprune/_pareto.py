"""The front of damage × memory × speed, thinned to points that differ enough to choose between."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune._candidates import Candidate

STEP = 0.1  # a point earns its place with this share less memory or more speed than every less damaging one


def front(found: Sequence[Candidate]) -> list[Candidate]:
    """Least damage first; none is matched or beaten in all three by another candidate.

    Thinned as in Laumanns et al. 2002 (ε-dominance, doi:10.1162/106365602760234108): whatever is left out, a point that
    is kept does no more damage and is within STEP of it in memory and in speed.
    """
    kept: list[Candidate] = []
    for c in sorted(found, key=_order):
        if not any(_near(k, c) for k in kept):
            kept.append(c)
    return kept


def _order(c: Candidate) -> tuple:
    return c.damage.order, c.prediction.memory_bytes, -_speed(c), -c.kept, c.runtime, c.quant, c.kv_type


def _near(k: Candidate, c: Candidate) -> bool:
    """Whether `k`, which does no more damage, is as good as `c` or nearly."""
    room = k.prediction.memory_bytes <= c.prediction.memory_bytes * (1 + STEP)
    return room and _speed(k) * (1 + STEP) >= _speed(c)


def _speed(c: Candidate) -> float:
    return c.prediction.decode_tok_per_s or 0.0
