"""From rows: a prior for every backend, terms for every device, and how well both foretell what they have not seen.

A device's own prior is learned from the other devices of its backend, never from itself.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

from _rows import FULL_POWER, Key, Line

from edgeprune._fit import Estimate, Fit, Row, fit, learn, leave_one_out, predict, without_rows
from edgeprune._prior import Prior, Term
from edgeprune._rates import SMALL_SET, WEAK

CAPPED_SPREAD = 1.0  # of the logarithm: AGX Orin decodes 3.3 times slower at 30 W than at MAXN
PREFILL = Prior((Term("prefill", 1e-12, 3.0),), noise=0.15)  # flop/s of a device that nobody measured: anything


class Miss(NamedTuple):
    """One row and what was foretold for it without its model, or without its device."""

    line: Line
    estimate: Estimate

    @property
    def error(self) -> float:
        """ln(predicted / measured seconds)."""
        return math.log(self.estimate.seconds / self.line.decode.seconds)

    @property
    def inside(self) -> bool:
        return self.estimate.low <= self.line.decode.seconds <= self.estimate.high


class Device(NamedTuple):
    key: Key
    lines: list[Line]
    prior: Prior  # of the others of this backend
    fit: Fit
    without_model: list[Miss]
    without_device: list[Miss]
    prefill: Term | None  # seconds per operation, with the spread of one more measurement
    prefill_errors: list[float]

    @property
    def models(self) -> int:
        return len({line.model for line in self.lines})

    @property
    def status(self) -> str:
        return "fitted" if len(self.lines) >= SMALL_SET else "prior"


def devices(lines: list[Line], tell: Callable[[str], None]) -> tuple[list[Device], dict[str, Prior]]:
    """(every device × runtime × backend × mode with its fit, backend -> prior of one more device)."""
    groups: dict[Key, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.key, []).append(line)
    backends = sorted({k.backend for k in groups})
    priors, found = {}, []
    for backend in backends:
        teachers = [k for k in groups if k.backend == backend and _teaches(k)]
        if teachers:
            priors[backend] = _prior([groups[k] for k in teachers])
        for key in (k for k in groups if k.backend == backend):
            tell(f"{key}: {len(groups[key])} rows")
            others = [groups[k] for k in teachers if k.profile != key.profile]
            found.append(_device(key, groups[key], _for_mode(key, _prior(others))))
    return found, priors


def _teaches(key: Key) -> bool:
    """llama.cpp and what is built on it, at full power; an NPU of its own has only its own runtime."""
    runtime = "rkllm" if key.backend == "rknpu" else "llamacpp"
    return key.runtime == runtime and key.mode in FULL_POWER and key.threads is None


def _prior(groups: list[list[Line]]) -> Prior:
    return learn([[line.decode for line in g] for g in groups], WEAK) if groups else WEAK


def _for_mode(key: Key, prior: Prior) -> Prior:
    """A capped mode is slower by an unknown factor than what the others teach."""
    if key.mode in FULL_POWER:
        return prior
    widened = [t._replace(spread=math.hypot(t.spread, CAPPED_SPREAD)) for t in prior.terms]
    return prior._replace(terms=tuple(widened))


def _device(key: Key, lines: list[Line], prior: Prior) -> Device:
    rows = [line.decode for line in lines]
    of_row = {id(r): line for r, line in zip(rows, lines, strict=True)}
    alone = without_rows(prior)
    prefill, errors = _prefill([line.prefill for line in lines if line.prefill])
    return Device(
        key,
        lines,
        prior,
        fit(rows, prior),
        [Miss(of_row[id(r)], e) for r, e in leave_one_out(rows, prior)],
        [Miss(line, predict(alone, line.decode.amounts, line.quant)) for line in lines],
        prefill,
        errors,
    )


def _prefill(rows: list[Row]) -> tuple[Term | None, list[float]]:
    if not rows:
        return None, []
    found = fit(rows, PREFILL)
    one = predict(found, (1.0,))
    left_out = leave_one_out(rows, PREFILL) if len({r.group for r in rows}) > 1 else []
    return Term("prefill", one.seconds, one.spread), [math.log(e.seconds / r.seconds) for r, e in left_out]


def median_error(misses: list[Miss]) -> float:
    return statistics.median(abs(math.expm1(m.error)) for m in misses)


def coverage(misses: list[Miss]) -> float:
    return statistics.mean(m.inside for m in misses)


def repeats(lines: list[Line]) -> list[float]:
    """|ln| between rates of the same model, quantisation and depth on the same device: no formula of the shape does better."""
    seen: dict[tuple, list[float]] = {}
    for line in lines:
        seen.setdefault((line.key, line.model, line.quant, line.depth), []).append(line.decode.seconds)
    return [abs(math.log(b / a)) for times in seen.values() for a, b in zip(times, times[1:], strict=False)]
