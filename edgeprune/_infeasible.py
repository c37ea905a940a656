"""Why no candidate meets the limits, and the nearest limits that one would."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from edgeprune._candidates import Candidate
from edgeprune._limits import Limits, inside, nearest, relaxed, typed
from edgeprune.types import DeviceProfile, ModelSpec
from edgeprune.units import show_bytes


class Finding(NamedTuple):
    message: str
    nearest: dict[str, float]  # changed lines of the budget; {} when no budget on this device works


def explain(
    found: Sequence[Candidate], limits: Limits, spec: ModelSpec, device: DeviceProfile, refused: Sequence[str]
) -> Finding:
    """Names the limit that binds and the nearest budget that works: one changed line when changing one is enough, else
    those to change together. `refused`: what is said of steps that a runtime can't run."""
    end = min(len(c.blocks) for c in found)
    start = f"no plan of {spec.name} on {device.id} meets {limits.text()}"
    path = f"the shortest tried has {end} of {spec.n_blocks} blocks" + "".join(f"; {r}" for r in refused)
    unknown = _unknown(found, limits, device)
    if unknown:
        return Finding(f"{start}: {unknown}", {})
    alone = [(line, c) for line in limits.lines if (c := relaxed(found, limits, line))]
    if alone:
        ways = "; or ".join(f"{line.flag} {typed(line, line.value(c))} ({_told(c, spec)})" for line, c in alone)
        line, c = alone[0]
        return Finding(f"{start}: {line.name} binds, {path}. Nearest that works: {ways}", nearest(c, limits))
    fitting = [c for c in found if inside(c, limits)]
    if not fitting:
        least = min(c.prediction.memory_bytes for c in found)
        needs = f"the least found is {show_bytes(least)} and the device leaves {show_bytes(limits.device_bytes)}"
        advice = "Take less context, a smaller model or a larger device"
        return Finding(f"{start}: memory binds, {path}; {needs}. {advice}", {})
    c = min(fitting, key=lambda c: (limits.misses(c), c.damage.order, c.runtime, c.quant, c.step))
    if math.isinf(limits.misses(c)):
        return Finding(f"{start}: {limits.told(c)}, {path}. Leave a limit out", {})
    missed = limits.missed(c)
    names = " and ".join(line.name for line in missed)
    ways = " with ".join(f"{line.flag} {typed(line, line.value(c))}" for line in missed)
    together = f"{names} bind together, {path}. Nearest that works: {ways} ({_told(c, spec)})"
    return Finding(f"{start}: {together}", nearest(c, limits))


def _told(c: Candidate, spec: ModelSpec) -> str:
    cache = "" if c.kv_type in ("f16", "f32") else f", {c.kv_type} cache"
    return f"{c.quant} in {c.runtime}{cache}, {len(c.blocks)} of {spec.n_blocks} blocks"


def _unknown(found: Sequence[Candidate], limits: Limits, device: DeviceProfile) -> str | None:
    """A limit on something that no candidate is known to reach."""
    where = ", ".join(sorted({f"{c.runtime} on {c.backend}" for c in found}))
    whole_of = {
        "min_decode_tok_per_s": f"no decode rate is known for {device.id} ({where}), so a speed can't be promised; "
        "leave out --min-tps and measure",
        "max_ttft_s": f"no prefill rate is known for {device.id} ({where}), so no time can be promised; "
        "leave out --max-ttft and measure",
        "max_kl": "no damage was published for the quantisations tried; leave out --max-kl and evaluate",
        "max_ppl_ratio": "no perplexity was measured or published for what was tried; leave out --max-ppl-ratio",
    }
    for line in limits.lines:
        if all(line.value(c) is None for c in found):
            return whole_of[line.key]
    return None
