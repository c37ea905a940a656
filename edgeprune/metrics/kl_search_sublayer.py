"""The search of `kl_search` over single halves of blocks: it may leave a block without attention or feed-forward.

A step removes one attention or one feed-forward, about half of what a step of `kl_search` removes. Runtimes hold such
blocks for some families only; a plan refuses the steps its runtime can't run.
"""

from __future__ import annotations

from edgeprune.metrics._halves import Kept, missing, with_back

SOURCE = "edgeprune: search over halves of blocks by KL against the whole model"
DAMAGE = "kl"


def children(kept: Kept) -> list[Kept]:
    return [kept[:k] + kept[k + 1 :] for k in range(len(kept))] if len(kept) > 1 else []


def parents(kept: Kept, whole: Kept) -> list[Kept]:
    return [with_back(kept, (half,), whole) for half in missing(kept, whole)]
