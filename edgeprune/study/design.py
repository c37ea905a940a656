"""The design of a study: for every ratio a model with fewer blocks, and models with thinner ones of the same size. Pure.

Sizes are matched as a whole, embeddings included, within 1 %. Width goes out of the feed-forward and of attention by whole
groups of heads that share keys and values, the size of a head kept, alike in every block.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from edgeprune._generated import Geometry, spec
from edgeprune._sizes import Shapes, named, quants, sizes
from edgeprune.blocks import whole
from edgeprune.catalog import did_you_mean
from edgeprune.errors import InputRejected, UsageError
from edgeprune.types import ModelSpec
from edgeprune.width_plan import sizes as sizes_of

TOLERANCE = 0.01  # of parameters or bytes, between models that are called equal
RUNTIMES = ("llamacpp", "onnxruntime")
ROUNDINGS = (1, 32, 256)  # none; a block of Q4_0, Q8_0 and ONNX's int4; a block of the K-quants
ONNX_BLOCK = 32  # of integer weights, as the exporter makes them
PER_LAYER = 0  # no rounding, and every layer has its own widths, as most methods are published
# Families whose blocks a generated llama stands for: no windows, no norms after sub-layers.
LIKE_LLAMA = frozenset({"granite", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3"})

Kind = Literal["whole", "depth", "width"]


class Variant(NamedTuple):
    """One model of the study."""

    name: str  # "whole", "depth-18b", "width-4329", …
    kind: Kind
    ratio: float  # asked for
    shape: Geometry
    rounding: int = 0  # of widths: what they are multiples of, or PER_LAYER
    equal: str = "parameters"  # what it shares with the depth variant of its ratio, or "Q4_K_M bytes"
    method: str = ""  # of a real model: how it was chosen what goes
    of: ModelSpec | None = None  # of a real model: as its files say

    @property
    def spec(self) -> ModelSpec:
        return self.of or spec(self.shape)

    @property
    def params(self) -> int:
        return self.spec.params

    def label(self) -> str:
        """For a reader."""
        if self.kind == "whole":
            return "whole model"
        if self.kind == "depth":
            return f"depth: {self.shape.n_blocks} blocks" + (f" ({self.method})" if self.method else "")
        how = {PER_LAYER: "width per layer, as published", 1: "odd width"}.get(
            self.rounding, f"width in {self.rounding}s"
        )
        how += f" ({self.method})" if self.method else ""
        of = f"{self.shape.ffn:,} channels, {self.shape.heads} heads"
        if self.of and self.rounding == PER_LAYER:
            wide = sizes_of(self.of)
            of = f"{wide['feed-forward']} channels, {wide['heads']} heads"
        return f"{how}: {of}" + (f", equal {self.equal}" if self.equal != "parameters" else "")


class Task(NamedTuple):
    """A variant to be measured in one runtime and quantisation."""

    variant: Variant
    runtime: str
    quant: str

    @property
    def name(self) -> str:
        return f"{self.variant.name} {self.quant}"


class Design(NamedTuple):
    model: str
    whole: Variant
    variants: tuple[Variant, ...]  # of all ratios, for every quantisation
    tasks: tuple[Task, ...]
    refused: tuple[str, ...]  # what can't be, a sentence each; the rest goes on


def shape_of(spec: ModelSpec) -> Geometry:
    """The widths a generated llama needs to stand for this model. Raises InputRejected where it can't."""
    uneven = len({tuple(sorted((b.attn.tensors | b.ffn.tensors).items())) for b in spec.blocks}) > 1
    windows = any(
        (b.sliding_window_tokens or spec.context_length_tokens) < spec.context_length_tokens for b in spec.blocks
    )
    if spec.family not in LIKE_LLAMA or uneven or windows:
        what = "its blocks differ" if uneven else "it has sliding windows" if windows else f"it is a {spec.family}"
        raise InputRejected(
            f"{spec.name}: no generated model of the same speed can be made: {what}; --speed-only takes models of "
            f"{', '.join(sorted(LIKE_LLAMA))} with equal blocks"
        )
    return Geometry(
        hidden=spec.hidden_size, ffn=spec.intermediate_size, heads=spec.n_heads, kv_heads=spec.n_kv_heads,
        n_blocks=spec.n_blocks, vocab=spec.vocab_size, head_dim=spec.head_dim, tied=spec.tied_embeddings,
        context=spec.context_length_tokens,
    )  # fmt: skip


def check_roundings(roundings: Sequence[int]) -> None:
    for r in roundings:
        if r < 0:
            raise UsageError(
                f"widths as multiples of {r} were asked for; 1 or more, or {PER_LAYER} for each layer's own"
            )


