"""A budget's limits on one device: are they met, by how much are they missed, and what would be met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from edgeprune.errors import InfeasibleBudget
from edgeprune.types import Blocks, Budget, DeviceProfile, ModelSpec, Prediction
from edgeprune.units import show_bytes


class Candidate(NamedTuple):
    runtime: str
    backend: str
    quant: str
    step: int  # of the removal path; 0 is the whole model
    blocks: Blocks
    prediction: Prediction


class Limits(NamedTuple):
    memory_bytes: int
    memory_from: str  # "--max-mem" or "device"
    device_bytes: int  # what the device leaves to a process
    min_decode: float | None
    max_ttft: float | None

    @classmethod
    def of(cls, budget: Budget, device: DeviceProfile) -> Limits:
        """The tighter of --max-mem and the device's memory binds."""
        there = int(device.memory_available.value)
        asked = budget.max_mem_bytes
        own = asked is not None and asked <= there
        memory = asked if own and asked is not None else there
        source = "--max-mem" if own else "device"
        return cls(memory, source, there, budget.min_decode_tok_per_s, budget.max_ttft_s)

    def met(self, p: Prediction) -> bool:
        return self.misses(p) == 0

    def misses(self, p: Prediction) -> float:
        """0 when all limits are met, else the sum of relative overshoots; infinite when a limited value is unknown."""
        return sum(self._miss(p, line) for line in ("memory", "decode", "ttft"))

    def missed(self, p: Prediction) -> list[str]:
        return [line for line in ("memory", "decode", "ttft") if self._miss(p, line) > 0]

    def _miss(self, p: Prediction, line: str) -> float:
        if line == "memory":
            return max(0.0, p.memory_bytes - self.memory_bytes) / max(1, self.memory_bytes)
        if line == "decode":
            if self.min_decode is None:
                return 0.0
            return math.inf if p.decode_tok_per_s is None else max(0.0, self.min_decode / p.decode_tok_per_s - 1)
        if self.max_ttft is None:
            return 0.0
        return math.inf if p.ttft_s is None else max(0.0, p.ttft_s / max(self.max_ttft, 1e-9) - 1)

    def told(self, p: Prediction) -> str:
        """What this prediction misses, e.g. "8.54 GB (7.95 GiB) of memory, limit 8 GB (7.45 GiB)"; "" if nothing."""
        words = {
            "memory": f"{show_bytes(p.memory_bytes)} of memory, limit {show_bytes(self.memory_bytes)} from {self.memory_from}",
            "decode": f"{_num(p.decode_tok_per_s)} tok/s, asked {_num(self.min_decode)}",
            "ttft": f"{_num(p.ttft_s)} s to the first token, asked {_num(self.max_ttft)}",
        }
        return "; ".join(words[line] for line in self.missed(p))

    def text(self) -> str:
        parts = [f"memory {show_bytes(self.memory_bytes)} from {self.memory_from}"]
        parts += [f"at least {_num(self.min_decode)} tok/s"] if self.min_decode is not None else []
        parts += [f"first token within {_num(self.max_ttft)} s"] if self.max_ttft is not None else []
        return ", ".join(parts)


def explain_infeasible(
    candidates: list[Candidate],
    limits: Limits,
    device: DeviceProfile,
    budget: Budget,
    spec: ModelSpec,
    refused: Sequence[str] = (),
) -> InfeasibleBudget:
    """Names the limit that binds and the nearest budget that works.

    `nearest` holds one changed line when changing one is enough, else the lines to change together; {} when no
    budget on this device works. `refused`: what is said of steps that a runtime can't hold.
    """
    end = min(len(c.blocks) for c in candidates)
    start = f"no plan of {spec.name} on {device.id} meets {limits.text()}"
    path = f"the removal path ends at {end} of {spec.n_blocks} blocks" + "".join(f"; {r}" for r in refused)
    unknown = _unknown(candidates, limits, device)
    if unknown:
        return InfeasibleBudget(f"{start}: {unknown}", {})
    alone = {line: value for line in ("memory", "decode", "ttft") if (value := _relaxed(candidates, limits, line))}
    if alone:
        line, value = next(iter(alone.items()))
        ways = "; or ".join(f"{_flag(k)} {_shown(k, v)}" for k, v in alone.items())
        return InfeasibleBudget(
            f"{start}: {_name(line)} binds, {path}. Nearest that works: {ways}", {_key(line): value}
        )
    inside = [c for c in candidates if c.prediction.memory_bytes <= limits.device_bytes]
    if not inside:
        least = min(c.prediction.memory_bytes for c in candidates)
        needs = f"memory binds, {path}; the least found is {show_bytes(least)} and the device leaves {show_bytes(limits.device_bytes)}"
        return InfeasibleBudget(f"{start}: {needs}. Take less context, a smaller model or a larger device", {})
    c = min(inside, key=lambda c: (limits.misses(c.prediction), c.runtime, c.quant, c.step))
    missed = [line for line in limits.missed(c.prediction) if _value(c.prediction, line) is not None]
    values = {_key(line): _value(c.prediction, line) for line in missed}
    ways = " with ".join(f"{_flag(line)} {_shown(line, _value(c.prediction, line))}" for line in missed)
    names = " and ".join(_name(line) for line in missed)
    return InfeasibleBudget(f"{start}: {names} bind together, {path}. Nearest that works: {ways}", values)


def _unknown(candidates: list[Candidate], limits: Limits, device: DeviceProfile) -> str | None:
    """A limit on something that nothing on this device is known to reach."""
    where = ", ".join(sorted({f"{c.runtime} on {c.backend}" for c in candidates}))
    if limits.min_decode is not None and all(c.prediction.decode_tok_per_s is None for c in candidates):
        return f"no decode rate is known for {device.id} ({where}), so a speed can't be promised; leave out --min-tps and measure"
    if limits.max_ttft is not None and all(c.prediction.ttft_s is None for c in candidates):
        return f"no prefill rate is known for {device.id} ({where}), so no time can be promised; leave out --max-ttft and measure"
    return None


def _relaxed(candidates: list[Candidate], limits: Limits, line: str) -> float | None:
    """The value of `line` nearest to what was asked with which all other limits hold; None when there is none."""
    reach = [
        _value(c.prediction, line)
        for c in candidates
        if limits.missed(c.prediction) == [line] and c.prediction.memory_bytes <= limits.device_bytes
    ]
    known = [v for v in reach if v is not None]
    return (max if line == "decode" else min)(known, default=None)


def _value(p: Prediction, line: str) -> float | None:
    return {"memory": p.memory_bytes, "decode": p.decode_tok_per_s, "ttft": p.ttft_s}[line]


def _key(line: str) -> str:
    return {"memory": "max_mem_bytes", "decode": "min_decode_tok_per_s", "ttft": "max_ttft_s"}[line]


def _flag(line: str) -> str:
    return {"memory": "--max-mem", "decode": "--min-tps", "ttft": "--max-ttft"}[line]


def _name(line: str) -> str:
    return {"memory": "memory", "decode": "decode speed", "ttft": "time to first token"}[line]


def _shown(line: str, value: float | None) -> str:
    """A value that works when typed back: rounded to the safe side."""
    if value is None:
        return "unknown"
    if line == "memory":
        return f"{math.ceil(value)}B, {show_bytes(value)}"
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 2
    scale = 10.0**digits
    rounded = math.floor(value * scale) / scale if line == "decode" else math.ceil(value * scale) / scale
    return f"{rounded:.{max(0, digits)}f}"


def _num(x: float | None) -> str:
    return "unknown" if x is None else f"{x:.3g}"
