"""A budget's limits on one device: are they met, by how much are they missed, and which would be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from edgeprune._candidates import Candidate
from edgeprune.errors import UsageError
from edgeprune.types import Budget, DeviceProfile
from edgeprune.units import show_bytes


def _bytes(x: float) -> str:
    return show_bytes(x)


def _figure(unit: str) -> Callable[[float], str]:
    return lambda x: f"{x:.3g}{unit}"


class Line(NamedTuple):
    """One kind of limit."""

    key: str  # field of Budget
    flag: str
    name: str
    most: bool  # a ceiling; else a floor
    value: Callable[[Candidate], float | None]
    show: Callable[[float], str]
    what: str  # what a figure is of: "8.5 GB of memory"


LINES = (
    Line("max_mem_bytes", "--max-mem", "memory", True, lambda c: c.prediction.memory_bytes, _bytes, "of memory"),
    Line("max_file_bytes", "--max-file", "file size", True, lambda c: c.prediction.file_bytes, _bytes, "of file"),
    Line("min_decode_tok_per_s", "--min-tps", "decode speed", False,
         lambda c: c.prediction.decode_tok_per_s, _figure(" tok/s"), "of decode"),
    Line("max_ttft_s", "--max-ttft", "time to first token", True,
         lambda c: c.prediction.ttft_s, _figure(" s"), "to the first token"),
    Line("max_kl", "--max-kl", "damage", True, lambda c: c.damage.kl, _figure(" nats"), "of expected damage"),
    Line("max_ppl_ratio", "--max-ppl-ratio", "perplexity", True,
         lambda c: c.damage.ppl_ratio, lambda x: f"× {x:.3g}", "the whole model's perplexity"),
)  # fmt: skip
MEMORY = LINES[0]


class Limits(NamedTuple):
    """The tighter of --max-mem and the device's memory binds; every other line only when asked."""

    bounds: dict[str, float]  # by Line.key
    memory_from: str  # "--max-mem" or "device"
    device_bytes: int  # what the device leaves to a process

    @classmethod
    def of(cls, budget: Budget, device: DeviceProfile) -> Limits:
        """Raises UsageError for a limit that is not a number or below nothing."""
        asked = {line.key: getattr(budget, line.key) for line in LINES if getattr(budget, line.key) is not None}
        for line in LINES:
            bound = asked.get(line.key, 1.0)
            if not math.isfinite(bound) or bound < 0:
                raise UsageError(f"{line.flag} {bound:g}: {line.name} can't be limited to that")
        there = int(device.memory_available.value)
        own = asked.get("max_mem_bytes", math.inf) <= there
        return cls(asked if own else {**asked, "max_mem_bytes": there}, "--max-mem" if own else "device", there)

    @property
    def memory_bytes(self) -> int:
        return int(self.bounds["max_mem_bytes"])

    @property
    def lines(self) -> list[Line]:
        return [line for line in LINES if line.key in self.bounds]

    def met(self, c: Candidate) -> bool:
        return not self.missed(c)

    def missed(self, c: Candidate) -> list[Line]:
        return [line for line in self.lines if self._miss(c, line)]

    def misses(self, c: Candidate) -> float:
        """0 when all limits are met, else the sum of relative overshoots; infinite when a limited value is unknown."""
        return sum(self._miss(c, line) for line in self.lines)

    def _miss(self, c: Candidate, line: Line) -> float:
        value, bound = line.value(c), self.bounds[line.key]
        if value is None:
            return math.inf
        over, scale = (value - bound, bound) if line.most else (bound - value, value)
        return max(0.0, over) / (scale or 1.0)

    def told(self, c: Candidate) -> str:
        """What this candidate misses, e.g. "8.54 GB (7.95 GiB) of memory, limit 8 GB (7.45 GiB) from --max-mem"."""
        return "; ".join(self._tell(c, line) for line in self.missed(c))

    def _tell(self, c: Candidate, line: Line) -> str:
        value = line.value(c)
        shown = "an unknown figure" if value is None else line.show(value)
        asked = f"{'limit' if line.most else 'asked'} {line.show(self.bounds[line.key])}"
        return f"{shown} {line.what}, {asked}" + (f" from {self.memory_from}" if line is MEMORY else "")

    def text(self) -> str:
        """All that is asked: "memory at most 8 GB (7.45 GiB) from --max-mem, decode speed at least 15 tok/s"."""
        return ", ".join(
            f"{line.name} at {'most' if line.most else 'least'} {line.show(self.bounds[line.key])}"
            + (f" from {self.memory_from}" if line is MEMORY else "")
            for line in self.lines
        )


def relaxed(found: Sequence[Candidate], limits: Limits, line: Line) -> Candidate | None:
    """The candidate that misses this line alone, by the least; None when there is none.

    No budget allows more memory than the device has.
    """
    alone = [c for c in found if limits.missed(c) == [line] and line.value(c) is not None and inside(c, limits)]
    sign = 1 if line.most else -1
    return min(alone, key=lambda c: (sign * _known(line.value(c)), c.damage.order), default=None)


def inside(c: Candidate, limits: Limits) -> bool:
    return c.prediction.memory_bytes <= limits.device_bytes


def nearest(c: Candidate, limits: Limits) -> dict[str, float]:
    """The limits, changed just so far that `c` meets them."""
    return {line.key: _known(line.value(c)) for line in limits.missed(c) if line.value(c) is not None}


def typed(line: Line, value: Any) -> str:
    """A value that works when typed back: rounded to the safe side."""
    if line.key.endswith("_bytes"):
        return f"{math.ceil(value)}B, {show_bytes(value)}"
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 2
    scale = 10.0**digits
    rounded = (math.ceil if line.most else math.floor)(value * scale) / scale
    return f"{rounded:.{max(0, digits)}f}"


def _known(value: float | None) -> float:
    assert value is not None
    return value