def check_ratios(ratios: Sequence[float]) -> None:
    for r in ratios:
        if not 0 < r < 1:
            raise UsageError(
                f"a ratio of {r:g}: the share of the blocks' parameters to remove is meant, more than 0 and less than 1"
            )


def default_contexts(n_gen: int, spec: ModelSpec) -> tuple[int, ...]:
    """None, and 2048 or as many as the model holds."""
    return (0, min(2048, max(1, spec.context_length_tokens - n_gen)))


def check_contexts(contexts: Sequence[int], n_gen: int, spec: ModelSpec) -> None:
    for c in contexts:
        if c < 0 or c + n_gen > spec.context_length_tokens:
            raise UsageError(
                f"a context of {c} tokens with {n_gen} after it was asked; {spec.name} holds {spec.context_length_tokens}"
            )


def quants_of(text: str) -> list[tuple[str, str]]:
    """(runtime, quantisation) of names with commas between them. Raises UsageError for one that no runtime has."""
    out = []
    for name in text.split(","):
        found = [(r, q) for r in RUNTIMES for q in named(r, name.strip())]
        if not found:
            known = [q for r in RUNTIMES for q in quants(r)]
            raise UsageError(f"no quantisation {name.strip()!r}.{did_you_mean(name, known)} Known: {', '.join(known)}")
        out += found
    return list(dict.fromkeys(out))


def design(
    model: str, g: Geometry, ratios: Sequence[float], asked: Sequence[tuple[str, str]], roundings: Sequence[int] = ROUNDINGS
) -> Design:  # fmt: skip
    """asked: (runtime, quantisation). Raises UsageError for a ratio out of range; what can't be matched is in `refused`."""
    check_ratios(ratios)
    base = Variant("whole", "whole", 0.0, g)
    shared: dict[str, Variant] = {}
    refused: list[str] = []
    if PER_LAYER in roundings:
        refused.append("widths of each layer's own: which they are is read off weights, and there are none; left out")
    tasks = [Task(base, *q) for q in asked]
    seen: set[int] = set()
    for ratio in sorted(set(ratios)):
        removed = max(1, round(ratio * g.n_blocks))
        if removed >= g.n_blocks or removed in seen:
            why = "leaves no block" if removed >= g.n_blocks else f"removes {removed} blocks as a smaller ratio does"
            refused.append(f"ratio {ratio:g} of {g.n_blocks} blocks {why}; left out")
            continue
        seen.add(removed)
        depth = Variant(f"depth-{g.n_blocks - removed}b", "depth", ratio, g._replace(n_blocks=g.n_blocks - removed))
        found, lines = widths(g, depth, [r for r in roundings if r != PER_LAYER])
        refused += lines
        shared |= {v.name: v for v in (depth, *found)}
        for runtime, quant in asked:
            tasks += [Task(v, runtime, quant) for v in (depth, *found)]
            tasks += [Task(v, runtime, quant) for v in equal_bytes(g, depth, found, runtime, quant, refused)]
    return Design(model, base, (base, *shared.values()), held(tasks, refused), tuple(refused))


def held(tasks: Iterable[Task], refused: list[str]) -> tuple[Task, ...]:
    """Those that their runtime can hold, and a line for each other."""
    out = []
    for t in tasks:
        wide = {t.variant.spec.hidden_size}
        for b in t.variant.spec.blocks:
            wide |= {b.ffn.tensors["ffn_down.weight"][1], b.attn.tensors["attn_output.weight"][1]}
        if t.runtime == "onnxruntime" and t.quant.startswith("int") and any(n % ONNX_BLOCK for n in wide):
            refused.append(
                f"{t.name}: onnxruntime's {t.quant} holds widths in {ONNX_BLOCK}s, and this one has others (fp32 holds any); left out"
            )
        else:
            out.append(t)
    return tuple(out)


def widths(g: Geometry, depth: Variant, roundings: Sequence[int] = ROUNDINGS) -> tuple[list[Variant], list[str]]:
    """Thinner models of the depth variant's parameters, one per rounding, and a line for each that can't be.

    All keep the same heads where that is possible, as near as may be to the share that is removed; where no rounding could
    be matched so with heads removed, one more takes them out as well.
    """
    share = depth.shape.n_blocks / g.n_blocks
    by_nearness = sorted(range(g.kv_heads, 0, -1), key=lambda k: abs(k - g.kv_heads * share))
    fits = {k: {r: _channels(g, k, r, depth.params) for r in roundings} for k in by_nearness}
    common = next((k for k in by_nearness if all(fits[k].values())), None)
    out, lines = [], []
    for r in roundings:
        k = common or next((k for k in by_nearness if fits[k][r]), None)
        if k is None:
            lines.append(_unmatched(g, depth, r))
        else:
            new = _variant(g, depth, k, fits[k][r], r)
            out = [*(v for v in out if v.shape != new.shape), new]  # a width in 256s is one in 32s
    first = next((k for k in by_nearness if fits[k].get(32)), None)
    if common is not None and first is not None and first != common:
        out.append(_variant(g, depth, first, fits[first][32], 32))
    return out, lines


