"""Perplexity by removal: the perplexity of the model with one block left out.

Shortened LLaMA, Kim et al. 2024, arXiv:2402.02834, section 3.1 (PPL criterion).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgeprune.blocks import whole, without_block
from edgeprune.metrics._halves import kept
from edgeprune.metrics._sweep import Measured, measured_on

SOURCE = "Shortened LLaMA, Kim et al. 2024, arXiv:2402.02834, section 3.1"


def rate(model: Any, windows: list[list[int]], work: Any) -> list[float]:
    return by_removal(measured_on(model, windows, work, ["loss"]), len(model.model.layers), windows, work)


def by_removal(measured: Measured, n: int, windows: Sequence[Sequence[int]], work: Any) -> list[float]:
    """Without each of the `n` blocks in turn, by the loss that `measured` tells; infinite where it is. Needs no torch."""
    without = [kept(without_block(whole(n), i)) for i in range(n)]
    found = measured(without, range(len(windows)), lambda done: work.progress(done, len(windows)))
    n_tokens = sum(len(w) - 1 for w in windows)
    return [math.exp(math.fsum(window[0][i][0] for window in found) / n_tokens) for i in range(n)]
