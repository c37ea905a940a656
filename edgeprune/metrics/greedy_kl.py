"""Greedy over all portable cuts by KL(whole ‖ pruned), rated again after each removal. Ours.

A cut removes two neighbours of the kept sequence: a block's attention and feed-forward (aligned), or one block's
feed-forward and the next one's attention (a seam). Both leave ordinary blocks, so every step is portable, and the
path is nested.
"""

from __future__ import annotations

from edgeprune.metrics._halves import Kept

SOURCE = "edgeprune: greedy over aligned and seam cuts by KL against the whole model"
DAMAGE = "kl"


def children(kept: Kept) -> list[Kept]:
    return [kept[:k] + kept[k + 2 :] for k in range(len(kept) - 1)] if len(kept) > 2 else []
