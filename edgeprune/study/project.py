"""The terms on devices where nothing of the study was measured, and along contexts, model sizes and bandwidths.

All of it is foretold: by a device's own calibration where its profile has one, else by its backend's prior.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from edgeprune import devices, known_models
from edgeprune._rates import Rates, Span, best_backend, find
from edgeprune.errors import EdgepruneError
from edgeprune.study.design import Design, Task, Variant, shape_of, widths
from edgeprune.study.explain import Token, advantage, token
from edgeprune.study.record import Curve, Interval, Projection
from edgeprune.study.verdict import judge
from edgeprune.types import DeviceProfile

CLASSES = {
    "single-board computer": ("rpi5-8gb", "rk3588-orangepi5"),
    "mini PC": ("intel-n100",),
    "phone": ("sd-8elite",),
    "laptop CPU": ("intel-12-13-ddr5", "amd-7840u"),
    "Apple silicon": ("m4-pro",),
    "Jetson": ("jetson-orin-nano-8gb-super", "jetson-agx-orin-64gb"),
    "small GPU": ("rtx3060-12gb", "rtx4060-laptop"),
}
CONTEXTS = (0, 512, 1024, 2048, 4096, 8192, 16384, 32768)
MODELS = (
    "smollm2-135m",
    "smollm2-360m",
    "qwen2.5-0.5b",
    "tinyllama-1.1b",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "llama-3.1-8b",
)
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SHOWN = ("rpi5-8gb", "intel-12-13-ddr5", "jetson-orin-nano-8gb-super", "rtx3060-12gb")  # in curves


def chosen(names: Sequence[str]) -> list[tuple[str, DeviceProfile]]:
    """(class, profile) of these devices, or of one or two of every class. Raises UsageError for one that there is not."""
    of = {device: name for name, ids in CLASSES.items() for device in ids}
    wanted = names or [d for ids in CLASSES.values() for d in ids]
    profiles = [devices.load(name) for name in wanted]
    return [(of.get(p.id, "other"), p) for p in profiles]


def projections(d: Design, profiles: Sequence[tuple[str, DeviceProfile]], contexts: Sequence[int]) -> list[Projection]:
    """Every pair of the design on every device that lists its runtime with a known rate."""
    out = []
    for device_class, profile in profiles:
        for depth, width in _pairs(d.tasks):
            backend = best_backend(profile, depth.runtime)
            rates = backend and find(profile, depth.runtime, backend, None, depth.quant)
            if not rates:
                continue
            for context in contexts:
                a, b = (_token(t.variant, t.runtime, t.quant, rates, context) for t in (depth, width))
                found = advantage(a, b)
                out.append(
                    Projection(
                        device=profile.id, device_class=device_class, runtime=depth.runtime, backend=backend,
                        basis=rates.basis, ratio=depth.variant.ratio, quant=depth.quant, context=context,
                        depth=depth.variant.name, width=width.variant.name, equal=width.variant.equal,
                        depth_tok_per_s=1 / a.seconds, predicted=found, winner=judge(found),
                    )
                )  # fmt: skip
    return out


def curves(d: Design, profiles: Sequence[tuple[str, DeviceProfile]], host: DeviceProfile) -> list[Curve]:
    """Along the context and the model's size on a few devices, along the bandwidth from this machine's terms; of one
    quantisation, the ratio in the middle."""
    found = shown(d)
    if not found:
        return []
    ratio, quant = found
    runtime = next(t.runtime for t in d.tasks if t.quant == quant)
    some = [p for _, p in profiles if p.id in SHOWN] or [p for _, p in profiles][:4]
    out = list(_along_context(d, ratio, runtime, quant, some))
    out += _along_size(ratio, runtime, quant, some)
    return [*out, *_along_bandwidth(d, ratio, runtime, quant, host)]


def shown(d: Design) -> tuple[float, str] | None:
    """The ratio in the middle, and one quantisation, for what is shown of one only."""
    ratios = sorted({v.ratio for v in d.variants if v.kind == "depth"})
    quants = list(dict.fromkeys(t.quant for t in d.tasks))
    if not ratios:
        return None
    return ratios[(len(ratios) - 1) // 2], next((q for q in ("Q4_K_M", "Q4_0") if q in quants), quants[0])


def _along_context(
    d: Design, ratio: float, runtime: str, quant: str, shown: Sequence[DeviceProfile]
) -> Iterator[Curve]:
    xs = [c for c in CONTEXTS if c <= d.whole.shape.context]
    for profile in shown:
        rates = _rates(profile, runtime, quant)
        for depth, width in _pairs(d.tasks):
            if rates and depth.variant.ratio == ratio and (depth.runtime, depth.quant) == (runtime, quant):
                ys = [_advantage(depth.variant, width.variant, runtime, quant, rates, c) for c in xs]
                yield Curve(
                    axis="context", device=profile.id, quant=quant, width=width.variant.label(), x=tuple(xs), y=tuple(ys),
                    even_at=even_at(xs, ys),
                )  # fmt: skip


def _along_size(ratio: float, runtime: str, quant: str, shown: Sequence[DeviceProfile]) -> Iterator[Curve]:
    """Against the width that serves the runtime best: in 256s, or in 32s where that can't be matched."""
    points: list[tuple[str, Variant, Variant]] = []
    for name in MODELS:
        try:
            g = shape_of(known_models.load(name))
        except EdgepruneError:
            continue
        removed = max(1, round(ratio * g.n_blocks))
        depth = Variant("depth", "depth", ratio, g._replace(n_blocks=g.n_blocks - removed))
        found = [v for v in widths(g, depth)[0] if v.rounding > 1]
        if found:
            points.append((name, depth, max(found, key=lambda v: v.rounding)))
    for profile in shown:
        rates = _rates(profile, runtime, quant)
        if rates:
            ys = [_advantage(a, b, runtime, quant, rates, 0) for _, a, b in points]
            yield Curve(
                axis="model", device=profile.id, quant=quant, width="the width that serves the runtime best",
                x=tuple(float(a.params) for _, a, _ in points), x_labels=tuple(name for name, _, _ in points), y=tuple(ys),
            )  # fmt: skip


