"""Who wins, by what margin, how surely: repetitions that ran side by side, compared one with one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from edgeprune.comparison import stderr, t_95
from edgeprune.study.design import Design, Task
from edgeprune.study.measure import Sample
from edgeprune.study.record import Cell, Interval, Pair, Winner

MARGIN = 1.03  # a ratio of speeds within this either way is called equal: less than a user can notice


def judge(x: Interval) -> Winner:
    """Of a ratio of speeds above 1 where depth is faster: a winner where the interval lies on one side of 1 and the
    middle beyond the margin, equal where all of it lies within the margin, else open."""
    if x.low > 1 and x.middle >= MARGIN:
        return "depth"
    if x.high < 1 and x.middle <= 1 / MARGIN:
        return "width"
    return "equal" if 1 / MARGIN < x.low and x.high < MARGIN else "open"


def pairs(d: Design, samples: Sequence[Sample], cells: Sequence[Cell]) -> list[Pair]:
    """Every width variant beside the depth variant of its ratio, in every state that both were measured in together."""
    foretold = {(c.variant, c.runtime, c.quant, c.threads, c.context): c.predicted_s for c in cells}
    depth_of = {t.variant.ratio: t.variant.name for t in d.tasks if t.variant.kind == "depth"}
    states = dict.fromkeys((s.threads, s.what, s.context) for s in samples if s.what != "memory")
    out = []
    for task in (t for t in d.tasks if t.variant.kind == "width"):
        depth = depth_of[task.variant.ratio]
        for threads, what, context in states:
            mine = _matched(samples, depth, task, threads, what, context)
            if len(mine) < 2:
                continue
            measured = interval([math.log(b / a) for a, b in mine])
            a, b = (foretold.get((v, task.runtime, task.quant, threads, context)) for v in (depth, task.variant.name))
            tokens = context if what == "prefill" else 1
            out.append(
                Pair(
                    ratio=task.variant.ratio, runtime=task.runtime, quant=task.quant, threads=threads, what=what,
                    context=context, depth=depth, width=task.variant.name, equal=task.variant.equal,
                    repetitions=len(mine), depth_tok_per_s=tokens / statistics.median(a for a, _ in mine),
                    width_tok_per_s=tokens / statistics.median(b for _, b in mine), measured=measured,
                    predicted=b / a if a and b and what == "decode" else None, winner=judge(measured),
                )
            )  # fmt: skip
    return out


def interval(logs: Sequence[float]) -> Interval:
    """Mean of logarithms of ratios with the 95 % interval of Student's t, as ratios. Two at least."""
    mean, half = statistics.fmean(logs), t_95(len(logs) - 1) * stderr(logs)
    return Interval(low=math.exp(mean - half), middle=math.exp(mean), high=math.exp(mean + half))


def _matched(
    samples: Iterable[Sample], depth: str, task: Task, threads: int, what: str, context: int
) -> list[tuple[float, float]]:
    """(seconds of depth, seconds of width) of each repetition in which both were open; of decode the median token's."""
    found: dict[tuple[int, int], dict[str, float]] = {}
    for s in samples:
        if (s.runtime, s.quant, s.threads, s.what, s.context) == (task.runtime, task.quant, threads, what, context):
            found.setdefault((s.group, s.repetition), {})[s.variant] = statistics.median(s.ns) / 1e9
    return [(x[depth], x[task.variant.name]) for x in found.values() if depth in x and task.variant.name in x]
