"""Block influence: how much a block turns the stream.

BI_i = 1 − E_t[ cos(h_i,t , h_i+1,t) ], h_i the stream before block i, over every token.
ShortGPT, Men et al. 2024, arXiv:2403.03853, eq. 1. The last block's output is taken before the final norm
(transformers' hidden_states[-1] is after it).
"""

from __future__ import annotations

from typing import Any

from edgeprune.metrics._streams import cosine_distance, mean_change

SOURCE = "ShortGPT, Men et al. 2024, arXiv:2403.03853, eq. 1"


def rate(model: Any, windows: list[list[int]], work: Any) -> list[float]:
    return mean_change(model, windows, work, cosine_distance)
