"""Where a token's time goes, by the terms of edgeprune.cost, and what that foretells of two models of equal size.

    seconds = bytes of its types + bytes of larger types that odd widths fall back to + blocks + cache + attention

Terms are fitted to the study's own rows. Every model is then foretold by a fit that saw no row of it: what is left over is
what the terms don't know, such as kernels that an odd width slows down.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from edgeprune import _gguf_mix as mix
from edgeprune import _kv_types
from edgeprune._rates import Rates, Span, find
from edgeprune._sizes import Shapes, Sizes, sizes
from edgeprune._terms import Observation, fit_all
from edgeprune.blocks import whole
from edgeprune.cost import attention_work, cells_waited_for
from edgeprune.study.measure import Sample
from edgeprune.study.record import Cell, Interval
from edgeprune.types import DeviceProfile, ModelSpec

PARTS = ("bytes", "fallback", "blocks", "attention", "unexplained")
PAD = 256  # widths without a fallback


class Token(NamedTuple):
    """Seconds of a decoded token, foretold."""

    parts: dict[str, float]  # of PARTS but the last
    terms: dict[
        str, tuple[float, float, float]
    ]  # the same by the term it hangs on: seconds at its slow, middle, fast end

    @property
    def seconds(self) -> float:
        return sum(middle for _, middle, _ in self.terms.values())


def token(spec: ModelSpec, runtime: str, quant: str, rates: Rates, context: int) -> Token:
    """One token after `context`. Raises UsageError for an unknown quantisation."""
    size = sizes(Shapes(spec), whole(spec.n_blocks), runtime, quant)
    plain = plain_bytes(spec, quant) if runtime == "llamacpp" else _bytes(size)
    kv_type = _kv_types.native(runtime, quant)
    cells = cells_waited_for(runtime, rates.backend, context, kv_type)
    cache, flops = attention_work(spec, whole(spec.n_blocks), cells, _kv_types.ELEMENT_BYTES[kv_type])
    terms: dict[str, tuple[float, float, float]] = {}
    parts = dict.fromkeys(PARTS[:-1], 0.0)
    for kind, n_bytes in _bytes(size).items():
        terms[kind] = tuple(n_bytes / rates.weight_rate(kind, k) for k in range(3))
    for kind in {*plain, *_bytes(size)}:
        rate = rates.weight_rate(kind, 1)
        parts["bytes"] += plain.get(kind, 0) / rate
        parts["fallback"] += (_bytes(size).get(kind, 0) - plain.get(kind, 0)) / rate
    terms["block"] = _times(spec.n_blocks * 1e-6, rates.overhead_us)
    terms["cache"] = _over(cache, rates.cache_bytes_per_s)
    terms["attention"] = _over(flops, rates.attention_flops)
    parts["blocks"] = terms["block"][1]
    parts["attention"] = terms["cache"][1] + terms["attention"][1]
    return Token(parts, terms)


def advantage(a: Token, b: Token) -> Interval:
    """How much faster a is than b, as a ratio of speeds, with its 90 % interval.

    Both hang on the same terms, so a term's error moves both; what is not shared is only how much of each they have.
    """
    middle = math.log(b.seconds / a.seconds)
    ends = []
    for end in (0, 2):
        moved = []
        for term in {*a.terms, *b.terms}:
            ratio = math.log(_with(b, term, end) / _with(a, term, end))
            moved.append(ratio - middle)
        ends += moved
    up = math.hypot(*(max(0.0, x) for x in ends))
    down = math.hypot(*(min(0.0, x) for x in ends))
    return Interval(low=math.exp(middle - down), middle=math.exp(middle), high=math.exp(middle + up))


def plain_bytes(spec: ModelSpec, quant: str) -> dict[str, float]:
    """Bytes streamed by type as they would be if every width were a multiple of 256: without fallbacks.

    Norms, a fraction of a percent, are left out as in Sizes.matrices.
    """
    facts = mix.Facts(max(1, spec.n_heads // spec.n_kv_heads), spec.tied_embeddings, False, quant in mix.NEED_IMATRIX)
    out: dict[str, float] = {}

    def add(kind: str, shape: tuple[int, ...]) -> None:
        size, n_bytes = mix.BLOCKS[kind]
        out[kind] = out.get(kind, 0.0) + math.prod(shape) / size * n_bytes

    for i, b in enumerate(spec.blocks):
        for role, shape in (b.attn.tensors | b.ffn.tensors).items():
            if len(shape) == 2:
                add(mix.tensor_type(role, _padded(shape), quant, i, spec.n_blocks, facts), shape)
    role = "token_embd.weight" if spec.tied_embeddings else "output.weight"
    shape = spec.globals[role]
    add(mix.global_type(role, _padded(shape), quant, tied=spec.tied_embeddings), shape)
    return out


def observations(samples: Sequence[Sample], specs: dict[str, ModelSpec], threads: int) -> list[Observation]:
    """Medians of every model in every state at one number of threads; groups that share a model add to it."""
    out = []
    states: dict[tuple, list[Sample]] = {}
    for s in samples:
        if s.what != "memory" and s.threads == threads:
            states.setdefault((s.variant, s.runtime, s.quant, s.what, s.context), []).append(s)
    for (variant, runtime, quant, what, context), mine in states.items():
        every = [ns / 1e9 for s in mine for ns in s.ns]
        n_gen = max(len(s.ns) for s in mine)
        tokens = context + (n_gen + 1) // 2 if what == "decode" else context
        spec = specs[variant]
        work = sizes(Shapes(spec), whole(spec.n_blocks), runtime, quant).matrices
        out.append(
            Observation(
                f"{variant} {quant}", spec, runtime, mine[0].backend, mine[0].build, quant, work, what, tokens,
                statistics.median(every), tuple(every),
            )
        )  # fmt: skip
    return out


def fitted(rows: Sequence[Observation], host: DeviceProfile) -> DeviceProfile:
    """This machine with the terms that the study's rows say, instead of what else is known of it."""
    found = fit_all(rows, host.bandwidth.value, "fitted", "the study's own rows", {})
    return host.model_copy(update={"calibrations": tuple(f.calibration for f in found)})


