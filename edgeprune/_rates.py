"""Which decode and prefill terms apply to a device, and how sure they are.

A profile's own calibration is used where it has one for the runtime and backend; terms that it lacks come from the
backend's prior. A prior is a median over many devices with its 10th and 90th percentile.
"""

from __future__ import annotations

from typing import NamedTuple

from edgeprune.errors import UsageError
from edgeprune.types import Calibration, DeviceProfile, Figure

SMALL_SET = 8  # fewer rows than this are a prior whatever was fitted to them
# Survey of published batch-1 rates, most of llama.cpp: dense models, file ≥ 1.5 GiB, depth ≤ 1.1k tokens.

# backend -> (p10, median, p90, rows, devices) of tokens/s · bytes / theoretical bandwidth
EFFICIENCY = {
    "cpu": (0.40, 0.58, 0.71, 34, 14),
    "cuda": (0.57, 0.74, 0.89, 37, 15),
    "metal": (0.58, 0.79, 0.86, 95, 32),
    "vulkan": (0.36, 0.67, 0.79, 9, 8),
    "opencl": (0.41, 0.59, 0.62, 19, 4),
    "hexagon": (0.24, 0.51, 0.62, 17, 3),
    "rknpu": (0.80, 0.82, 0.84, 2, 1),
}
# backend -> (fast, middle, slow) µs per block beside the bytes. cpu and cuda: fits of Ryzen 7840HS (14 rows) and
# RTX 3060 (34 rows); the others are set so that 86-91 % of the survey's rows fall between slow and fast.
OVERHEAD_US = {
    "cpu": (0.0, 26.0, 60.0),
    "cuda": (0.0, 38.0, 85.0),
    "metal": (0.0, 40.0, 85.0),
    "vulkan": (0.0, 10.0, 100.0),
    "opencl": (0.0, 100.0, 400.0),
    "hexagon": (0.0, 100.0, 600.0),
    "rknpu": (200.0, 347.0, 500.0),
}
# CPU attention is bound by arithmetic, not by the bus: 17-46 GFLOP/s in published rows at 512 and 4096 tokens.
CPU_ATTENTION_FLOPS = (17e9, 20e9, 46e9)
# GPUs read the cache at a share of the bus: 282 of 360 GB/s (RTX 3060, 2026 build), 18 of 135 GB/s (X Elite OpenCL).
CACHE_SHARE = {"cuda": (0.3, 0.78, 0.9), "metal": (0.3, 0.6, 0.86), "vulkan": (0.2, 0.5, 0.79)}
CACHE_SHARE |= {"opencl": (0.05, 0.13, 0.5), "hexagon": (0.05, 0.1, 0.5), "rknpu": (0.1, 0.3, 0.8)}
# A probe on the machine reads below the theoretical bus: 54.3 of 76.8 GB/s on an i7-12700H (llama-roofline README).
PROBE_SHARE = 0.707
# A power mode caps clocks beside the bus: AGX Orin decodes 8.1 tok/s at 30 W, 27.1 at MAXN, the memory clock alike.
MODE_SLOW = 0.30
# Few cores or a small model are bound by arithmetic instead: the survey's p10 over all CPU rows.
CPU_ALL_ROWS_P10 = 0.18


class Span(NamedTuple):
    """A term with its pessimistic and optimistic value (pessimistic = slower)."""

    slow: float
    middle: float
    fast: float


class Rates(NamedTuple):
    bandwidth: float  # bytes/s that `efficiency` is a share of
    efficiency: Span
    overhead_us: Span
    attention_flops: Span | None  # one of these two
    cache_bytes_per_s: Span | None
    prefill_flops: float | None
    runtime_memory: int | None
    basis: str


def backends(device: DeviceProfile, runtime: str) -> tuple[str, ...]:
    """Backends of a runtime on a device, best first; () when the device does not list the runtime."""
    return device.runtimes.get(runtime, ())


def best_backend(device: DeviceProfile, runtime: str) -> str | None:
    """The first listed backend with a known rate, else the first listed."""
    listed = backends(device, runtime)
    return next((b for b in listed if b in EFFICIENCY or _rows(device, runtime, b)), listed[0] if listed else None)


