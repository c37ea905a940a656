"""Bytes of the ONNX folder that exporters.onnx writes: its data file laid out as there, graph and tokenizer nearly."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from edgeprune._sizes import Halves, Shapes

ONNX_QUANTS = ("fp32", "fp16", "int8", "int4-mixed", "int4")
_FLOAT_BYTES = {"fp16": 2}  # of all that is no matrix; 4 in the other quantisations
_BLOCK = 32  # columns that share a float32 scale, and with 4 bits half a byte of zero point
_QKV = ("attn_q", "attn_k", "attn_v")
_SENSITIVE = ("token_embd", "output", "attn_qkv", *_QKV)
# As exporters._onnx_block writes them; biases follow their matrix.
_ORDER = (
    "attn_norm", "attn_qkv", *_QKV, "attn_q_norm", "attn_k_norm", "attn_output", "post_attention_norm",
    "ffn_norm", "ffn_gate", "ffn_up", "ffn_down", "post_ffw_norm",
)  # fmt: skip
_PAGE, _LINE = 4096, 64  # where large and small tensors start
# Bytes of model.onnx per tensor stored, per node, per quantised matrix, and for the rest; fitted on the graphs of all
# families' tiny models, within 4 % of each.
_TENSOR, _NODE, _QUANTISED, _REST = 143, 104, 84, 2100
_NODES = 10  # outside the blocks
_TOKENIZER = 72  # per token, where the model's own files were not read: SmolLM2's are 3.52 MB for 49,152 (measured)
_CONFIGS = 2050  # genai_config.json and SHA256SUMS


class _Half(NamedTuple):
    """One sub-layer as it is stored."""

    items: tuple[int, ...]  # bytes of its tensors, in the order written
    n_quantised: int
    n_nodes: int
    matrices: tuple[tuple, ...]


def onnx_sizes(shapes: Shapes, halves: Halves, quant: str) -> tuple:
    """(folder, data file, streamed for each token, rows mapped for lookup, matrices as _sizes.Matrices)."""
    spec, small, n = shapes.spec, _FLOAT_BYTES.get(quant, 4), len(halves)
    parts, ends = shapes.onnx_parts.setdefault(quant, ({}, {}))
    embed, head = spec.globals["token_embd.weight"], spec.globals.get("output.weight")
    head = None if spec.tied_embeddings else head

    def place(items: Sequence[int], position: int) -> int:
        for n in items:
            position += -position % (_PAGE if n >= _PAGE else _LINE) + n
        return position

    table = _matrix(embed, _bits(quant, "token_embd", 0, 1), small)
    end = place(table, 0)
    ropes = [] if not any(b.rotates for b in spec.blocks) else [spec.context_length_tokens * spec.head_dim // 2 * small]
    windowed = {b.sliding_window_tokens is None for b in spec.blocks}
    end = place(ropes * (2 * len(windowed) if spec.family == "gemma3" else 2), end)  # Gemma 3 has one per kind of layer
    before_blocks, n_tensors, n_nodes = end, len(table) + 3, _NODES
    n_quantised = int(_bits(quant, "token_embd", 0, 1) is not None)
    used: Counter[tuple[int, int | None]] = Counter()
    for i, pair in enumerate(halves):
        down = _bits(quant, "ffn_down", i, n)
        for kind in (k for k in pair if k is not None):
            at = end % _PAGE
            key = kind, down
            if key not in parts:
                parts[key] = _half(dict(shapes.tensors[kind]), quant, down, small, spec.head_dim)
            if (key, at) not in ends:
                ends[key, at] = place(parts[key].items, at) - at
            end += ends[key, at]
            used[key] += 1
    matrices: list[tuple] = []
    for key, times in used.items():
        half = parts[key]
        matrices += ((kind, *(times * amount for amount in amounts)) for kind, *amounts in half.matrices)
        n_tensors, n_nodes = n_tensors + times * len(half.items), n_nodes + times * half.n_nodes
        n_quantised += times * half.n_quantised
    end = place([spec.hidden_size * small], end)
    out = _matrix(head, _bits(quant, "output", 0, 1), small) if head else []
    end = place(out, end)
    n_tensors, n_quantised = n_tensors + len(out), n_quantised + (len(out) > 1)
    graph = _REST + _TENSOR * n_tensors + _NODE * n_nodes + _QUANTISED * n_quantised
    known = (spec.tokenizer_bytes or {}).get("onnx")
    files = _TOKENIZER * spec.vocab_size if known is None else known
    streamed = end - before_blocks + (0 if out else sum(table))
    head_bits = _bits(quant, "output" if out else "token_embd", 0, 1)
    matrices.append((_type(head_bits, small), 0, 0, sum(out or table), 0))
    # Rows looked up stay mapped as stored; a tied table's scales are counted with the output matrix packed from it.
    mapped = (sum(table) if out else table[0]) if quant.startswith("int") else 0
    return end + graph + files + _CONFIGS, end, streamed, mapped, matrices


def _half(tensors: dict[str, tuple[int, ...]], quant: str, down: int | None, small: int, head_dim: int) -> _Half:
    stored = list(_sub_layer(dict(tensors), quant, down, small))
    matrices = tuple(_matrices(tuple(tensors.items()), quant, down, small))
    quantised = sum(len(part) > 1 for part in stored)
    return _Half(tuple(n for part in stored for n in part), quantised, _nodes(tensors, head_dim), matrices)


def _matrices(
    tensors: tuple[tuple[str, tuple[int, ...]], ...], quant: str, down: int | None, small: int
) -> Iterator[tuple]:
    for name, shape in tensors:
        if len(shape) == 2:
            role = name.removesuffix(".weight")
            bits = down if role == "ffn_down" else _bits(quant, role, 0, 1)
            yield _type(bits, small), sum(_matrix(shape, bits, small)), math.prod(shape), 0, sum(shape)


def _type(bits: int | None, small: int) -> str:
    return f"int{bits}" if bits else f"fp{8 * small}"


def _bits(quant: str, role: str, i: int, n: int) -> int | None:
    """exporters.onnx.matrix_bits."""
    if quant != "int4-mixed":
        return {"int8": 8, "int4": 4}.get(quant)
    more = i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2
    return 8 if role in _SENSITIVE or (role == "ffn_down" and more) else 4


def _sub_layer(tensors: dict[str, tuple[int, ...]], quant: str, down: int | None, small: int) -> Iterator[list[int]]:
    """Bytes of what each matrix and vector is stored as, in the order written."""
    if "attn_q.weight" in tensors and "attn_q_norm.weight" not in tensors:  # queries, keys and values in one
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"{role}.{kind}", None) for role in _QKV]
            if any(parts):
                rows = [p[0] for p in parts if p]
                tensors[f"attn_qkv.{kind}"] = (sum(rows), *next(p for p in parts if p)[1:])
        if "attn_qkv.bias" in tensors:
            tensors["attn_qkv.bias"] = tensors["attn_qkv.weight"][:1]
    for role in _ORDER:
        shape = tensors.get(f"{role}.weight")
        if shape is None:
            continue
        yield _matrix(shape, down if role == "ffn_down" else _bits(quant, role, 0, 1), small)
        if f"{role}.bias" in tensors:
            yield [tensors[f"{role}.bias"][0] * small]


def _nodes(tensors: dict[str, tuple[int, ...]], head_dim: int) -> int:
    """Operators of a sub-layer, as exporters._onnx_block strings them together."""
    biases = sum(role.endswith("bias") for role in tensors)
    post = sum(role.startswith("post_") for role in tensors)
    if "attn_output.weight" not in tensors:
        return 7 + biases + post  # norm, gate and up (or both and a split), activation in two, product, down
    norms = tensors.get("attn_q_norm.weight")
    if norms is None:
        return 4 + min(biases, 1) + post  # norm, projection, attention, output
    return 6 + biases + post + (2 if norms[0] != head_dim else 6)


def _matrix(shape: tuple[int, ...], bits: int | None, small: int) -> list[int]:
    """Bytes of a matrix's tensors, or of a vector's one."""
    if bits is None or len(shape) < 2:
        return [math.prod(shape) * small]
    rows, columns = shape
    blocks = columns // _BLOCK
    parts = [rows * columns * bits // 8, rows * blocks * 4]
    return parts + ([rows * -(-blocks // 2)] if bits == 4 else [])
