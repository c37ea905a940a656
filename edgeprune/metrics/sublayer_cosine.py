"""Sub-layer cosine: how much an attention or a feed-forward turns the stream, each rated by itself.

S = 1 − E_t[ cos(x_t , x_t + F(norm(x))_t) ], F with its post norm and residual scale where the family has them.
LLM-Drop, He et al. 2024, arXiv:2406.15786 (its joint drop of attention and feed-forwards).

A step leaves out one half; an attention and the feed-forward that then follows it make one block. Twice the steps of a
metric that removes whole blocks remove as much.
"""

from __future__ import annotations

from typing import Any

from edgeprune.blocks import from_sublayers, kept_sublayers, whole
from edgeprune.metrics._streams import cosine_distance, mean_change
from edgeprune.types import Blocks

SOURCE = "LLM-Drop, He et al. 2024, arXiv:2406.15786"


def path(model: Any, windows: list[list[int]], max_steps: int, work: Any) -> list[Blocks]:
    """Halves left out in order of damage; one always stays."""
    halves = kept_sublayers(whole(len(model.model.layers)))
    damage = mean_change(model, windows, work, cosine_distance, sublayers=True)
    order = sorted(range(len(halves)), key=lambda k: (damage[k], k))
    steps = range(min(max_steps, len(halves) - 1) + 1)
    return [from_sublayers([halves[k] for k in sorted(order[n:])]) for n in steps]
