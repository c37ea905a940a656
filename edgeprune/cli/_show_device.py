"""Device profiles as text: the table of all, and one device's page of what is known, from where, and how sure."""

from __future__ import annotations

from edgeprune.cli._terminal import clean, say, table
from edgeprune.types import Calibration, DeviceProfile, Figure
from edgeprune.units import show_bytes

_SURE = {
    "host-calibrated": "measured on this machine, by `edgeprune calibrate`",
    "fitted": "fitted to published rates of this device",
    "prior": "too few rows to be sure of; the backend's prior fills what they don't tell",
}


def figure(f: Figure | None) -> str:
    """A figure with its unit and its interval; "~" marks one without a source."""
    if f is None:
        return ""
    mark, ends = "~" if f.kind == "unsourced" else "", (f.low, f.high)
    scale, unit = {"bytes/s": (1e9, " GB/s"), "us": (1, " µs"), "ratio": (1, ""), "W": (1, " W")}.get(f.unit, (1, ""))
    if f.unit == "bytes":
        return mark + show_bytes(f.value)
    if f.unit == "flop/s":
        scale, unit = (1e12, " TFLOP/s") if f.value >= 1e12 else (1e9, " GFLOP/s")
    span = f" ({_ends(ends, scale)})" if any(e is not None for e in ends) else ""
    return f"{mark}{_three(f.value / scale)}{unit}{span}"


def _three(x: float) -> str:
    return f"{x:.3g}" if x < 1000 else f"{x:.0f}"


def _ends(ends: tuple[float | None, float | None], scale: float) -> str:
    low, high = (None if e is None else _three(e / scale) for e in ends)
    return f"{low} to {high}" if low and high else f"from {low}" if low else f"to {high}"


def device_table(profiles: list[DeviceProfile], origins: dict[str, str], faults: dict[str, str]) -> None:
    rows = [
        [p.id, p.name, _short(p.memory_total), _short(p.memory_available), figure(p.bandwidth), known(p), _others(p)]
        for p in profiles
    ]
    table(None, ["device", "name", "memory", "for a model", "bandwidth", "speed known from", "also called"], rows)
    say(
        "~ is a figure without a source. `edgeprune devices NAME` shows where each figure comes from and how sure it is."
    )
    for device_id, text in [*origins.items(), *faults.items()]:
        if text:
            say(f"{device_id}: {text}")


def known(p: DeviceProfile) -> str:
    """The surest calibration in few words, e.g. "fitted, 13 rows"."""
    found = [c for c in p.calibrations if c.efficiency is not None and c.runtime in ("llamacpp", "onnxruntime")]
    best = max(found, key=lambda c: (list(_SURE)[::-1].index(c.status), c.n_rows), default=None)
    return f"{best.status}, {best.n_rows} row{'s' if best.n_rows != 1 else ''}" if best else "prior of its backend"


def _others(p: DeviceProfile) -> str:
    return ", ".join(p.aliases[:2])


def _short(f: Figure) -> str:
    binary = f.value % 2**30 == 0
    return (
        f"{'~' if f.kind == 'unsourced' else ''}{f.value / (2**30 if binary else 1e9):.3g} {'GiB' if binary else 'GB'}"
    )


def device(p: DeviceProfile, asked: str, origin: str) -> None:
    say(f"{p.id}: {p.vendor} {p.name}" + (f" (asked: {clean(asked)})" if asked != p.id else ""))
    for label, text in (("profile", origin), ("could also mean", ", ".join(p.siblings)), ("note", p.note)):
        if text:
            say(f"{label}: {text}")
    say("\nFacts (~ without a source)")
    facts = [("memory", p.memory_total), ("for a model", p.memory_available), ("bandwidth", p.bandwidth)]
    rows = [[label, figure(f), f.kind, f.source, f.note or ""] for label, f in facts]
    table(None, ["figure", "value", "kind", "source", "note"], rows)
    for label, text in (("cpu", p.cpu), ("isa", p.isa), ("gpu", p.gpu), ("peak", p.peak), ("power", p.power)):
        if text:
            say(f"{label}: {text}")
    say("runtimes: " + "; ".join(f"{r} on {', '.join(b)}" for r, b in p.runtimes.items()))
    if p.modes:
        say("\nPower modes, the first is planned for")
        rows = [
            [m.name, f"{m.watts:g} W" if m.watts else "", _scale(m.bandwidth_scale), m.note or "", m.source]
            for m in p.modes
        ]
        table(None, ["mode", "power", "bandwidth", "note", "source"], rows)
    for c in p.calibrations:
        _calibration(c)
    _unmeasured(p)


def _calibration(c: Calibration) -> None:
    what = " ".join(x for x in (c.runtime, c.backend, c.mode, c.quant) if x)
    counted = f"{c.n_rows} row{'s' if c.n_rows != 1 else ''} of {c.n_models} model{'s' if c.n_models != 1 else ''}"
    say(f"\nSpeed of {what}: {c.status}, {counted}; {_SURE[c.status]}")
    named = [
        ("weights, share of the bandwidth", c.efficiency),
        *((f"  {q}", f) for q, f in c.efficiency_of.items()),
        *((f"  reading {t}", f) for t, f in c.weight_rates.items()),
        ("fixed cost per block", c.overhead_per_block),
        ("reading the KV cache", c.cache_rate),
        ("arithmetic of attention", c.attention_rate),
        ("prefill", c.prefill_rate),
        *((f"  of {t}", f) for t, f in c.prefill_rates.items()),
        ("spread of one measurement", c.error),
        ("runtime's own memory", c.runtime_memory),
    ]
    known = [(n, f) for n, f in named if f]
    sources = {f.source for _, f in known}
    rows = [[n, figure(f), f.kind, *([f.source] if len(sources) > 1 else [])] for n, f in known]
    table(None, ["term", "value (90 %)", "kind", *(["source"] if len(sources) > 1 else [])], rows)
    if len(sources) == 1:
        say(f"source: {sources.pop()}")
    for label, text in (("note", c.note), ("build", c.build)):
        if text:
            say(f"{label}: {text}")


def _unmeasured(p: DeviceProfile) -> None:
    """Backends whose speed is the prior's alone."""
    from edgeprune._rates import prior

    have = {(c.runtime, c.backend) for c in p.calibrations if c.efficiency is not None}
    lines = []
    for runtime in ("llamacpp", "onnxruntime"):
        for backend in (b for b in p.runtimes.get(runtime, ()) if (runtime, b) not in have):
            before = prior(backend)
            weights = before.terms[0] if before else None
            share = (
                f"{1 / weights.value:.2g} ({1 / weights.high:.2g} to {min(1, 1 / weights.low):.2g})" if weights else ""
            )
            rows = f"{before.n_rows} rows on {before.n_devices} other devices" if before else "no rate is known"
            lines.append([f"{runtime} {backend}", share, rows])
    if lines:
        say("\nNot measured here: the backend's prior")
        table(None, ["for", "share of the bandwidth (90 %)", "from"], lines)


def _scale(x: float | None) -> str:
    return "not known" if x is None else f"× {x:g}"
