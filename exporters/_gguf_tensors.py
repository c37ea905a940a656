"""Checkpoint tensors -> GGUF tensors: names, types, rotary row order; streamed in pieces of a few megabytes."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import IO, Any, NamedTuple

import numpy as np

from edgeprune.checkpoint import Checkpoint, TensorEntry
from edgeprune.errors import InputRejected
from exporters._gguf_shape import Shape

PIECE_BYTES = 4 << 20
_READABLE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
# Biases that the arch loads (src/models/<arch>.cpp).
_QKV = {"attn_q", "attn_k", "attn_v"}
_BIASES = {"llama": _QKV | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"}, "qwen2": _QKV, "qwen3": _QKV}


class Planned(NamedTuple):
    name: str  # in the GGUF
    source: TensorEntry | None  # None: computed, see `values`
    shape: tuple[int, ...]
    type: str  # ggml type name
    heads: int  # > 0: reorder rows within this many heads
    values: tuple[float, ...] | None = None


def plan_tensors(ck: Checkpoint, family: ModuleType, shape: Shape, quant: str) -> list[Planned]:
    """Every tensor of the file, in the order written, each checked against the config.

    Raises InputRejected for a tensor that is missing, of another shape, or unknown to the arch.
    """
    arch, want, used = family.GGUF_ARCH, _shapes(shape), set()
    names: list[tuple[str, str]] = [(g, r) for g, r in family.GLOBALS.items()]
    for i in range(shape.n_blocks):
        prefix = family.LAYER.format(i=i)
        names += [(prefix + m, f"blk.{i}.{r}") for m, r in {**family.ATTN, **family.FFN}.items()]
    tied = shape.tied if shape.tied is not None else "lm_head.weight" not in ck.tensors
    planned: list[Planned] = []
    for module, name in names:
        role = name.rsplit(".", 1)[-1]
        for kind in ("weight", "bias"):
            source = ck.tensors.get(f"{module}.{kind}")
            if source is None:
                if kind == "weight" and not (role == "output" and tied) and not _optional(role, arch):
                    raise InputRejected(f"{ck.folder}: tensor {module}.weight is missing; the checkpoint is incomplete")
                continue
            used.add(f"{module}.{kind}")
            if role == "output" and tied:
                continue  # llama.cpp uses the embedding where there is no output.weight
            if kind == "bias" and role not in _BIASES.get(arch, ()):
                raise InputRejected(f"{ck.folder}: {module}.bias cannot be held by llama.cpp's {arch!r} arch")
            expected = want[role] if kind == "weight" else want[role][:1]
            if source.shape != expected:
                raise InputRejected(
                    f"{ck.folder}: {module}.{kind} is {list(source.shape)}, config.json says {list(expected)}"
                )
            if source.dtype not in _READABLE:
                raise InputRejected(f"{ck.folder}: {module}.{kind} is {source.dtype}; export from an unquantised model")
            heads = {"attn_q": shape.n_heads, "attn_k": shape.n_kv_heads}.get(role, 0) if family.PERMUTE_QK else 0
            planned.append(Planned(f"{name}.{kind}", source, source.shape, _type(source.shape, quant), heads))
    left = sorted(k for k in ck.tensors if k not in used and not k.endswith(family.IGNORED))
    if left:
        raise InputRejected(f"{ck.folder}: tensor {left[0]} ({len(left)} in all) has no place in GGUF's {arch!r} arch")
    if shape.rope_factors:
        n = len(shape.rope_factors)
        planned.insert(0, Planned("rope_freqs.weight", None, (n,), "F32", 0, shape.rope_factors))
    return planned


def lossless_type(planned: list[Planned]) -> str:
    """F16 or BF16 when every matrix is stored so, else F32."""
    kinds = {p.source.dtype for p in planned if p.source and len(p.shape) > 1}
    return kinds.pop() if len(kinds) == 1 and kinds <= {"F16", "BF16"} else "F32"


def byte_shape(p: Planned) -> tuple[int, ...]:
    """The shape GGUFWriter wants for a quantised tensor: bytes per row."""
    return (*p.shape[:-1], p.shape[-1] // 32 * 34) if p.type == "Q8_0" else p.shape


def n_bytes(p: Planned) -> int:
    return int(np.prod(byte_shape(p))) * {"F32": 4, "F16": 2, "BF16": 2, "Q8_0": 1}[p.type]


class Stream:
    """What GGUFWriter.write_tensor_data needs of an array, without holding it."""

    def __init__(self, planned: Planned):
        self.planned, self.nbytes = planned, n_bytes(planned)

    def tofile(self, out: IO[bytes]) -> None:
        for piece in _pieces(self.planned):
            out.write(memoryview(np.ascontiguousarray(piece)).cast("B"))


def _optional(role: str, arch: str) -> bool:
    return role in ("attn_q_norm", "attn_k_norm") and arch != "qwen3"


def _shapes(s: Shape) -> dict[str, tuple[int, ...]]:
    q, kv = s.n_heads * s.head_dim, s.n_kv_heads * s.head_dim
    return {
        "token_embd": (s.vocab, s.hidden), "output": (s.vocab, s.hidden), "output_norm": (s.hidden,),
        "attn_norm": (s.hidden,), "attn_q": (q, s.hidden), "attn_k": (kv, s.hidden), "attn_v": (kv, s.hidden),
        "attn_output": (s.hidden, q), "attn_q_norm": (s.head_dim,), "attn_k_norm": (s.head_dim,),
        "ffn_norm": (s.hidden,), "ffn_gate": (s.ffn, s.hidden), "ffn_up": (s.ffn, s.hidden),
        "ffn_down": (s.hidden, s.ffn),
    }  # fmt: skip


def _type(shape: tuple[int, ...], quant: str) -> str:
    if len(shape) < 2:
        return "F32"
    return "F16" if quant == "Q8_0" and shape[-1] % 32 else quant  # as llama.cpp's converter falls back


def _pieces(p: Planned) -> Iterator[np.ndarray]:
    if p.source is None:
        yield np.array(p.values, "<f4")
        return
    stored = np.dtype(_READABLE[p.source.dtype])
    width = p.shape[-1] if len(p.shape) > 1 else 1
    n_rows = int(np.prod(p.shape)) // width
    unit = n_rows // p.heads if p.heads else 1  # a head must stay whole to be reordered
    step = max(1, PIECE_BYTES // (unit * width * stored.itemsize)) * unit
    with open(p.source.file, "rb") as file:
        file.seek(p.source.start)
        for row in range(0, n_rows, step):
            n = min(step, n_rows - row) * width
            raw = np.fromfile(file, stored, n)
            if raw.size != n:
                raise InputRejected(f"{p.source.file} ended inside {p.name}; was it changed meanwhile?")
            rows = raw.reshape(-1, width)
            yield _convert(_interleave(rows, unit) if p.heads else rows, p)


def _interleave(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rotary pairs (i, i + d/2) as transformers stores them -> (2i, 2i + 1) as llama.cpp's NORM rope reads them."""
    width = rows.shape[1]
    return rows.reshape(-1, 2, head_dim // 2, width).swapaxes(1, 2).reshape(-1, width)


def _convert(rows: np.ndarray, p: Planned) -> np.ndarray:
    source, want = p.source.dtype, p.type
    if source == want:
        _finite(rows, p)
        return rows
    x = (rows.astype("<u4") << 16).view("<f4") if source == "BF16" else rows.astype("<f4", copy=False)
    _finite(x, p)
    if want == "F32":
        return x
    if want == "F16":
        with np.errstate(over="ignore"):
            half = x.astype("<f2")
        if np.isinf(half).any():
            raise InputRejected(f"{p.source.file}: {p.name} has values past 65504, the end of F16; use BF16 or F32")
        return half
    if want == "BF16":  # round to nearest even
        bits = x.view("<u4")
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    import gguf

    return gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0)


def _finite(x: np.ndarray, p: Planned) -> None:
    bad = ((x & 0x7F80) == 0x7F80).any() if x.dtype.kind == "u" else not np.isfinite(x).all()
    if bad:
        raise InputRejected(f"{p.source.file}: {p.name} has NaN or infinite values; the checkpoint is damaged")


def parameters(planned: list[Planned]) -> int:
    return sum(int(np.prod(p.shape)) for p in planned)


def type_number(gguf: Any, p: Planned) -> Any:
    return gguf.GGMLQuantizationType[p.type]
