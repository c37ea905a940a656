"""Observations of decode and prefill -> one Calibration per runtime × backend: the terms of edgeprune.cost, fitted.

    decode   seconds per token  = Σ_types bytes / weight_rate + n_blocks · overhead + cache's bytes / cache_rate
                                  + attention's work / attention_rate
    prefill  seconds of a prompt = Σ_types (flops / prefill_rate + micro-batches · bytes / prefill_weight_rate)
                                   + activations' bytes / prefill_activation_rate
                                   + attention's work / prefill_attention_rate + head

Every tensor type has a rate of its own: a file quantisation mixes types (Q4_K_M holds Q4_K and Q6_K), and kernels differ
by more than their bytes. So quantisations that were never run are foretold from the types that they are made of. What
separates the terms: an output matrix is bytes without blocks, so depths tell bytes from blocks; contexts tell attention.

Where a profile has a fit of its own already, decode starts from that fit instead of the backend's prior, so that few new
rows adjust what many older ones said, and many replace it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from edgeprune._fit import Fit, Row, fit, predict
from edgeprune._kv_types import ELEMENT_BYTES, native
from edgeprune._prior import Prior, Term, Z
from edgeprune._rates import WEAK, prior
from edgeprune._sizes import Matrices, Shapes, sizes
from edgeprune.blocks import whole
from edgeprune.cost import ACTIVATION_BYTES, LLAMACPP_UBATCH, attention_work, cells_waited_for, prompt_pairs
from edgeprune.types import Calibration, Figure, ModelSpec

OVERHEAD, CACHE, ATTENTION, ACTIVATIONS = "per block", "reading the cache", "attention", "activations"
NOISE = 0.02  # of one timed median about the formula, before any is known
WIDE = 1.2  # a prior's spread as a logarithm: a factor of 7 either way
NEAR = 0.7
PREFILL_FLOPS = 1e11  # where nothing else says more
PREFILL_ACTIVATIONS = 0.05  # of the bandwidth, likewise
HEAD_SHARE = 0.9  # most of a prompt's time that is believed to be known from decode
MACHINES = 0.1  # spread between two machines, or builds of a runtime, that one profile describes
MIN_FITTED = 8  # rows below which a profile calls its figures a prior (edgeprune._profile_toml)


class Observation(NamedTuple):
    """The time of one model in one state."""

    model: str  # of one shape at one depth
    spec: ModelSpec
    runtime: str
    backend: str
    build: str
    quant: str
    matrices: tuple[Matrices, ...]
    what: Literal["decode", "prefill"]
    tokens: int  # decode: in the cache; prefill: of the prompt
    seconds: float  # decode: per token; prefill: in all
    samples: tuple[float, ...] = ()


class Judged(NamedTuple):
    """An observation beside what the fit says of it."""

    observation: Observation
    predicted_s: float

    @property
    def ratio(self) -> float:
        return self.predicted_s / self.observation.seconds


class Fitted(NamedTuple):
    calibration: Calibration
    rows: tuple[Judged, ...]
    unclear: tuple[str, ...]  # what the rows could not tell, one sentence each


def matrices_of(spec: ModelSpec, runtime: str, quant: str) -> tuple[Matrices, ...]:
    """Of a whole model at a file quantisation. Raises UsageError for one that the runtime's format does not have."""
    return sizes(Shapes(spec), whole(spec.n_blocks), runtime, quant).matrices


def fit_all(
    found: Sequence[Observation], bandwidth: float, status: str, source: str, memory: dict[tuple[str, str], float],
    known: dict[tuple[str, str], Calibration] | None = None, mode: str | None = None,
) -> list[Fitted]:  # fmt: skip
    """One result per runtime × backend, in the order of the observations. `memory`: bytes of a runtime itself; `known`:
    fits of older rows to start from; `mode`: the power mode that the rows are of."""
    groups: dict[tuple[str, str], list[Observation]] = {}
    for o in found:
        groups.setdefault((o.runtime, o.backend), []).append(o)
    known = known or {}
    return [
        _fit_one(key, rows, bandwidth, status, source, memory.get(key), known.get(key), mode)
        for key, rows in groups.items()
    ]


