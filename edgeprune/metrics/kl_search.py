"""Search over all portable cuts by KL(whole ‖ pruned): greed, then refined. Ours; see `_search`.

A cut removes two neighbours of the kept sequence: a block's attention and feed-forward (aligned), or one block's
feed-forward and the next one's attention (a seam). Both leave ordinary blocks, so every step is portable, and the
path is nested.
"""

from __future__ import annotations

from itertools import combinations, pairwise

from edgeprune.metrics._halves import Kept, missing, with_back

SOURCE = "edgeprune: search over aligned and seam cuts by KL against the whole model"
DAMAGE = "kl"


def children(kept: Kept) -> list[Kept]:
    return [kept[:k] + kept[k + 2 :] for k in range(len(kept) - 1)] if len(kept) > 2 else []


def parents(kept: Kept, whole: Kept) -> list[Kept]:
    back = (with_back(kept, pair, whole) for pair in combinations(missing(kept, whole), 2))
    return [p for p in back if p[0][0] == "A" and all(one[0] != next[0] for one, next in pairwise(p))]
