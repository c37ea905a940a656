"""Bytes of a block list at a quantisation, as GGUF file or ONNX folder: tensors exactly, the text around them nearly."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from edgeprune import _gguf_mix as mix
from edgeprune._sizes_onnx import ONNX_QUANTS, onnx_sizes
from edgeprune.catalog import load, names
from edgeprune.errors import UsageError
from edgeprune.types import Blocks, ModelSpec, SubLayerSpec

__all__ = ["GGUF_QUANTS", "ONNX_QUANTS", "Shapes", "Sizes", "named", "quants", "sizes"]

GGUF_QUANTS = tuple(mix.DEFAULT)
GGUF_ALIGN = 32
# Where a model's vocabulary was not read: bytes per token of SmolLM2's, 1,769,000 for 49,152, and metadata (measured).
GGUF_VOCAB_BYTES = 36
GGUF_METADATA_BYTES = 4096
GGUF_PROVENANCE_BYTES = 900  # what a pruned file says of its origin (measured)

Shape = tuple[int, ...]
Halves = tuple[tuple[int | None, int | None], ...]
Caches = Counter[tuple[int, int | None]]  # (elements per token, window in tokens) -> how many blocks keep such a cache


class Matrices(NamedTuple):
    """All matrices of one type: what a step reads and multiplies."""

    type: str  # ggml's name, or int4, int8, fp16, fp32 in ONNX
    block_bytes: int
    block_params: int
    head_bytes: int = 0  # the output matrix, read once for a prompt as for a token
    block_values: int = 0  # what a token takes into and gets out of the blocks' matrices: their columns and rows


class Sizes(NamedTuple):
    file_bytes: int
    tensor_bytes: int
    streamed_bytes: int  # read for each decoded token
    repack_bytes: int  # beside what is packed: llama.cpp's second copy on some CPUs; onnxruntime's rows for lookup
    matrices: tuple[Matrices, ...] = ()  # matrices of the blocks and the head, by type


class _Part(NamedTuple):
    """One sub-layer in a file."""

    n_bytes: int
    matrices: tuple[Matrices, ...]
    packable: tuple[tuple[tuple[str, Shape], int], ...]  # ((type, shape), bytes) of what llama.cpp may repack


class _Layout(NamedTuple):
    """A whole file, whatever CPU it runs on: the sizes but for repacking, and what may be repacked."""

    sizes: Sizes
    packable: dict[tuple[str, Shape], int]


class _Listed(NamedTuple):
    """What is known of a block list."""

    blocks: Blocks  # kept, so that no other list takes its id
    halves: Halves
    caches: Caches
    params: int


class Shapes:
    """A model's sub-layers with equal ones made one, so that many block lists are sized quickly."""

    def __init__(self, spec: ModelSpec):
        self.spec = spec
        self.gqa = max(1, spec.n_heads // max(1, spec.n_kv_heads))
        self.family = load("edgeprune.families", spec.family) if spec.family in names("edgeprune.families") else None
        self._known: dict[tuple, int] = {}
        self.tensors: list[tuple[tuple[str, Shape], ...]] = []  # by kind
        self._entries: list[
            tuple[int, int]
        ] = []  # by kind: tensors, bytes in the tensor table without the block's digits
        self.attn = [self._kind(b.attn) for b in spec.blocks]
        self.ffn = [self._kind(b.ffn) for b in spec.blocks]
        self.params = [sum(math.prod(s) for _, s in t) for t in self.tensors]
        self.total = spec.params
        widths = {(self.params[a], self.params[f]) for a, f in zip(self.attn, self.ffn, strict=True)}
        self.alike = len({pair for pair in widths if all(pair)}) < 2  # all whole blocks are equally wide
        self._parts: dict[tuple, _Part] = {}
        self._laid_out: dict[tuple, _Layout] = {}
        self._placed: dict[tuple, list[tuple[str, Shape]]] = {}
        self._onnx: dict[tuple, Sizes] = {}
        self.onnx_parts: dict[str, tuple[dict, dict]] = {}  # by quantisation; _sizes_onnx's own
        self._listed: dict[int, _Listed] = {}

    def _kind(self, sub: SubLayerSpec) -> int:
        key = tuple(sorted(sub.tensors.items()))
        if key not in self._known:
            self._known[key] = len(self.tensors)
            self.tensors.append(key)
            self._entries.append((len(key), sum(_table_entry(f"blk..{role}", shape) for role, shape in key)))
        return self._known[key]

    def listed(self, blocks: Blocks) -> _Listed:
        """Looked up by identity, since hashing a list takes as long as reading it."""
        if id(blocks) not in self._listed:
            pairs = (
                (None if b.attn is None else self.attn[b.attn], None if b.ffn is None else self.ffn[b.ffn])
                for b in blocks
            )
            halves = tuple(tuple(k if k is not None and self.tensors[k] else None for k in pair) for pair in pairs)
            params = sum(n * sum(self.params[k] for k in p if k is not None) for p, n in Counter(halves).items())
            self._listed[id(blocks)] = _Listed(blocks, halves, caches(self.spec, blocks), params)
        return self._listed[id(blocks)]

    # --- GGUF -----------------------------------------------------------------------------------

    def gguf(self, blocks: Blocks, quant: str, isa: frozenset[str] = frozenset(), imatrix: bool | None = None) -> Sizes:
        """`isa`: CPU features that decide about repacking ("avx2", "avx512", "dotprod", "i8mm"); empty for none.

        `imatrix`: whether an importance matrix is given, which changes some types; None: where `quant` needs one.
        """
        key = self.listed(blocks).halves, quant, quant in mix.NEED_IMATRIX if imatrix is None else imatrix
        if key not in self._laid_out:
            self._laid_out[key] = self._lay_out(*key)
        laid = self._laid_out[key]
        if not isa:
            return laid.sizes
        repacked = sum(n for (kind, shape), n in laid.packable.items() if mix.repacked(kind, shape, isa))
        return laid.sizes._replace(repack_bytes=repacked)

    def _lay_out(self, halves: Halves, quant: str, imatrix: bool) -> _Layout:
        spec, gqa = self.spec, self.gqa
        arch = self.family.GGUF_ARCH if self.family else spec.model_type
        if any(None in pair for pair in halves):
            arch = getattr(self.family, "GGUF_ARCH_IRREGULAR", arch)
            gqa = 1 if arch == "openelm" and halves[0][0] is None else gqa  # as its first block says
            halves = tuple(self._filled(pair, arch) for pair in halves)
        doubled = spec.tied_embeddings and spec.family == "olmo2"  # llama.cpp's graph of it asks for an output matrix
        tied = spec.tied_embeddings and not doubled
        n = len(halves)
        wide70 = n == 80 and (arch in ("qwen2", "deci") or (arch == "llama" and spec.n_heads != spec.n_kv_heads))
        facts = mix.Facts(gqa, tied, wide70, imatrix)
        n_attn = sum(a is not None for a, _ in halves)
        attn = Counter(zip((a for a, _ in halves if a is not None), mix.alike(n_attn), strict=True))
        ffn = Counter((f, i) for (_, f), i in zip(halves, mix.alike(n), strict=True) if f is not None)
        total = table = 0
        matrices: list[Matrices] = []
        packable: Counter[tuple[str, Shape]] = Counter()
        used: dict[int, tuple[_Part, int]] = {}  # by id: most places hold one of a few parts
        for places, of in ((attn, n_attn), (ffn, n)):
            for (kind, index), times in places.items():
                part = self._part(kind, quant, index, of, facts)
                used[id(part)] = part, times + used.get(id(part), (part, 0))[1]
        for part, times in used.values():
            total += times * part.n_bytes
            matrices += (Matrices(w.type, *(times * amount for amount in w[1:])) for w in part.matrices)
            for what, size in part.packable:
                packable[what] += times * size
        for (pair, digits), times in Counter(zip(halves, _digits(n), strict=True)).items():
            for n_tensors, entry in (self._entries[k] for k in pair if k is not None):
                table += times * (entry + n_tensors * digits)
        outside = {k: s for k, s in spec.globals.items() if k != "output.weight" or not spec.tied_embeddings}
        if doubled:
            outside["output.weight"] = spec.globals["token_embd.weight"]
        not_streamed = 0
        for role, shape in outside.items():
            kind = mix.global_type(role, shape, quant, tied=tied)
            size = mix.type_bytes(kind, shape)
            total, table = total + _aligned(size), table + _table_entry(role, shape)
            if role == "token_embd.weight" and not tied:
                not_streamed = size
            if role == ("token_embd.weight" if tied else "output.weight"):
                matrices.append(Matrices(kind, 0, 0, size))
            if role == "output.weight":
                packable[kind, shape] += size
        header = self._metadata_bytes() + table + (GGUF_PROVENANCE_BYTES if n < spec.n_blocks else 0)
        found = Sizes(_aligned(header) + total, total, total - not_streamed, 0, together(matrices))
        return _Layout(found, packable)

    def _metadata_bytes(self) -> int:
        known = (self.spec.tokenizer_bytes or {}).get("gguf")
        return GGUF_METADATA_BYTES + GGUF_VOCAB_BYTES * self.spec.vocab_size if known is None else known

    def _filled(self, pair: tuple[int | None, int | None], arch: str) -> tuple[int | None, int | None]:
        """A block as exporters._gguf_tensors writes it where some block lacks a half: zeros stand in for most."""
        (attn, ffn), d, head = pair, self.spec.hidden_size, self.spec.head_dim
        if ffn is None:
            zeros = {"ffn_norm.weight": (d,), "ffn_gate.weight": (256, d), "ffn_up.weight": (256, d)}
            ffn = self._kind(SubLayerSpec(tensors={**zeros, "ffn_down.weight": (d, 256)}))
        if arch == "openelm":
            if attn is None:
                zeros = {"attn_norm.weight": (d,), "attn_qkv.weight": (3 * head, d), "attn_output.weight": (d, head)}
                zeros |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
                attn = self._kind(SubLayerSpec(tensors=zeros))
            else:
                attn = self._kind(SubLayerSpec(tensors=_fused(dict(self.tensors[attn]))))
        return attn, ffn

    def _part(self, kind: int, quant: str, index: int, of: int, facts: mix.Facts) -> _Part:
        """A sub-layer at a place in the file."""
        tensors = self.tensors[kind]
        # only the types of a few tensors depend on the place, so those are what is remembered
        key = (kind, quant, facts)
        if key not in self._placed:
            categories = mix.placed(quant, facts.imatrix)
            self._placed[key] = [(r, s) for r, s in tensors if mix.category(r) in categories]
        key += tuple(mix.tensor_type(r, s, quant, index, of, facts) for r, s in self._placed[key])
        if key not in self._parts:
            n_bytes = 0
            matrices, packable = [], []
            for role, shape in tensors:
                t = mix.tensor_type(role, shape, quant, index, of, facts)
                size = mix.type_bytes(t, shape)
                n_bytes += _aligned(size)
                if role.endswith(".weight"):
                    packable.append(((t, shape), size))
                if len(shape) == 2:
                    matrices.append(Matrices(t, size, math.prod(shape), 0, sum(shape)))
            self._parts[key] = _Part(n_bytes, together(matrices), tuple(packable))
        return self._parts[key]

    # --- ONNX -----------------------------------------------------------------------------------

    def onnx(self, blocks: Blocks, quant: str) -> Sizes:
        """The folder that exporters.onnx writes: matrices quantised, everything else float (float16 in fp16)."""
        key = self.listed(blocks).halves, quant
        if key not in self._onnx:
            *found, matrices = onnx_sizes(self, *key)
            self._onnx[key] = Sizes(*found, together(Matrices(*w) for w in matrices))
        return self._onnx[key]


def caches(spec: ModelSpec, blocks: Blocks) -> Caches:
    """How many blocks keep a cache of so many elements per token over such a window; those without attention none."""
    kept = (spec.blocks[b.attn] for b in blocks if b.attn is not None)
    return Counter((b.kv_elements_per_token, b.sliding_window_tokens) for b in kept)


def together(matrices: Iterable[Matrices]) -> tuple[Matrices, ...]:
    """One entry per type, sorted."""
    sums: dict[str, list[int]] = {}
    for kind, *amounts in matrices:
        have = sums.get(kind)
        sums[kind] = amounts if have is None else [a + b for a, b in zip(have, amounts, strict=True)]
    return tuple(Matrices(kind, *amounts) for kind, amounts in sorted(sums.items()))


def _fused(tensors: dict[str, Shape]) -> dict[str, Shape]:
    parts = [tensors.pop(f"attn_{x}.weight", (0, 0)) for x in "qkv"]
    rows = sum(p[0] for p in parts)
    return tensors | ({"attn_qkv.weight": (rows, parts[0][1])} if rows else {})


def _aligned(n_bytes: int) -> int:
    return n_bytes + -n_bytes % GGUF_ALIGN


@functools.cache
def _digits(n: int) -> tuple[int, ...]:
    return tuple(len(str(i)) for i in range(n))


def _table_entry(name: str, shape: Shape) -> int:
    """Name with its length, number of dimensions, dimensions, type, offset (ggml docs/gguf.md)."""
    return 8 + len(name) + 4 + 8 * len(shape) + 4 + 8


def sizes(shapes: Shapes, blocks: Blocks, runtime: str, quant: str, isa: frozenset[str] = frozenset()) -> Sizes:
    """Raises UsageError for a quantisation that the runtime's format does not have."""
    known = quants(runtime)
    if quant not in known:
        raise UsageError(f"{runtime} has no quantisation {quant!r}; known: {', '.join(known)}")
    return shapes.gguf(blocks, quant, isa) if runtime == "llamacpp" else shapes.onnx(blocks, quant)


def quants(runtime: str) -> tuple[str, ...]:
    """Quantisation names of a runtime's format. Raises UsageError for a runtime whose format is not exported."""
    formats = {"llamacpp": GGUF_QUANTS, "onnxruntime": ONNX_QUANTS}
    if runtime not in formats:
        raise UsageError(f"no export for runtime {runtime!r}; known: {', '.join(formats)}")
    return formats[runtime]


def named(runtime: str, quant: str) -> list[str]:
    """The quantisation that `quant` names, in any case or by llama.cpp's alias, as a list of one; [] when there is none."""
    aliases = {a.lower(): q for a, q in mix.ALIASES.items()} if runtime == "llamacpp" else {}
    wanted = aliases.get(quant.lower(), quant).lower()
    return [q for q in quants(runtime) if q.lower() == wanted]
