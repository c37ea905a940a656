"""Which decode and prefill terms apply to a device, and how sure they are.

A profile's own calibration is used where it has one for the runtime and backend; terms that it lacks come from the
backend's prior: what a device of this kind that nobody measured would have, learned from the devices that were
(builtin/backend_priors.json, written by benchmarks/prediction/public.py). All intervals hold 90 %.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune._prior import Prior, Term, Z
from edgeprune.errors import UsageError
from edgeprune.types import Calibration, DeviceProfile, Figure

SMALL_SET = 8  # fewer rows than this are a prior whatever was fitted to them
PRIORS = Path(__file__).parent / "builtin" / "backend_priors.json"
# Terms of decode, in the order of a fit's amounts: streamed bytes and cache bytes are divided by the theoretical
# bandwidth, so that their terms are 1 / share of the bus; overhead is seconds per block, attention seconds per flop.
TERMS = ("weights", "overhead", "cache", "attention")
# Before any row: every backend's prior starts here, and it counts as one device.
WEAK = Prior(
    (
        Term("weights", 1 / 0.65, 0.3),
        Term("overhead", 50e-6, 1.2),
        Term("cache", 1 / 0.5, 0.8),
        Term("attention", 1 / 100e9, 1.5),
    ),
    noise=0.1,
    kind_spread=0.15,
)
# A probe on the machine reads below the theoretical bus: 54.3 of 76.8 GB/s on an i7-12700H (llama-roofline README).
PROBE_SHARE = 0.707
# How far the probe, few cores or arithmetic may take it: one i7 is all that the share above is from.
PROBE_SPREAD = 0.45
# A power mode caps clocks beside the bus: AGX Orin decodes 8.1 tok/s at 30 W, 27.1 at MAXN, the memory clock alike.
MODE_SLOW = 0.30
# Rows of one runtime foretell another's rate: MLC, vLLM and llama.cpp on one Jetson differ by up to this factor.
OTHER_RUNTIME = 1.4


class Span(NamedTuple):
    """A term with its pessimistic and optimistic value (pessimistic = slower)."""

    slow: float
    middle: float
    fast: float


class Rates(NamedTuple):
    backend: str
    bandwidth: float  # bytes/s that `efficiency` is a share of
    efficiency: Span
    overhead_us: Span
    attention_flops: Span
    cache_bytes_per_s: Span
    noise: float  # spread of one measurement about the formula, as a logarithm
    prefill_flops: float | None
    prefill_ends: tuple[float, float] | None  # slow, fast
    runtime_memory: int | None
    basis: str
    weights: dict[str, Span] = {}  # tensor type -> bytes/s, where it was measured: instead of efficiency · bandwidth
    prefill: dict[str, Span] = {}  # tensor type -> flop/s, instead of prefill_flops
    prefill_weights: dict[str, Span] = {}  # tensor type -> bytes/s, once for every micro-batch of a prompt
    prefill_activations: Span | None = None  # bytes/s of float32 activations into and out of matrices
    prefill_attention: Span | None = None  # flop/s

    def weight_rate(self, kind: str, which: int) -> float:
        """bytes/s of reading weights of this type; which: 0 slow, 1 middle, 2 fast."""
        if kind in self.weights:
            return self.weights[kind][which]
        return self.efficiency[which] * self.bandwidth

    def prompt_rate(self, kind: str, which: int) -> float | None:
        """flop/s of a prompt's matrices of this type. A type that was not measured goes as slow as the slowest that was."""
        if kind in self.prefill:
            return self.prefill[kind][which]
        return min(self.prefill.values()).middle if self.prefill else self.prefill_flops


def prior(backend: str) -> Prior | None:
    """Terms of a device of this backend that was never measured; None for a backend without a row."""
    found = _priors().get(backend)
    if found is None:
        return None
    spans = [found[k] for k in ("efficiency", "overhead_us", "cache_share", "attention_gflops")]
    values = (1 / spans[0][1], spans[1][1] * 1e-6, 1 / spans[2][1], 1e-9 / spans[3][1])
    terms = tuple(Term(n, v, math.log(s[2] / s[0]) / (2 * Z)) for n, v, s in zip(TERMS, values, spans, strict=True))
    return Prior(terms, found["noise"], found["quant_spread"], found["rows"], found["devices"])


def backends(device: DeviceProfile, runtime: str) -> tuple[str, ...]:
    """Backends of a runtime on a device, best first; () when the device does not list the runtime."""
    return device.runtimes.get(runtime, ())


def best_backend(device: DeviceProfile, runtime: str) -> str | None:
    """The first listed backend with a known rate, else the first listed."""
    listed = backends(device, runtime)
    return next((b for b in listed if b in _priors() or _rows(device, runtime, b)), listed[0] if listed else None)