def _along_bandwidth(d: Design, ratio: float, runtime: str, quant: str, host: DeviceProfile) -> Iterator[Curve]:
    """As if this machine read its weights and its cache so much faster, all else the same."""
    rates = _rates(host, runtime, quant)
    for depth, width in _pairs(d.tasks) if rates else ():
        if depth.variant.ratio != ratio or (depth.runtime, depth.quant) != (runtime, quant):
            continue
        ys = [_advantage(depth.variant, width.variant, runtime, quant, _faster(rates, s), 0) for s in SCALES]
        yield Curve(
            axis="bandwidth", device=host.id, quant=quant, width=width.variant.label(), x=SCALES, y=tuple(ys),
            even_at=even_at(SCALES, ys),
        )  # fmt: skip


def even_at(xs: Sequence[float], ys: Sequence[Interval]) -> float | None:
    """Where the ratio passes 1, linearly between points; None where it does not."""
    for (x0, y0), (x1, y1) in zip(zip(xs, ys, strict=True), list(zip(xs, ys, strict=True))[1:], strict=False):
        a, b = math.log(y0.middle), math.log(y1.middle)
        if a * b < 0:
            return x0 + (x1 - x0) * a / (a - b)
    return None


def _pairs(tasks: Sequence[Task]) -> Iterator[tuple[Task, Task]]:
    for depth in (t for t in tasks if t.variant.kind == "depth"):
        for t in tasks:
            same = (t.runtime, t.quant, t.variant.ratio) == (depth.runtime, depth.quant, depth.variant.ratio)
            if same and t.variant.kind == "width":
                yield depth, t


def _advantage(a: Variant, b: Variant, runtime: str, quant: str, rates: Rates, context: int) -> Interval:
    return advantage(_token(a, runtime, quant, rates, context), _token(b, runtime, quant, rates, context))


def _token(v: Variant, runtime: str, quant: str, rates: Rates, context: int) -> Token:
    return token(v.spec, runtime, quant, rates, context)


def _rates(profile: DeviceProfile, runtime: str, quant: str) -> Rates | None:
    backend = best_backend(profile, runtime)
    return find(profile, runtime, backend, None, quant) if backend else None


def _faster(rates: Rates, by: float) -> Rates:
    def times(span: Span) -> Span:
        return Span(*(x * by for x in span))

    return rates._replace(
        bandwidth=rates.bandwidth * by,
        weights={k: times(s) for k, s in rates.weights.items()},
        cache_bytes_per_s=times(rates.cache_bytes_per_s),
    )
