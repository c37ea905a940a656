"""Who wins, by what margin, how surely: repetitions that ran side by side, compared one with one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from edgeprune.comparison import stderr, t_95
from edgeprune.study.design import Design, Task
from edgeprune.study.measure import Sample
from edgeprune.study.record import Cell, Curve, EqualQuality, Interval, Model, Pair, Quality, Winner

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


def at_equal_quality(
    models: Sequence[Model], qualities: Sequence[Quality], cells: Sequence[Cell]
) -> list[EqualQuality]:
    """Every width variant against the speed that depth has at the same KL: between the whole model and the depth variants,
    linear in KL and in the logarithm of speed; healed ones against healed ones. Left out where depth was not measured with
    less and with more damage."""
    least = min((c.context for c in cells), default=0)
    speed = {(c.variant, c.quant): 1 / c.measured_s for c in cells if c.context == least}
    kinds = {(m.variant, m.quant): m.kind for m in models}
    known = [q for q in qualities if q.kl is not None and q.quant and (q.variant, q.quant) in speed]
    out = []
    for w in (q for q in known if kinds[q.variant, q.quant] == "width"):
        curve = sorted(
            (q.kl, math.log(speed[q.variant, q.quant]))
            for q in known
            if q.quant == w.quant and (kinds[q.variant, q.quant], q.healed) in (("whole", False), ("depth", w.healed))
        )
        half = 1.96 * (w.kl_stderr or 0.0)
        at = [_between(curve, w.kl + d) for d in (0.0, -half, half)]
        if at[0] is None:
            continue
        width = speed[w.variant, w.quant]
        ends = sorted(math.exp(a if a is not None else at[0]) / width for a in at)
        ratio = Interval(low=ends[0], middle=math.exp(at[0]) / width, high=ends[-1])
        out.append(
            EqualQuality(
                quant=w.quant, width=w.variant, method=w.method, healed=w.healed, kl=w.kl, width_tok_per_s=width,
                depth_tok_per_s=math.exp(at[0]), ratio=ratio, winner=judge(ratio),
            )
        )  # fmt: skip
    return out


def along_threads(pairs: Sequence[Pair], labels: dict[str, str], ratio: float, quant: str) -> list[Curve]:
    """Decode after the shortest context, measured with each number of threads, where there are two at least."""
    mine = [p for p in pairs if (p.what, p.ratio, p.quant) == ("decode", ratio, quant)]
    mine = [p for p in mine if p.context == min(x.context for x in mine)]
    by_width = {w: {p.threads: p.measured for p in mine if p.width == w} for w in dict.fromkeys(p.width for p in mine)}
    return [
        Curve(
            axis="threads", device="this machine", quant=quant, width=labels[width], x=tuple(map(float, sorted(found))),
            y=tuple(found[n] for n in sorted(found)),
        )
        for width, found in by_width.items()
        if len(found) > 1
    ]  # fmt: skip


def _between(curve: Sequence[tuple[float, float]], x: float) -> float | None:
    """Linear between neighbours; None outside."""
    for (x0, y0), (x1, y1) in zip(curve, curve[1:], strict=False):
        if x0 <= x <= x1 and x1 > x0:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None


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