def find(device: DeviceProfile, runtime: str, backend: str, mode: str | None, quant: str) -> Rates | None:
    """Terms for one runtime × backend (× power mode × quantisation); None when no rate is known.

    `mode` None means the device's first mode. Raises UsageError for a mode that the profile does not list.
    """
    chosen = _calibration(device, runtime, backend, mode, quant)
    before = prior(backend)
    if before is None and (chosen is None or chosen.efficiency is None):
        return None
    known = before or WEAK
    bandwidth = device.bandwidth.value
    efficiency, basis = _efficiency(device, runtime, backend, quant, chosen, known)
    scale, other = _mode_scale(device, mode)
    if other and (chosen is None or chosen.mode is None):
        if scale is None:
            return None  # the mode's clocks are known to matter and nothing was measured in it
        bandwidth *= scale
        efficiency = Span(efficiency.slow * MODE_SLOW, efficiency.middle * MODE_SLOW**0.5, efficiency.fast)
        basis += f"; nothing measured in power mode {mode}, so the interval is wide"
    _, overhead, cache_term, attention = known.terms
    prefill = chosen.prefill_rate if chosen else None
    return Rates(
        backend=backend,
        bandwidth=bandwidth,
        efficiency=efficiency,
        overhead_us=_overhead(chosen, overhead),
        attention_flops=_rate(chosen.attention_rate if chosen else None, attention, 1.0),
        cache_bytes_per_s=_rate(chosen.cache_rate if chosen else None, cache_term, device.bandwidth.value),
        noise=chosen.error.value if chosen and chosen.error else known.noise,
        prefill_flops=prefill.value if prefill else None,
        prefill_ends=(prefill.low or prefill.value, prefill.high or prefill.value) if prefill else None,
        runtime_memory=int(chosen.runtime_memory.value) if chosen and chosen.runtime_memory else None,
        basis=basis,
        weights={k: _span(f) for k, f in chosen.weight_rates.items()} if chosen else {},
        prefill={k: _span(f) for k, f in chosen.prefill_rates.items()} if chosen else {},
        prefill_weights={k: _span(f) for k, f in chosen.prefill_weight_rates.items()} if chosen else {},
        prefill_activations=_span(chosen.prefill_activation_rate)
        if chosen and chosen.prefill_activation_rate
        else None,
        prefill_attention=_span(chosen.prefill_attention_rate) if chosen and chosen.prefill_attention_rate else None,
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


def _efficiency(
    device: DeviceProfile, runtime: str, backend: str, quant: str, chosen: Calibration | None, known: Prior
) -> tuple[Span, str]:
    """Share of the bandwidth that reading weights reaches, and in words what that rests on."""
    weights = known.terms[0]
    if chosen is not None and chosen.efficiency is not None:
        figure = chosen.efficiency_of.get(quant)
        widen = 0.0 if figure or chosen.quant == quant or not chosen.efficiency_of else Z * known.kind_spread
        span = _rate(figure or chosen.efficiency, weights, 1.0)
        return _wider(span, widen), f"{chosen.status}: {counted(chosen)} on this device, {_of(chosen)}"
    text = f"prior: {known.n_rows} {backend} rows on {known.n_devices} device{'s' if known.n_devices != 1 else ''}"
    span, widen = Span(1 / weights.high, 1 / weights.value, 1 / weights.low), Z * known.kind_spread
    if device.bandwidth.kind == "measured":
        span = Span(*(min(x / PROBE_SHARE, 1.0) for x in span))
        widen, text = math.hypot(widen, Z * PROBE_SPREAD), text + ", over a bandwidth measured here"
    if runtime != "llamacpp":
        widen = math.hypot(widen, Z * math.log(OTHER_RUNTIME))
        text += f"; rows are of llama.cpp, none known for {runtime}"
    return _wider(span, widen), text


def counted(c: Calibration) -> str:
    return f"{c.n_rows} row{'s' if c.n_rows != 1 else ''} of {c.n_models} model{'s' if c.n_models != 1 else ''}"


def _of(c: Calibration) -> str:
    return " ".join(x for x in (c.backend, c.mode, c.quant) if x)


def _wider(span: Span, by: float) -> Span:
    """`by`: an independent error, half the width of its 90 % interval as a logarithm."""
    slow = math.exp(-math.hypot(math.log(span.middle / span.slow), by))
    fast = math.exp(math.hypot(math.log(span.fast / span.middle), by))
    return Span(span.middle * slow, span.middle, min(span.middle * fast, max(span.middle, 1.0)))


def _rate(figure: Figure | None, term: Term, scale: float) -> Span:
    """A rate from a profile's figure, or `scale` / the prior's term; an end that the figure lacks is the prior's."""
    slow, fast = math.exp(-Z * term.spread), math.exp(Z * term.spread)
    if figure is None:
        return Span(scale / term.value * slow, scale / term.value, scale / term.value * fast)
    return Span(figure.low or figure.value * slow, figure.value, figure.high or figure.value * fast)


def _span(figure: Figure) -> Span:
    """A rate: low is slow."""
    return Span(figure.low or figure.value, figure.value, figure.high or figure.value)


def _overhead(chosen: Calibration | None, term: Term) -> Span:
    o = chosen.overhead_per_block if chosen is not None else None
    if o is None:
        return Span(term.high * 1e6, term.value * 1e6, term.low * 1e6)
    slow = o.value * math.exp(Z * term.spread) if o.high is None else o.high
    return Span(slow, o.value, o.value * math.exp(-Z * term.spread) if o.low is None else o.low)


@cache
def _priors() -> dict[str, Any]:
    return json.loads(PRIORS.read_text(encoding="utf-8"))["backends"]