def _fit_one(
    key: tuple[str, str], rows: list[Observation], bandwidth: float, status: str, source: str, memory: float | None,
    known: Calibration | None, mode: str | None,
) -> Fitted:  # fmt: skip
    runtime, backend = key
    decode = [o for o in rows if o.what == "decode"]
    prefill = [o for o in rows if o.what == "prefill"]
    judged: list[Judged] = []
    unclear: list[str] = []
    found: dict[str, Any] = {}

    def figure(value: float, low: float, high: float, unit: str) -> Figure:
        return Figure(
            value=value, unit=unit, source=source, kind="measured", low=min(low, value), high=max(high, value)
        )

    def rate(term: Term, unit: str) -> Figure:
        """A term is seconds per unit of work; a rate its inverse."""
        return figure(1 / term.value, 1 / term.high, 1 / term.low, unit)

    speeds: dict[str, float] = {}
    if decode:
        types = _types(decode)
        result = fit([_decode_row(o, types) for o in decode], _decode_prior(types, backend, bandwidth, known))
        terms = {t.name: t for t in result.terms}
        judged += [Judged(o, predict(result, _decode_row(o, types).amounts).seconds) for o in decode]
        found["weight_rates"] = {t: rate(terms[t], "bytes/s") for t in types}
        speeds = {t: f.value for t, f in found["weight_rates"].items()}
        overhead = terms[OVERHEAD]
        found["overhead_per_block"] = figure(overhead.value * 1e6, overhead.low * 1e6, overhead.high * 1e6, "us")
        found["cache_rate"] = rate(terms[CACHE], "bytes/s")
        found["attention_rate"] = rate(terms[ATTENTION], "flop/s")
        found["error"] = Figure(value=result.noise, unit="ratio", source=source, kind="measured")
        found["efficiency"] = _efficiency(decode, found["weight_rates"], bandwidth, figure)
        unclear += _unclear("decode", result)
    if prefill:
        types = _types(prefill)
        net = [o._replace(seconds=_without_known(o, speeds, found)) for o in prefill]
        result = fit([_prefill_row(o, types) for o in net], _prefill_prior(net, types, speeds, found, bandwidth))
        terms = {t.name: t for t in result.terms}
        found["prefill_rates"] = {t: rate(terms[t], "flop/s") for t in types}
        found["prefill_weight_rates"] = {t: rate(terms[f"{t} once"], "bytes/s") for t in types}
        found["prefill_activation_rate"] = rate(terms[ACTIVATIONS], "bytes/s")
        found["prefill_rate"] = _prefill_rate(found["prefill_rates"], figure)
        found["prefill_attention_rate"] = rate(terms[ATTENTION], "flop/s")
        for o, n in zip(prefill, net, strict=True):
            seconds = predict(result, _prefill_row(n, types).amounts).seconds + o.seconds - n.seconds
            judged.append(Judged(o, seconds))
        unclear += _unclear("prefill", result)
    if memory is not None:
        found["runtime_memory"] = figure(memory, memory, memory, "bytes")
    n_rows, n_models = len(rows), len({o.model for o in rows})
    if known:
        found = _beside(known, found, n_rows)
        n_rows, n_models = n_rows + known.n_rows, n_models + known.n_models
    told = status if status != "fitted" or n_rows >= MIN_FITTED else "prior"
    calibration = Calibration(
        runtime=runtime, backend=backend, mode=mode, build=rows[0].build, n_rows=n_rows, n_models=n_models, status=told,
        **found,
    )  # fmt: skip
    return Fitted(calibration, tuple(judged), tuple(f"{runtime} on {backend}: {line}" for line in unclear))


def _types(rows: Sequence[Observation]) -> list[str]:
    return sorted({w.type for o in rows for w in o.matrices})


def _decode_row(o: Observation, types: list[str]) -> Row:
    amounts = {w.type: w.block_bytes + w.head_bytes for w in o.matrices}
    kv_type = native(o.runtime, o.quant)
    cells = cells_waited_for(o.runtime, o.backend, o.tokens, kv_type)
    attention = attention_work(o.spec, whole(o.spec.n_blocks), cells, ELEMENT_BYTES[kv_type])
    return Row(o.model, (*(amounts.get(t, 0.0) for t in types), o.spec.n_blocks, *attention), o.seconds)