def equal_bytes(
    g: Geometry, depth: Variant, found: Sequence[Variant], runtime: str, quant: str, refused: list[str]
) -> Iterator[Variant]:
    """A model in steps of 32 whose file is as large as the depth variant's, unless that of equal parameters is already."""
    target = file_bytes(depth, runtime, quant)
    like = next((v for v in found if v.rounding == 32), None)
    if like is None or abs(file_bytes(like, runtime, quant) / target - 1) <= TOLERANCE:
        return

    def size(steps: int) -> int:
        return file_bytes(like._replace(shape=like.shape._replace(ffn=32 * steps)), runtime, quant)

    # between multiples of 256, where K-quants need no fallback, files grow evenly
    near = 8 * bisect.bisect(range(g.ffn // 256), target, key=lambda n: size(8 * n + 1))
    best = 32 * min(range(max(1, near - 9), min(near + 2, g.ffn // 32)), key=lambda n: abs(size(n) - target), default=1)
    if abs(size(best // 32) / target - 1) > TOLERANCE:
        refused.append(
            f"no width in steps of 32 makes a {quant} file within {TOLERANCE:.0%} of {depth.name}'s; left out"
        )
        return
    shape = like.shape._replace(ffn=best)
    yield Variant(_name(g, shape), "width", depth.ratio, shape, 32, f"{quant} bytes")


def file_bytes(v: Variant, runtime: str, quant: str) -> int:
    """Foretold, within a few hundred bytes of the file (edgeprune._sizes)."""
    return _file_bytes(v.of, runtime, quant) if v.of else _generated_bytes(v.shape, runtime, quant)


@functools.lru_cache(maxsize=4096)
def _generated_bytes(g: Geometry, runtime: str, quant: str) -> int:
    return _file_bytes(spec(g), runtime, quant)


def _file_bytes(spec: ModelSpec, runtime: str, quant: str) -> int:
    return sizes(Shapes(spec), whole(spec.n_blocks), runtime, quant).file_bytes


def _channels(g: Geometry, kv_heads: int, rounding: int, target: int) -> int | None:
    """The width of the feed-forward that comes nearest to so many parameters; None where that is not near enough."""
    thin = _with(g, kv_heads, g.ffn)
    if thin.heads * g.head_dim % rounding and not g.heads * g.head_dim % rounding:
        return None
    per_channel = 3 * g.hidden * g.n_blocks
    wanted = g.ffn - (spec(thin).params - target) / per_channel
    if rounding == 1:
        best = round(wanted) | 1  # published methods leave what they leave; an even one could be a round one by chance
    else:
        best = rounding * round(wanted / rounding)
    best = min(best, g.ffn)
    if best < 1 or abs(spec(thin._replace(ffn=best)).params / target - 1) > TOLERANCE:
        return None
    return best


def _variant(g: Geometry, depth: Variant, kv_heads: int, ffn: int, rounding: int) -> Variant:
    shape = _with(g, kv_heads, ffn)
    return Variant(_name(g, shape), "width", depth.ratio, shape, rounding)


def _name(g: Geometry, shape: Geometry) -> str:
    heads = "" if shape.heads == g.heads else f"-{shape.heads}h"
    return f"width-{shape.ffn}{heads}"


def _with(g: Geometry, kv_heads: int, ffn: int) -> Geometry:
    return g._replace(kv_heads=kv_heads, heads=g.heads // g.kv_heads * kv_heads, ffn=ffn)


def _unmatched(g: Geometry, depth: Variant, rounding: int) -> str:
    reached = [
        spec(_with(g, k, c)).params / depth.params - 1
        for k in range(1, g.kv_heads + 1)
        for c in range(rounding, g.ffn + 1, rounding)
    ]
    near = min(reached, key=abs, default=None)
    told = f"the nearest is {near:+.1%}" if near is not None else "there is no such width"
    return (
        f"ratio {depth.ratio:g}: no width in steps of {rounding} has {depth.name}'s {depth.params:,} parameters within "
        f"{TOLERANCE:.0%}; {told}; left out"
    )