def cells(samples: Sequence[Sample], specs: dict[str, ModelSpec], host: DeviceProfile, threads: int) -> list[Cell]:
    """Every model in every state of decode, explained."""
    rows = observations(samples, specs, threads)
    decode = [o for o in rows if o.what == "decode"]
    if not decode:
        return []
    together = fitted(decode, host)
    blind = {m: fitted([o for o in decode if o.model != m], host) for m in {o.model for o in decode}}
    out = []
    for o in decode:
        known = token(o.spec, o.runtime, o.quant, _rates(together, o), o.tokens)
        unseen = token(o.spec, o.runtime, o.quant, _rates(blind[o.model], o), o.tokens)
        parts = known.parts | {"unexplained": o.seconds - known.seconds}
        out.append(
            Cell(
                variant=o.model.rpartition(" ")[0], runtime=o.runtime, quant=o.quant, threads=threads,
                context=_context(samples, o), measured_s=o.seconds, predicted_s=unseen.seconds, parts=parts,
            )
        )  # fmt: skip
    return out


def _context(samples: Sequence[Sample], o: Observation) -> int:
    known = {s.context for s in samples if s.what == "decode"}
    return max(c for c in known if c <= o.tokens)


def _rates(profile: DeviceProfile, o: Observation) -> Rates:
    found = find(profile, o.runtime, o.backend, None, o.quant)
    assert found
    return found


def _bytes(size: Sizes) -> dict[str, int]:
    return {w.type: w.block_bytes + w.head_bytes for w in size.matrices}


def _times(amount: float, span: Span) -> tuple[float, float, float]:
    return tuple(amount * x for x in span)


def _over(amount: float, span: Span) -> tuple[float, float, float]:
    return tuple(amount / x for x in span)


def _with(t: Token, term: str, end: int) -> float:
    """Seconds with one term at an end of its interval."""
    return sum(values[end if name == term else 1] for name, values in t.terms.items())


def _padded(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], -(-shape[-1] // PAD) * PAD)
