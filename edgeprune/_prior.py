"""What is known of the terms of a time before any row is measured; `_fit` starts from it. No numpy."""

from __future__ import annotations

import math
from typing import NamedTuple

Z = 1.645  # standard deviations on either side of a 90 % interval


class Term(NamedTuple):
    """A positive number and the standard deviation of its logarithm."""

    name: str
    value: float
    spread: float

    @property
    def low(self) -> float:
        return self.value * math.exp(-Z * self.spread)

    @property
    def high(self) -> float:
        return self.value * math.exp(Z * self.spread)


class Prior(NamedTuple):
    """What is known before any row: `noise` is the spread of one row about the formula, as a logarithm."""

    terms: tuple[Term, ...]
    noise: float
    kind_spread: float = 0.0
    n_rows: int = 0
    n_devices: int = 0
