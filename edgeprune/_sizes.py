"""Bytes of a block list at a quantisation, for GGUF files and ONNX folders. Exact but for vocabulary and graph text."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from edgeprune import _gguf_mix as mix
from edgeprune.errors import UsageError
from edgeprune.types import Blocks, ModelSpec, SubLayerSpec

GGUF_QUANTS = tuple(mix.DEFAULT)
ONNX_QUANTS = ("fp32", "fp16", "int8", "int4")

# Vocabulary, merges and other metadata of a GGUF, per token: 1,769,000 bytes for SmolLM2's 49,152 (measured).
# Byte-level vocabularies range from 36 (SmolLM2) to 61 (Llama 3); the model's own header is not read here.
GGUF_VOCAB_BYTES = 36
GGUF_METADATA_BYTES = 4096
GGUF_ALIGN = 32

# exporters.onnx: int8 and int4 in blocks of 32 with a float32 scale, int4 with a 4-bit zero point too. Graph text
# per block and tokenizer.json per token are measured on SmolLM2's folders (77.6 kB fp32, 114.1 kB int8, 3.52 MB tokenizer).
ONNX_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1 + 4 / 32, "int4": 0.5 + 4.5 / 32}
ONNX_SMALL_PARAMS = 500_000_000  # below this int4 keeps embedding and head at 8 bits
ONNX_GRAPH_BYTES_PER_BLOCK = {"fp32": 2570, "fp16": 2570, "int8": 3780, "int4": 4500}
ONNX_TOKENIZER_BYTES = 72
ONNX_PAGE = 4096


class Sizes(NamedTuple):
    file_bytes: int
    tensor_bytes: int
    streamed_bytes: int  # read for each decoded token
    repack_bytes: int  # a second copy in another order that llama.cpp's CPU backend may keep


class Shapes:
    """A model's sub-layers with equal ones made one, so that many block lists are sized quickly."""

    def __init__(self, spec: ModelSpec):
        self.spec = spec
        self.gqa = max(1, spec.n_heads // max(1, spec.n_kv_heads))
        known: dict[tuple, int] = {}
        self.tensors: list[tuple[tuple[str, tuple[int, ...]], ...]] = []

        def intern(sub: SubLayerSpec) -> int:
            key = tuple(sorted(sub.tensors.items()))
            if key not in known:
                known[key] = len(self.tensors)
                self.tensors.append(key)
            return known[key]

        self.attn = [intern(b.attn) for b in spec.blocks]
        self.ffn = [intern(b.ffn) for b in spec.blocks]
        self.params = [sum(math.prod(s) for _, s in t) for t in self.tensors]
        self._gguf: dict[tuple, tuple[int, int, int]] = {}

    def block_params(self, blocks: Blocks) -> int:
        return sum(self.params[k] for b in blocks for k in self._kinds(b))

    def _kinds(self, b) -> list[int]:
        kinds = [] if b.attn is None else [self.attn[b.attn]]
        return kinds if b.ffn is None else [*kinds, self.ffn[b.ffn]]

    # --- GGUF -----------------------------------------------------------------------------------

    def gguf(self, blocks: Blocks, quant: str, isa: frozenset[str] = frozenset()) -> Sizes:
        """`isa`: CPU features that decide about repacking ("avx2", "avx512", "dotprod", "i8mm"); empty for none."""
        n = len(blocks)
        n_v = sum(b.attn is not None for b in blocks)
        wide70 = n == 80 and self.gqa > 1
        total = repack = count = i_v = i_down = 0
        if quant not in mix.BY_PLACE:
            for kind, times in Counter(k for b in blocks for k in self._kinds(b)).items():
                t, r, c = self._gguf_part(kind, quant, 0, 1, wide70, isa)
                total, repack, count = total + t * times, repack + r * times, count + c * times
        else:
            for b in blocks:
                for kind in self._kinds(b):
                    is_attn = b.attn is not None and kind == self.attn[b.attn]
                    index, of = (i_v, n_v) if is_attn else (i_down, n)
                    t, r, c = self._gguf_part(kind, quant, index, of, wide70, isa)
                    total, repack, count = total + t, repack + r, count + c
                i_v += b.attn is not None
                i_down += b.ffn is not None
        spec = self.spec
        whole = {k: v for k, v in spec.globals.items() if not (spec.tied_embeddings and k == "output.weight")}
        not_streamed = 0
        for role, shape in whole.items():
            kind = mix.global_type(role, shape, quant, tied=spec.tied_embeddings)
            size = mix.type_bytes(kind, shape)
            total, count = total + size, count + 1
            if role == "token_embd.weight" and not spec.tied_embeddings:
                not_streamed = size
            if role == "output.weight" and mix.repacked(kind, shape, isa):
                repack += size
        header = GGUF_METADATA_BYTES + GGUF_VOCAB_BYTES * spec.vocab_size + count * 72
        header += -header % GGUF_ALIGN
        return Sizes(header + total, total, total - not_streamed, repack)

    def _gguf_part(
        self, kind: int, quant: str, index: int, of: int, wide70: bool, isa: frozenset[str]
    ) -> tuple[int, int, int]:
        """(bytes, repacked bytes, tensors) of one sub-layer at a place in the file."""
        # only the outcome for the positional tensor depends on `index`, so that is what is remembered
        placed = {
            role: mix.tensor_type(role, shape, quant, index=index, n=of, gqa=self.gqa, wide70=wide70)
            for role, shape in self.tensors[kind]
            if role in mix.POSITIONAL
        }
        key = (kind, quant, wide70, isa, *placed.items())
        if key not in self._gguf:
            total = repack = 0
            for role, shape in self.tensors[kind]:
                t = placed.get(role)
                t = t or mix.tensor_type(role, shape, quant, index=index, n=of, gqa=self.gqa, wide70=wide70)
                size = mix.type_bytes(t, shape)
                padded = size + -size % GGUF_ALIGN
                total += padded
                repack += size if role.endswith(".weight") and mix.repacked(t, shape, isa) else 0
            self._gguf[key] = (total, repack, len(self.tensors[kind]))
        return self._gguf[key]

    # --- ONNX -----------------------------------------------------------------------------------

    def onnx(self, blocks: Blocks, quant: str) -> Sizes:
        """The folder that exporters.onnx writes: matrices quantised, everything else float (float16 in fp16)."""
        spec = self.spec
        body = sum(self._onnx_part(k, quant) for b in blocks for k in self._kinds(b))
        head_quant = quant
        embed, head = spec.globals["token_embd.weight"], spec.globals.get("output.weight")
        if spec.tied_embeddings:
            head = None
        params = self.block_params(blocks) + sum(math.prod(s) for s in (embed, head) if s)
        if quant == "int4" and params < ONNX_SMALL_PARAMS:
            head_quant = "int8"
        small = 2 if quant == "fp16" else 4
        norm = spec.hidden_size * small
        rope = spec.context_length_tokens * spec.head_dim * small  # cosine and sine, half a head each
        table = round(math.prod(embed) * ONNX_BYTES[head_quant])
        out = round(math.prod(head) * ONNX_BYTES[head_quant]) if head else 0
        total = body + norm + rope + table + out
        graph = ONNX_GRAPH_BYTES_PER_BLOCK[quant] * len(blocks) + 4096
        file = total + graph + ONNX_TOKENIZER_BYTES * spec.vocab_size
        # A tied table is packed anew for the head, and its stored form stays mapped for the lookup of each token.
        packed = table if not out and quant in ("int8", "int4") else 0
        return Sizes(file, total, body + norm + (out or table), packed)

    def _onnx_part(self, kind: int, quant: str) -> int:
        key = ("onnx", kind, quant)
        if key not in self._gguf:
            small = 2 if quant == "fp16" else 4
            total = 0.0
            for role, shape in self.tensors[kind]:
                matrix = len(shape) == 2 and role.endswith(".weight")
                size = math.prod(shape) * (ONNX_BYTES[quant] if matrix else small)
                total += size
                if matrix and role not in ("attn_k.weight", "attn_v.weight"):  # stored behind the queries
                    total += ONNX_PAGE / 2  # each matrix starts on a page
            self._gguf[key] = (round(total), 0, 0)
        return self._gguf[key][0]


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
