"""`kl_search` without its seam cuts: over whole blocks alone.

Shows what the seams contribute. Its greedy part is SLEB's search with another damage, and with no block protected.
"""

from __future__ import annotations

from edgeprune.metrics._halves import Kept, missing, with_back

SOURCE = "edgeprune: search over whole blocks by KL against the whole model; kl_search with seams off"
DAMAGE = "kl"


def children(kept: Kept) -> list[Kept]:
    return [kept[:k] + kept[k + 2 :] for k in range(0, len(kept), 2)] if len(kept) > 2 else []


def parents(kept: Kept, whole: Kept) -> list[Kept]:
    return [with_back(kept, (("A", i), ("F", i)), whole) for kind, i in missing(kept, whole) if kind == "A"]
