"""The search of `greedy_kl` over single halves of blocks: it may leave a block without attention or feed-forward.

A step removes one attention or one feed-forward, about half of what a step of `greedy_kl` removes. Runtimes hold such
blocks for some families only; a plan refuses the steps its runtime can't run.
"""

from __future__ import annotations

from edgeprune.metrics._halves import Kept

SOURCE = "edgeprune: search over halves of blocks by KL against the whole model"
DAMAGE = "kl"


def children(kept: Kept) -> list[Kept]:
    return [kept[:k] + kept[k + 1 :] for k in range(len(kept))] if len(kept) > 1 else []
