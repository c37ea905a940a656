"""Cells that several sections share."""

from __future__ import annotations

from statistics import median

from edgeprune.evaluation import Evaluation
from edgeprune.report import facts
from edgeprune.report.facts import Row
from edgeprune.report.text import Num, figure, missing, num, runtime_name
from edgeprune.types import Prediction

NONE = Num("–", tone="mute")
UNPREDICTED = Num("not predicted", tone="mute")


def name_of(row: Row) -> Num:
    """Quantisation over runtime and state, the first cell of every table of artifacts."""
    return Num(row.artifact.quant, sub=f"{runtime_name(row.runtime)}, {state_of(row)}")


def state_of(row: Row) -> str:
    return (
        "whole model" if row.baseline else "this plan" if row.planned else "pruned" if row.pruned else "nothing removed"
    )


def strong(table: list[Row]) -> tuple[int, ...]:
    return tuple(i for i, r in enumerate(table) if r.planned)


def speed_kind(p: Prediction) -> str:
    return "prior" if p.basis.startswith("prior") else "predicted"


def foretold(p: Prediction | None) -> Num:
    """Predicted decode speed over its interval."""
    if p is None or p.decode_tok_per_s is None:
        return UNPREDICTED
    low, high = p.decode_low_tok_per_s, p.decode_high_tok_per_s
    span = f"{figure(low)} – {figure(high)}" if low is not None and high is not None else ""
    return num(p.decode_tok_per_s, speed_kind(p), sub=span)


def rate(rates: list[float]) -> Num:
    """Median over the range of the repetitions."""
    return num(median(rates), "measured", sub=span_of(rates)) if rates else missing()


def times(rates: list[float]) -> Num:
    """A gain, "1.11×", over its range."""
    return Num(f"{median(rates):.2f}×", "measured", f"{min(rates):.2f} – {max(rates):.2f}" if len(rates) > 1 else "")


def span_of(values: list[float]) -> str:
    return f"{figure(min(values))} – {figure(max(values))}" if len(values) > 1 else ""


def damage(q: Evaluation | None) -> Num:
    """KL over its 95 % interval."""
    span = facts.kl_interval(q)
    return num(q.kl if q else None, "measured", sub=f"{figure(span[0])} – {figure(span[1])}" if span else "")


def percentiles(samples_ns: tuple[int, ...], scale: float) -> Num:
    """Median over the 90th percentile, in seconds times `scale`."""
    p50, p90 = facts.percentile_s(samples_ns, 50), facts.percentile_s(samples_ns, 90)
    if p50 is None or p90 is None:
        return missing()
    return Num(figure(scale * p50), "measured", f"p90 {figure(scale * p90)}")
