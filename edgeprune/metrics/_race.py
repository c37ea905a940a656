"""Which versions do least damage, without measuring all of them on all of the text.

Candidates race: all are measured on one window of text, those that can't win are dropped, the others go on with more.
One is dropped when, over the stretches of text seen so far, it does worse than the one to beat by more than chance
explains (the idea of Hoeffding races, Maron and Moore 1994).
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

TINY = 1e-9  # nats: no damage
SURE = 2.5  # standard errors
BETWEEN = 0.15  # how much windows differ in the log ratio of two damages, beyond their stretches: a standard deviation
STRETCHES = 8  # of one window


class Entry(NamedTuple):
    damage: float  # mean over all stretches
    version: Kept


class Races:
    """Races on one text. What was measured is kept: a version that races again is measured only where it was not yet."""

    def __init__(self, measure: Measure, n_windows: int):
        self._measure, self._n_windows = measure, n_windows
        self._seen: dict[Kept, list[list[float]]] = {}  # of each version, stretches by window, from the first window on

    def best(
        self, versions: Sequence[Kept], winners: int = 1, tick: Callable[[float], None] = lambda _: None,
        undamaged: float = 0.0, n_windows: int | None = None,
    ) -> list[Entry]:  # fmt: skip
        """The `winners` least damaging versions and those that can't be told from the last of them, least damaging first,
        the earlier one of equals.

        undamaged: what the whole model has, nothing in KL and something in loss. n_windows: how many of the first windows
        they race over, all unless given. `tick` is told the fraction done.
        Raises InputRejected when no version leaves finite logits.
        """
        alive, end = list(range(len(versions))), n_windows or self._n_windows
        at = 0
        while at < end:
            before, at = at, min(end, max(1, 2 * at))  # 1, 1, 2, 4, … windows
            self._see([versions[i] for i in alive], at, lambda n, b=before: tick((b + n) / end))
            seen = {i: self._stretches(versions[i], at) for i in alive}
            order = sorted(alive, key=lambda i: (math.fsum(seen[i]), i))
            to_beat = seen[order[min(winners, len(order)) - 1]]
            alive = [i for k, i in enumerate(order) if k < winners or not _surely_worse(seen[i], to_beat, undamaged)]
        best = [Entry(self.damage(versions[i]), versions[i]) for i in alive]
        if best[0].damage == math.inf:
            raise InputRejected("no removal leaves finite logits: the model's weights are not finite or overflow")
        tick(1.0)
        return best

    def damage(self, version: Kept) -> float:
        """Mean over the stretches it was measured on."""
        return statistics.fmean(self._stretches(version))

    def added(self, parent: Kept, child: Kept) -> float | None:
        """How much more damage the child does, a mean over the stretches both were measured on; None where none were."""
        n = min(len(self._seen.get(parent, ())), len(self._seen.get(child, ())))
        if n == 0:
            return None
        one, other = self._stretches(child, n), self._stretches(parent, n)
        return math.inf if math.inf in one else statistics.fmean(one) - statistics.fmean(other)

    def _see(self, versions: Sequence[Kept], n_windows: int, tick: Callable[[int], None]) -> None:
        """Those that were measured on the same windows so far are measured together."""
        behind: dict[int, list[Kept]] = {}
        for version in versions:
            if len(self._seen.setdefault(version, [])) < n_windows:
                behind.setdefault(len(self._seen[version]), []).append(version)
        for at, together in sorted(behind.items()):
            for window in self._measure(together, range(at, n_windows), tick):
                for version, stretches in zip(together, window, strict=True):
                    self._seen[version].append(stretches)

    def _stretches(self, version: Kept, n_windows: int | None = None) -> list[float]:
        return [x for window in self._seen[version][:n_windows] for x in window]


def _surely_worse(candidate: list[float], leader: list[float], undamaged: float) -> bool:
    """By the log ratio of their damages, stretch by stretch: some stretches are hurt ten times as much by any cut.

    Windows differ in that ratio as far as it is of damage: what the whole model has is the same in both.
    """
    if math.inf in candidate:
        return True
    if len(candidate) < STRETCHES or sum(candidate) <= sum(leader):
        return False
    more = [math.log(max(c, TINY) / max(b, TINY)) for c, b in zip(candidate, leader, strict=True)]
    between = BETWEEN * max(0.1, 1 - undamaged * len(leader) / max(sum(leader), TINY))
    variance = (statistics.variance(more) + between**2 * STRETCHES) / len(more)
    return statistics.fmean(more) > SURE * math.sqrt(variance)