def find(device: DeviceProfile, runtime: str, backend: str, mode: str | None, quant: str) -> Rates | None:
    """Terms for one runtime × backend (× power mode × quantisation); None when no rate is known.

    `mode` None means the device's first mode. Raises UsageError for a mode that the profile does not list.
    """
    chosen = _calibration(device, runtime, backend, mode, quant)
    if backend not in EFFICIENCY and (chosen is None or chosen.efficiency is None):
        return None
    efficiency, basis = _efficiency(device, backend, chosen)
    if runtime != "llamacpp" and (chosen is None or chosen.efficiency is None):
        basis += f"; rows are of llama.cpp, none known for {runtime}"
    bandwidth = device.bandwidth.value
    scale, other = _mode_scale(device, mode)
    if other and (chosen is None or chosen.mode is None):
        if scale is None:
            return None  # the mode's clocks are known to matter and nothing was measured in it
        bandwidth *= scale
        efficiency = Span(efficiency.slow * MODE_SLOW, efficiency.middle * MODE_SLOW**0.5, efficiency.fast)
        basis += f"; nothing measured in power mode {mode}, so the interval is wide"
    attention, cache = _attention(device, backend, chosen)
    return Rates(
        bandwidth=bandwidth,
        efficiency=efficiency,
        overhead_us=_overhead(backend, chosen),
        attention_flops=attention,
        cache_bytes_per_s=cache,
        prefill_flops=chosen.prefill_rate.value if chosen and chosen.prefill_rate else None,
        runtime_memory=int(chosen.runtime_memory.value) if chosen and chosen.runtime_memory else None,
        basis=basis,
    )


def _rows(device: DeviceProfile, runtime: str, backend: str) -> list[Calibration]:
    return [c for c in device.calibrations if c.runtime == runtime and c.backend == backend]


def _calibration(device: DeviceProfile, runtime: str, backend: str, mode: str | None, quant: str) -> Calibration | None:
    """The most specific one for the mode; one of another quantisation only comes last."""
    first = device.modes[0].name if device.modes else None
    wanted = mode or first

    def fit(c: Calibration) -> tuple[bool, bool, bool]:
        return (c.mode == wanted, c.quant == quant, c.quant is None)

    usable = [c for c in _rows(device, runtime, backend) if c.mode in (None, wanted)]
    return max(usable, key=fit, default=None)


def _mode_scale(device: DeviceProfile, mode: str | None) -> tuple[float | None, bool]:
    """(share of the bandwidth, is this another mode than the first)."""
    if mode is None:
        return 1.0, False
    for i, m in enumerate(device.modes):
        if m.name == mode:
            return (1.0 if i == 0 else m.bandwidth_scale), i > 0
    known = ", ".join(m.name for m in device.modes) or "none"
    raise UsageError(f"{device.id} has no power mode {mode!r}; known: {known}")


def _efficiency(device: DeviceProfile, backend: str, chosen: Calibration | None) -> tuple[Span, str]:
    prior = EFFICIENCY.get(backend)
    if chosen is not None and chosen.efficiency is not None:
        e = chosen.efficiency
        low, high = e.low, e.high
        if low is None and prior:
            low = e.value * prior[0] / prior[1]
        if high is None and prior:
            high = min(1.0, e.value * prior[2] / prior[1])
        what = f"{chosen.n_rows} row{'s' if chosen.n_rows != 1 else ''} of {chosen.n_models} model"
        what += f"{'s' if chosen.n_models != 1 else ''} on this device, {_of(chosen)}"
        return Span(low or e.value, e.value, high or e.value), f"{chosen.status}: {what}"
    p10, median, p90, rows, devices = EFFICIENCY[backend]
    text = f"prior: {rows} {backend} rows on {devices} devices"
    if device.bandwidth.kind == "measured":
        span = Span(CPU_ALL_ROWS_P10, min(median / PROBE_SHARE, 1.0), min(p90 / PROBE_SHARE, 1.0))
        return span, text + ", over a bandwidth measured here"
    return Span(p10, median, p90), text


def _of(c: Calibration) -> str:
    return " ".join(x for x in (c.backend, c.mode, c.quant) if x)


def _span(figure: Figure) -> Span:
    """A rate: low is slow."""
    return Span(figure.low or figure.value, figure.value, figure.high or figure.value)


def _overhead(backend: str, chosen: Calibration | None) -> Span:
    if chosen is not None and chosen.overhead_per_block is not None:
        o = chosen.overhead_per_block
        return Span(o.high or o.value, o.value, o.low if o.low is not None else o.value)
    fast, middle, slow = OVERHEAD_US.get(backend, (0.0, 0.0, 0.0))
    return Span(slow, middle, fast)


def _attention(device: DeviceProfile, backend: str, chosen: Calibration | None) -> tuple[Span | None, Span | None]:
    if chosen is not None and chosen.attention_rate is not None:
        return _span(chosen.attention_rate), None
    if chosen is not None and chosen.cache_rate is not None:
        return None, _span(chosen.cache_rate)
    if backend in CACHE_SHARE:
        return None, Span(*(share * device.bandwidth.value for share in CACHE_SHARE[backend]))
    return Span(*CPU_ATTENTION_FLOPS), None
