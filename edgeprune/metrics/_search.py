"""Search for removals by measured damage: at every step all candidates are measured again.

Candidates race: all are measured on a little text; those that can't win are dropped, the others go on with more. A
candidate is dropped when, over the stretches of text seen so far, it does worse than the one to beat by more than
chance explains: a paired t statistic above `SURE` (the idea of Hoeffding races, Maron and Moore 1994, with Student's t
as in F-race, Birattari et al. 2002). Nothing here knows what runs the model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgeprune.errors import InputRejected
from edgeprune.metrics._halves import Kept

# versions, window numbers, told how many windows are done -> damage [window][version][stretch], summed over tokens
Measure = Callable[[Sequence[Kept], Sequence[int], Callable[[int], None]], list[list[list[float]]]]

SURE = 4.0
STRETCHES = 8  # of one window


class Entry(NamedTuple):
    damage: float  # mean over the stretches seen
    version: Kept
    windows: int  # seen


def race(
    versions: Sequence[Kept],
    measure: Measure,
    n_windows: int,
    winners: int = 1,
    tick: Callable[[float], None] = lambda _: None,
) -> list[Entry]:
    """The `winners` least damaging versions, least first, the earlier one of equals.

    `tick` is told the fraction done, as if none were dropped. Raises InputRejected when none leaves finite logits.
    """
    seen: list[list[float]] = [[] for _ in versions]
    alive = list(range(len(versions)))
    at = 0
    while at < n_windows and (at == 0 or len(alive) > winners):
        here = range(at, min(n_windows, at + max(2, at)))  # 2, 2, 4, 8, … windows
        found = measure([versions[i] for i in alive], here, lambda n, at=at: tick((at + n) / n_windows))
        for window in found:
            for i, stretches in zip(alive, window, strict=True):
                seen[i] += stretches
        at = here.stop
        order = sorted(alive, key=lambda i: (math.fsum(seen[i]), i))
        to_beat = order[min(winners, len(order)) - 1]
        alive = [i for k, i in enumerate(order) if k < winners or not _surely_worse(seen[i], seen[to_beat])]
    if math.fsum(seen[alive[0]]) == math.inf:
        raise InputRejected("no removal leaves finite logits: the model's weights are not finite or overflow")
    tick(1.0)
    return [Entry(statistics.fmean(seen[i]), versions[i], at) for i in alive[:winners]]


def _surely_worse(candidate: list[float], leader: list[float]) -> bool:
    if math.inf in candidate:
        return True
    more = [c - b for c, b in zip(candidate, leader, strict=True)]
    if len(more) < STRETCHES:
        return False
    mean, spread = statistics.fmean(more), statistics.stdev(more)
    return mean > SURE * spread / math.sqrt(len(more))


def search(
    whole: Kept, children: Callable[[Kept], list[Kept]], measure: Measure, n_windows: int, max_steps: int,
    width: int = 1, tick: Callable[[float], None] = lambda _: None,
) -> list[Kept]:  # fmt: skip
    """Versions after 0, 1, 2, … removals, each contained in the one before; fewer than `max_steps` when no child is left.

    Beam search: the `width` least damaging children of all that were kept at the step before are kept; 1 is greedy. Of
    the chains through what was kept, the one of least mean log damage is the answer, so that no budget is favoured.
    """
    levels = [[Entry(0.0, whole, 0)]]
    for step in range(max_steps):
        versions = list(dict.fromkeys(child for entry in levels[-1] for child in children(entry.version)))
        if not versions:
            break
        told = lambda part, step=step: tick((step + part) / max_steps)  # noqa: E731
        levels.append(race(versions, measure, n_windows, width, told))
    return _chain(levels)


def _chain(levels: list[list[Entry]]) -> list[Kept]:
    """By dynamic programming from the last level back to the whole model."""
    chains: list[tuple[float, list[Kept]]] = [(0.0, [levels[0][0].version])]
    for level in levels[1:]:
        longer = []
        for entry in level:
            cost, chain = min((c for c in chains if set(entry.version) < set(c[1][-1])), key=lambda c: c[0])
            longer.append((cost + math.log(max(entry.damage, 1e-12)), [*chain, entry.version]))
        chains = longer
    return min(chains, key=lambda c: c[0])[1]
