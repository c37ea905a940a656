"""SLEB: whole blocks, one at a time, the one whose absence leaves the text likeliest; rated again after each removal.

The first and the last block stay. Song et al. 2024, arXiv:2402.09025.
"""

from __future__ import annotations

from edgeprune.metrics._halves import Kept

SOURCE = "SLEB, Song et al. 2024, arXiv:2402.09025"
DAMAGE = "loss"


def children(kept: Kept) -> list[Kept]:
    return [kept[:k] + kept[k + 2 :] for k in range(2, len(kept) - 2, 2)]
