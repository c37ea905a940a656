"""Search for removals by measured damage: after every removal the candidates are measured again.

Three things make it fast; on every text tried they left the answer as it was (benchmarks/search_speed):

- Lazy: what a cut added to the damage when it was last measured foretells what it will add now, since damage mostly
  grows faster than the sum of its parts. Cuts foretold to add more than `SLACK` times what the best does are not
  measured at this step (lazy greedy, Minoux 1978, where this is exact).
- Candidates race: all are measured on one window of text, those that can't win are dropped, the others go on with
  more. One is dropped when, over the stretches of text seen so far, it does worse than the one to beat by more than
  chance explains (the idea of Hoeffding races, Maron and Moore 1994).
- What candidates share is run once: see `_sweep`.

Nothing here knows what runs the model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgeprune.errors import InputRejected
from edgeprune.metrics._halves import Half, Kept

# versions, window numbers, told how many windows are done -> damage [window][version][stretch], summed over tokens
Measure = Callable[[Sequence[Kept], Sequence[int], Callable[[int], None]], list[list[list[float]]]]

SLACK = 2.0
AT_LEAST = 8
TINY = 1e-9  # nats: no damage
SURE = 2.5  # standard errors
BETWEEN = 0.15  # how much windows differ in the log ratio of two damages, beyond their stretches: a standard deviation
STRETCHES = 8  # of one window


class Entry(NamedTuple):
    damage: float  # mean over all stretches
    version: Kept


def search(
    whole: Kept, children: Callable[[Kept], list[Kept]], measure: Measure, n_windows: int, max_steps: int,
    width: int = 1, tick: Callable[[float], None] = lambda _: None,
) -> list[Kept]:  # fmt: skip
    """Versions after 0, 1, 2, … removals, each contained in the one before; fewer than `max_steps` when no child is left.

    Beam search: the `width` least damaging children of all that were kept at the step before are kept; 1 is greedy. Of
    the chains through what was kept, the one of least mean log damage is the answer, so that no budget is favoured.
    """
    levels, added = [race([whole], measure, n_windows)[0]], {}
    for step in range(max_steps):
        born = [(entry, child) for entry in levels[-1] for child in children(entry.version)]
        if not born:
            break
        told = lambda part, step=step: tick((step + part) / max_steps)  # noqa: E731
        best, excess = race(_promising(born, added), measure, n_windows, width, told, levels[0][0].damage)
        added |= {
            _cut(entry, child): best[0].damage + excess[child] - entry.damage
            for entry, child in born
            if child in excess
        }
        levels.append(best)
    return _chain(levels)


def race(
    versions: Sequence[Kept], measure: Measure, n_windows: int, winners: int = 1,
    tick: Callable[[float], None] = lambda _: None, undamaged: float = 0.0,
) -> tuple[list[Entry], dict[Kept, float]]:  # fmt: skip
    """The `winners` least damaging versions, least first, the earlier one of equals; and by how much every version did
    worse than the best on the text it was measured on, a mean per stretch.

    undamaged: what the whole model has, nothing in KL and something in loss. `tick` is told the fraction done. Raises
    InputRejected when no version leaves finite logits.
    """
    seen: list[list[float]] = [[] for _ in versions]
    alive = list(range(len(versions)))
    at = 0
    while at < n_windows:
        here = range(at, min(n_windows, at + max(1, at)))  # 1, 1, 2, 4, … windows
        found = measure([versions[i] for i in alive], here, lambda n, at=at: tick((at + n) / n_windows))
        for window in found:
            for i, stretches in zip(alive, window, strict=True):
                seen[i] += stretches
        at = here.stop
        order = sorted(alive, key=lambda i: (math.fsum(seen[i]), i))
        to_beat = order[min(winners, len(order)) - 1]
        alive = [i for k, i in enumerate(order) if k < winners or not _surely_worse(seen[i], seen[to_beat], undamaged)]
    best = alive[:winners]
    if math.fsum(seen[best[0]]) == math.inf:
        raise InputRejected("no removal leaves finite logits: the model's weights are not finite or overflow")
    tick(1.0)
    excess = {v: _mean_difference(s, seen[best[0]]) for v, s in zip(versions, seen, strict=True)}
    return [Entry(statistics.fmean(seen[i]), versions[i]) for i in best], excess


def _mean_difference(one: list[float], other: list[float]) -> float:
    """Over the stretches both were measured on."""
    n = min(len(one), len(other))
    return math.inf if math.inf in one else statistics.fmean(one[:n]) - statistics.fmean(other[:n])


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


def _cut(parent: Entry, child: Kept) -> frozenset[Half]:
    return frozenset(parent.version).difference(child)


def _promising(born: list[tuple[Entry, Kept]], added: dict[frozenset[Half], float]) -> list[Kept]:
    """Without those foretold to do much worse than the best; a third of them, `AT_LEAST` and all unknown ones stay."""
    foretold: dict[Kept, float] = {}
    for entry, child in born:
        known = added.get(_cut(entry, child))
        damage = -math.inf if known is None else entry.damage + known
        foretold[child] = min(damage, foretold.get(child, math.inf))
    ranked = sorted((damage, k) for k, damage in enumerate(foretold.values()) if damage > -math.inf)
    if not ranked:
        return list(foretold)
    least = max(0.0, ranked[0][0] - min(entry.damage for entry, _ in born))
    bar = max(ranked[0][0] + (SLACK - 1) * least, ranked[min(len(ranked), max(AT_LEAST, len(ranked) // 3)) - 1][0])
    return [child for child, damage in foretold.items() if damage <= bar]


def _chain(levels: list[list[Entry]]) -> list[Kept]:
    """By dynamic programming from the whole model on."""
    chains: list[tuple[float, list[Kept]]] = [(0.0, [levels[0][0].version])]
    for level in levels[1:]:
        longer = []
        for entry in level:
            cost, chain = min((c for c in chains if set(entry.version) < set(c[1][-1])), key=lambda c: c[0])
            longer.append((cost + math.log(max(entry.damage, TINY)), [*chain, entry.version]))
        chains = longer
    return min(chains, key=lambda c: c[0])[1]
