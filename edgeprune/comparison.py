"""What comparing methods yields: what each removes, what that does to each text, and how sure the differences are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from edgeprune.types import SCHEMA_VERSION, Blocks, Record, Text, six


class Difference(Record):
    """How much more KL than another method's cut of the same amount, nats per token: mean over windows, 95 % interval."""

    than: str  # a metric
    mean: float
    low: float
    high: float


class Damage(Record):
    """What a cut does to one text, nats per token. The tuples hold the mean of each window."""

    kl: float  # KL(whole ‖ pruned)
    kl_stderr: float | None  # over windows; None of a single one
    perplexity: float
    perplexity_stderr: float | None
    more: Difference | None = None  # than the reference; None for the reference itself, and of a single window
    window_kl: tuple[float, ...]
    window_loss: tuple[float, ...]


class Cut(Record):
    """The step of a metric's path that removes most without removing more than was asked."""

    asked_blocks: int  # worth of parameters
    blocks: Blocks
    removed: str
    params_removed: int
    damage: tuple[Damage, ...]  # on each of Comparison.texts
    on_calibration: Damage


class Contender(Record):
    metric: str
    source: str  # the paper
    precision: str  # of the weights while it chose
    seconds: float  # to choose its path as far as the largest amount
    cpu_seconds: float
    cuts: tuple[Cut, ...]


class Comparison(Record):
    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    fingerprint: str
    n_blocks: int
    params: int
    block_params: float  # mean over the blocks: "a block's worth"
    effort: int  # of our searches
    precision: str  # of the weights while cuts are measured
    calibration: Text
    texts: tuple[Text, ...]
    whole_perplexity: tuple[float, ...]  # on each text
    reference: str | None  # the metric that others are compared with; None: the least damaging, at each amount and text
    contenders: tuple[Contender, ...]
    versions: dict[str, str]


def ranked(comparison: Comparison, amount: int, text: int) -> list[Contender]:
    """Contenders from the least damaging on; of equals, as they were asked for. amount, text: positions."""
    return sorted(comparison.contenders, key=lambda c: c.cuts[amount].damage[text].kl)


def damage(windows: Sequence[tuple[float, float]], than: tuple[str, Sequence[tuple[float, float]]] | None) -> Damage:
    """From (KL, loss) of each window; `than`: a metric, and the same windows of its cut."""
    kl, loss = zip(*windows, strict=True)
    perplexity, spread = math.exp(statistics.fmean(loss)), stderr(loss)
    return Damage(
        kl=_round(statistics.fmean(kl)),
        kl_stderr=_round(stderr(kl)),
        perplexity=_round(perplexity),
        perplexity_stderr=_round(None if spread is None else perplexity * spread),
        more=than and difference(kl, than[0], [other for other, _ in than[1]]),
        window_kl=tuple(map(_round, kl)),
        window_loss=tuple(map(_round, loss)),
    )


def difference(kl: Sequence[float], than: str, other: Sequence[float]) -> Difference | None:
    """Of pairs, one per window, with the interval of Student's t; None of a single pair."""
    if len(kl) < 2:
        return None
    more = [a - b for a, b in zip(kl, other, strict=True)]
    mean, half = statistics.fmean(more), t_95(len(more) - 1) * stderr(more)
    return Difference(than=than, mean=_round(mean), low=_round(mean - half), high=_round(mean + half))


def stderr(x: Sequence[float]) -> float | None:
    return statistics.stdev(x) / math.sqrt(len(x)) if len(x) > 1 else None


def t_95(freedom: int) -> float:
    """Within ± this lie 95 % of Student's t; from its closed form (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""

    def within(angle: float) -> float:
        """P(|t| < √freedom · tan(angle))."""
        sin, cos = math.sin(angle), math.cos(angle)
        odd = freedom % 2
        total = term = cos if odd else 1.0
        for k in range(2 + odd, freedom, 2):
            term *= cos * cos * (k - 1) / k
            total += term
        return 2 / math.pi * (angle + sin * total * (freedom > 1)) if odd else sin * total

    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if within(middle) < 0.95 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _round(x: float | None) -> float | None:
    return None if x is None else six(x)
