"""Search for removals by measured damage: after every removal the candidates are measured again.

Greed takes the least damaging removal each time and is misled where one only pays together with others: it never
takes a run of neighbours whose first parts cost more than cuts elsewhere. So a refined search also

- grows one run of neighbours beside what greed keeps, and takes it where it does less damage (LLM-Streamline's and
  Gromov et al.'s kind of answer, by measured damage);
- goes back and forth again: from every version it found, each removal is put back, and what was gained is kept and
  removed from (floating search, Pudil et al. 1994), as long as that finds anything better and `effort` lasts;
- decides on more text than it searched on: the least of many measurements is partly luck, which fresh text takes away,
  so the best few of each size are measured on all of it;
- answers with the nested chain of least mean log damage through those, so that no budget is favoured.

What makes it fast, beside races (`_race`) and sharing what candidates have in common (`_sweep`), is laziness: what a cut
added to the damage when it was last measured foretells what it will add now, since damage mostly grows faster than
the sum of its parts. Cuts foretold to add more than `SLACK` times what the best does are not measured at this step
(lazy greedy, Minoux 1978, where this is exact). On every text tried that left the answer as it was
(benchmarks/search_speed).

Nothing here knows what runs the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from edgeprune.metrics._halves import Kept, missing
from edgeprune.metrics._race import TINY, Entry, Measure, Races

Children = Callable[[Kept], list[Kept]]
Parents = Callable[[Kept, Kept], list[Kept]]  # of a version, and the whole
Judge = Callable[[Sequence[Kept], Callable[[int], None]], list[float]]  # versions, told how many are done -> damage
Tick = Callable[[float], None]

SLACK = 2.0
AT_LEAST = 8
RUNS = 2  # of one length that are grown further
SHARE = 3  # a refined search races over one window in so many, the first ones
FINALISTS = 4  # of each size that are measured on all of the text


def search(
    whole: Kept, children: Children, measure: Measure, n_windows: int, max_steps: int,
    parents: Parents | None = None, effort: int = 0, judge: Judge | None = None, tick: Tick = lambda _: None,
) -> list[Kept]:  # fmt: skip
    """Versions after 0, 1, 2, … removals, each contained in the one before; fewer than `max_steps` when no child is left.

    effort: 0, or no `parents`, is greed; 1 refines it: forth, back and forth; more also keeps that many versions of each
    size (beam search), and goes back and forth up to that many times. judge: another damage than the measured one, by
    which a refined search chooses among the best few and the best runs of neighbours of each size.
    """
    effort = effort if parents else 0
    some = -(-n_windows // SHARE) if effort else n_windows
    field = _Field(whole, children, parents, Races(measure, n_windows), some, effort)
    passes = 1 + 2 * effort
    for k in range(passes):
        told = lambda part, k=k: tick((k + part) / (passes + 1))  # noqa: E731
        if not (field.back(told) if k % 2 else field.forth(max_steps, told)):
            break
    found = field.settled(judge, lambda part: tick((passes + part) / (passes + 1))) if effort else field.levels
    tick(1.0)
    return _chain(found)


class _Field:
    """All that was kept with 0, 1, 2, … removals, the least damaging first."""

    def __init__(
        self, whole: Kept, children: Children, parents: Parents | None, races: Races, n_windows: int, effort: int
    ):  # fmt: skip
        self.whole, self.children, self.parents, self.races = whole, children, parents, races
        self.n_windows, self.refined, self.width = n_windows, effort > 0, max(1, effort)
        self.levels: list[list[Entry]] = [races.best([whole], n_windows=n_windows)]
        self.undamaged = self.levels[0][0].damage
        self.added: dict[Kept, float] = {}  # by each cut, when it was last measured
        self.tried: set[Kept] = set()
        self.close: dict[int, set[Entry]] = {}  # by length, all that races could not tell from the best

    def forth(self, max_steps: int, tick: Tick) -> bool:
        """Removes from the best of each size, and grows runs. Whether a least damaging one came of it."""
        better, runs = False, [self.whole] if self.refined else []
        for step in range(max_steps):
            told = lambda part, step=step: tick((step + part) / max_steps)  # noqa: E731
            longer = [child for run in runs for child in self.children(run) if _is_run(self.whole, child)]
            runs = [entry.version for entry in self._race(longer, RUNS)]
            parents = [entry for entry in self._best(step) if entry.version not in self.tried]
            born = [(parent, child) for parent in parents for child in self.children(parent.version)]
            known = [entry.version for entry in self._best(step + 1)]
            found = self._race([*known, *_promising(born, self.added), *runs], self.width, told)
            if not found:
                break
            self.tried.update(parent.version for parent in parents)
            for parent, child in born:
                more = self.races.added(parent.version, child)
                if more is not None:
                    self.added[missing(child, parent.version)] = more
            better |= self._keep(step + 1, found)
        return better

    def back(self, tick: Tick) -> bool:
        """Puts a removal back into the best of each size, and into all that contain none kept before them. Whether a
        least damaging one came of it."""
        better = False
        for step in range(len(self.levels) - 1, 1, -1):
            part = 1 - step / len(self.levels)
            before = [entry.version for entry in self.levels[step - 1]]
            orphans = [entry for entry in self.levels[step] if not _contained(entry.version, before)]
            for entry in dict.fromkeys([*self._best(step), *orphans]):
                better |= self._keep(step - 1, self._race(self.parents(entry.version, self.whole), 1))
            tick(part)
        return better

    def settled(self, judge: Judge | None, tick: Tick) -> list[list[Entry]]:
        """The best few of each size and the chain through all, with their damage on all of the text, or as judged."""
        chain, out = _chain(self.levels), []
        for step, (link, level) in enumerate(zip(chain, self.levels, strict=False)):
            told = lambda part, step=step: tick((step + part) / len(chain))  # noqa: E731
            close = [entry.version for entry in sorted({*level, *self.close.get(len(link), ())})]
            some = list(dict.fromkeys([link, *close[:FINALISTS]]))
            if judge and step:
                runs = [version for version in close if _is_run(self.whole, version)]
                some = list(dict.fromkeys([*some, *runs[:RUNS]]))
                judged = judge(some, lambda n, told=told, some=some: told(n / len(some)))
                out.append(sorted(map(Entry, judged, some)))
            else:
                out.append(self.races.best(some, len(some), told, self.undamaged))
        return out

    def _best(self, step: int) -> list[Entry]:
        return self.levels[step][: self.width] if step < len(self.levels) else []

    def _race(self, versions: list[Kept], winners: int, tick: Tick = lambda _: None) -> list[Entry]:
        distinct = list(dict.fromkeys(versions))
        if not distinct:
            return []
        found = self.races.best(distinct, winners, tick, self.undamaged, self.n_windows)
        self.close.setdefault(len(found[0].version), set()).update(found)
        return found[:winners]

    def _keep(self, step: int, found: list[Entry]) -> bool:
        """Whether the least damaging one changes."""
        if step == len(self.levels):
            self.levels.append([])
        best = self.levels[step][:1]
        self.levels[step] = sorted({*self.levels[step], *found})
        return self.levels[step][:1] != best


def _contained(version: Kept, others: list[Kept]) -> bool:
    return any(set(version) < set(other) for other in others)


def _is_run(whole: Kept, version: Kept) -> bool:
    """Whether what is gone are neighbours."""
    gone = missing(version, whole)
    return whole.index(gone[-1]) - whole.index(gone[0]) + 1 == len(gone)


def _promising(born: list[tuple[Entry, Kept]], added: dict[Kept, float]) -> list[Kept]:
    """Without those foretold to do much worse than the best; a third of them, `AT_LEAST` and all unknown ones stay."""
    foretold: dict[Kept, float] = {}
    for entry, child in born:
        known = added.get(missing(child, entry.version))
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
            before = [c for c in chains if set(entry.version) < set(c[1][-1])]
            if before:
                cost, chain = min(before, key=lambda c: c[0])
                longer.append((cost + math.log(max(entry.damage, TINY)), [*chain, entry.version]))
        chains = longer
    return min(chains, key=lambda c: c[0])[1]
