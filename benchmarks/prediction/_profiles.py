"""What the fits say, as the files that are shipped: device_profiles/*.toml and the backends' priors.

Only `[[calibration]]` tables of the runtimes, backends and modes that have rows are written, and the sources that they
name; everything else in a profile is kept as it stands.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

from _learn import Device, median_error
from _rows import TWINS

from edgeprune._prior import Prior, Term
from edgeprune._rates import PRIORS
from edgeprune.devices import FOLDER

MOST_EFFICIENCY = 1.2  # a bus is not read faster than it is; a fifth is left for a bandwidth that is wrongly known
SOURCE = "public-rates"
MARK = "  # written by benchmarks/prediction/public.py"
_HEADER = re.compile(r"^\[.*$", re.M)


def outdated(found: list[Device], priors: dict[str, Prior], version: str) -> dict[Path, str]:
    """{file: text it should have} for every shipped file that differs from what the fits say."""
    wanted = {PRIORS: backend_priors(priors, version)}
    for path in sorted(FOLDER.glob("*.toml")):
        own = [d for d in found if path.stem in (d.key.profile, *TWINS.get(d.key.profile, ())) and not d.key.threads]
        if own:
            wanted[path] = with_calibrations(path.read_text(encoding="utf-8"), own)
    return {p: t for p, t in wanted.items() if not p.exists() or p.read_text(encoding="utf-8") != t}


def backend_priors(priors: dict[str, Prior], version: str) -> str:
    """Low, middle and high of every term: 90 % of devices are expected between."""

    def span(term: Term, scale: float, inverse: bool) -> list[float]:
        ends = (term.low, term.value, term.high)
        return [_round(scale / e) for e in reversed(ends)] if inverse else [_round(scale * e) for e in ends]

    backends = {}
    for backend, p in priors.items():
        weights, overhead, cache, attention = p.terms
        backends[backend] = {
            "efficiency": span(weights, 1, True),
            "overhead_us": span(overhead, 1e6, False),
            "cache_share": span(cache, 1, True),
            "attention_gflops": span(attention, 1e-9, True),
            "noise": _round(p.noise),
            "quant_spread": _round(p.kind_spread),
            "rows": p.n_rows,
            "devices": p.n_devices,
        }
    lines = ",\n".join(f'  "{b}": {json.dumps(t)}' for b, t in backends.items())
    return f'{{\n "from": {json.dumps(version)},\n "backends": {{\n{lines}\n }}\n}}\n'


def with_calibrations(text: str, found: list[Device]) -> str:
    """The profile's text with these fits in place of its calibrations for the same runtime, backend and mode."""
    bandwidth = float(re.search(r"^bandwidth = \{ value = ([\d.]+), unit = \"GB/s\"", text, re.M).group(1)) * 1e9
    blocks = _blocks(text)
    old = {_named(b): b for b in blocks if b.startswith("[[calibration]]")}
    new = {(d.key.runtime, d.key.backend, d.key.mode): d for d in found}
    written = [_calibration(d, bandwidth, old.get(k, "")) for k, d in new.items()]
    kept = [b for b in blocks if not b.startswith("[[calibration]]") or _named(b) not in new]
    kept = [b for b in kept if not b.startswith(f"[sources.{SOURCE}]")]
    at = next((i for i, b in enumerate(kept) if b.startswith("[sources.")), len(kept))
    blocks = [*kept[:at], *written, *kept[at:], _source(found)]
    body = "".join(b for b in blocks if not b.startswith("[sources."))
    return "".join(b for b in blocks if not b.startswith("[sources.") or f'src = "{_key(b)}"' in body).rstrip() + "\n"


def _blocks(text: str) -> list[str]:
    """A table's header with all that follows it; each ends in one empty line."""
    starts = [0, *(m.start() for m in _HEADER.finditer(text))]
    return [
        text[a:b].strip() + "\n\n" for a, b in zip(starts, [*starts[1:], len(text)], strict=True) if text[a:b].strip()
    ]


def _named(block: str) -> tuple[str | None, ...]:
    found = (re.search(rf'^{k} = "(.*)"$', block, re.M) for k in ("runtime", "backend", "mode"))
    return tuple(m.group(1) if m else None for m in found)


def _key(block: str) -> str:
    return re.match(r"\[sources\.([^\]]+)\]", block).group(1)


def _calibration(d: Device, bandwidth: float, old: str) -> str:
    weights, overhead, cache, attention = d.fit.terms
    lines = [f"[[calibration]]{MARK}", f'runtime = "{d.key.runtime}"', f'backend = "{d.key.backend}"']
    lines += [f'mode = "{d.key.mode}"'] if d.key.mode else []
    told = [
        ("efficiency", _inverse(weights), "share"),
        ("overhead_per_block", _scaled(overhead, 1e6), "us"),
        ("cache_rate", _scaled(_inverse(cache), bandwidth / 1e9), "GB/s"),
        ("attention_rate", _scaled(_inverse(attention), 1e-9), "GFLOP/s"),
    ]
    lines += [_figure(n, t, u, t.name in d.fit.undetermined) for n, t, u in told]
    lines += [_figure(f"efficiency_of.{k.name}", k, "share") for k in _of_quants(d)]
    lines += [f'error = {{ value = {_round(d.fit.noise)}, unit = "share", src = "{SOURCE}" }}']
    if d.prefill is not None:
        lines += [_figure("prefill_rate", _scaled(_inverse(d.prefill), 1e-12), "TFLOP/s")]
    else:
        lines += re.findall(r"^prefill_rate = .*$", old, re.M)
    lines += [f"n_rows = {len(d.lines)}", f"n_models = {d.models}", f'status = "{d.status}"']
    if d.models > 1:
        lines += [f'note = "leave-one-model-out median error {100 * median_error(d.without_model):.1f} %"']
    return "\n".join(lines) + "\n\n"


def _of_quants(d: Device) -> Iterable[Term]:
    """Efficiency of each quantisation that was measured: the first term times its factor."""
    covariance, size = d.fit.covariance, len(d.fit.terms)
    for i, k in enumerate(d.fit.kinds, size):
        spread = math.sqrt(covariance[0, 0] + covariance[i, i] + 2 * covariance[0, i])
        yield Term(k.name, 1 / (d.fit.terms[0].value * k.value), spread)


def _inverse(t: Term) -> Term:
    return t._replace(value=1 / t.value)


def _scaled(t: Term, by: float) -> Term:
    return t._replace(value=t.value * by)


def _figure(name: str, t: Term, unit: str, from_prior: bool = False) -> str:
    kind = ', kind = "prior"' if from_prior else ""
    high = min(t.high, MOST_EFFICIENCY) if unit == "share" else t.high
    ends = f"low = {_round(t.low)}, high = {_round(high)}"
    return f'{name} = {{ value = {_round(t.value)}, unit = "{unit}", {ends}, src = "{SOURCE}"{kind} }}'


def _source(found: list[Device]) -> str:
    cited = sorted({re.sub(r"\s+", " ", line.source.split(" (")[0]) for d in found for line in d.lines})
    cited = sorted({re.sub(r" (ctx|models/).*", "", c) for c in cited})
    title = f"Fitted by benchmarks/prediction to rates of {'; '.join(cited)}".replace('"', "'")
    return f'[sources.{SOURCE}]\ntitle = "{title}"\nkind = "computed"\n\n'


def _round(x: float) -> float:
    return float(f"{x:.3g}")
