"""Perplexity by removal: the perplexity of the model with one block left out.

Shortened LLaMA, Kim et al. 2024, arXiv:2402.02834, section 3.1 (PPL criterion).
"""

from __future__ import annotations

import math
from typing import Any

from edgeprune.blocks import kept_sublayers, whole, without_block
from edgeprune.metrics._sweep import measured_on

SOURCE = "Shortened LLaMA, Kim et al. 2024, arXiv:2402.02834, section 3.1"


def rate(model: Any, windows: list[list[int]], work: Any) -> list[float]:
    n = len(model.model.layers)
    without = [tuple(kept_sublayers(without_block(whole(n), i))) for i in range(n)]
    measure = measured_on(model, windows, work, ["loss"])
    found = measure(without, range(len(windows)), lambda done: work.progress(done, len(windows)))
    n_tokens = sum(len(w) - 1 for w in windows)
    return [math.exp(math.fsum(window[0][i][0] for window in found) / n_tokens) for i in range(n)]
