"""Greedy over whole blocks by KL(whole ‖ pruned), rated again after each removal: `greedy_kl` without its seam cuts.

Shows what the seams contribute; SLEB's search with another damage, and with no block protected.
"""

from __future__ import annotations

from edgeprune.metrics._halves import Kept

SOURCE = "edgeprune: greedy over whole blocks by KL against the whole model; greedy_kl with seams off"
DAMAGE = "kl"


def children(kept: Kept) -> list[Kept]:
    return [kept[:k] + kept[k + 2 :] for k in range(0, len(kept), 2)] if len(kept) > 2 else []