def _prefill_row(o: Observation, types: list[str]) -> Row:
    batches = -(-o.tokens // LLAMACPP_UBATCH) if o.runtime == "llamacpp" else 1
    flops = {w.type: 2.0 * w.block_params * o.tokens for w in o.matrices}
    once = {w.type: batches * w.block_bytes for w in o.matrices}
    activations = ACTIVATION_BYTES * o.tokens * sum(w.block_values for w in o.matrices)
    attention = prompt_pairs(o.runtime, o.backend, o.tokens)[0] * _pair(o)[1]
    amounts = (*(flops.get(t, 0.0) for t in types), *(once.get(t, 0.0) for t in types))
    return Row(o.model, (*amounts, activations, attention), o.seconds)


def _pair(o: Observation) -> tuple[float, float]:
    """(bytes of cache, operations) of one query and one key in every head."""
    return attention_work(o.spec, whole(o.spec.n_blocks), 1, ELEMENT_BYTES[native(o.runtime, o.quant)])


def _without_known(o: Observation, speeds: dict[str, float], found: dict[str, Any]) -> float:
    """Less what decode has told: the output matrix, read once for a whole prompt, and queries taken one by one."""
    known = sum(w.head_bytes / speeds[w.type] for w in o.matrices if w.type in speeds)
    single = prompt_pairs(o.runtime, o.backend, o.tokens)[1]
    if single and speeds:
        cache, flops = _pair(o)
        known += single * (cache / found["cache_rate"].value + flops / found["attention_rate"].value)
    return o.seconds - min(known, HEAD_SHARE * o.seconds)


def _decode_prior(types: list[str], backend: str, bandwidth: float, known: Calibration | None) -> Prior:
    """The backend's own, of a device nobody measured, as wide as rows of this one can make it narrow again; or `known`."""
    before = prior(backend) or WEAK
    weights, overhead, cache, attention = before.terms
    terms = [Term(t, weights.value / bandwidth, WIDE) for t in types]
    terms += [Term(OVERHEAD, overhead.value, WIDE), Term(CACHE, cache.value / bandwidth, NEAR)]
    terms.append(Term(ATTENTION, attention.value, WIDE))
    if known is None:
        return Prior(tuple(terms), NOISE)
    share = known.efficiency
    of_all = share and share.model_copy(
        update={k: getattr(share, k) and getattr(share, k) * bandwidth for k in ("value", "low", "high")}
    )
    said = {t: known.weight_rates.get(t, of_all) for t in types}
    said |= {CACHE: known.cache_rate, ATTENTION: known.attention_rate}
    rates = {name: _as_known(name, f) for name, f in said.items() if f}
    per_block = known.overhead_per_block
    if per_block:
        rates[OVERHEAD] = _as_known(OVERHEAD, per_block)._replace(value=max(per_block.value, 1e-3) * 1e-6)
    for t in set(types) - set(known.weight_rates):
        if t in rates:  # what all types reached together tells less of one
            rates[t] = rates[t]._replace(spread=math.hypot(rates[t].spread, before.kind_spread))
    return Prior(tuple(rates.get(t.name, t) for t in terms), known.error.value if known.error else NOISE)


def _as_known(name: str, f: Figure) -> Term:
    """A figure of an older fit as what is believed of this machine: a rate as seconds per unit, its interval wider."""
    ends = math.log(f.high / f.low) / (2 * Z) if f.low and f.high else NEAR
    return Term(name, 1 / f.value, math.hypot(ends, MACHINES))


def _beside(known: Calibration, found: dict[str, Any], n_rows: int) -> dict[str, Any]:
    """The new terms, and of the older fit what the new rows could not tell."""
    fields = {k: getattr(known, k) for k in type(known).model_fields}
    figures = {k: v for k, v in fields.items() if isinstance(v, Figure) or (isinstance(v, dict) and v)}
    both = {k: figures[k] | v for k, v in found.items() if isinstance(v, dict) and k in figures}
    kept = {"efficiency": known.efficiency} if known.efficiency and known.n_rows > n_rows else {}
    return {**figures, **found, **both, **kept}


def _prefill_prior(
    rows: Sequence[Observation], types: list[str], speeds: dict[str, float], found: dict, bandwidth: float
) -> Prior:
    """Where to start: half the time of the longest prompts for the matrices, the rest as in decode.

    Nothing is known of prefill that would hold for a Raspberry Pi as for a GPU, so scale is taken from the rows; the
    spreads leave each term a factor of 3 to 7 either way.
    """
    longest = max(o.tokens for o in rows)
    terms = []
    for t in types:
        shares = [
            0.5 * o.seconds / (2 * w.block_params * o.tokens)
            for o in rows
            for w in o.matrices
            if w.type == t and w.block_params and o.tokens > longest / 2
        ]
        terms.append(Term(t, statistics.median(shares or [1 / PREFILL_FLOPS]), WIDE))
    terms += [Term(f"{t} once", 1 / speeds.get(t, 0.5 * bandwidth), NEAR) for t in types]
    attention = found.get("attention_rate")
    terms.append(Term(ACTIVATIONS, 1 / (PREFILL_ACTIVATIONS * bandwidth), WIDE))
    terms.append(Term(ATTENTION, 0.5 / attention.value if attention else 1 / PREFILL_FLOPS, WIDE))
    return Prior(tuple(terms), NOISE)


def _efficiency(decode: Sequence[Observation], rates: dict[str, Figure], bandwidth: float, figure) -> Figure:
    """For types that were not run: the share of the bandwidth that all rows together reached, between the types'."""
    total = {t: sum(w.block_bytes + w.head_bytes for o in decode for w in o.matrices if w.type == t) for t in rates}
    middle = sum(total.values()) / sum(n / rates[t].value for t, n in total.items())
    ends = [f.value for f in rates.values()]
    shares = [min(1.2, x / bandwidth) for x in (middle, min(ends), max(ends))]  # the loader's ceiling
    return figure(*shares, "ratio")


def _prefill_rate(rates: dict[str, Figure], figure) -> Figure:
    values = sorted(f.value for f in rates.values())
    middle = math.exp(sum(map(math.log, values)) / len(values))
    return figure(middle, values[0], values[-1], "flop/s")


def _unclear(what: str, result: Fit) -> list[str]:
    """Sentences on what the rows leave open."""
    lines = []
    if result.undetermined:
        lines.append(f"{what}: the rows say little about {', '.join(result.undetermined)}; the prior stands there")
    pairs = [f"{a} and {b}" for a, b in itertools.islice(result.confounded, 4)]
    if pairs:
        lines.append(f"{what}: the rows can't tell apart {'; '.join(pairs)}")
    return lines
