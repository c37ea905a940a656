"""BlockPruner: halves of blocks, one at a time, the one whose absence leaves the lowest perplexity; rated again after
each removal.

A step removes one attention or one feed-forward, about half of what a step of other methods removes.
Zhong et al. 2024, arXiv:2406.10594.
"""

from __future__ import annotations

from edgeprune.metrics._halves import Kept

SOURCE = "BlockPruner, Zhong et al. 2024, arXiv:2406.10594"
DAMAGE = "loss"


def children(kept: Kept) -> list[Kept]:
    return [kept[:k] + kept[k + 1 :] for k in range(len(kept))] if len(kept) > 1 else []
