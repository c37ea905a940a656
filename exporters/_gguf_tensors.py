"""Checkpoint tensors -> GGUF tensors: names, types, order of rows, and what stands in for a missing half."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

from edgeprune import families
from edgeprune.checkpoint import Checkpoint, TensorEntry, read_tensor
from edgeprune.errors import InputRejected
from exporters._gguf_arch import DUMMY_FFN
from exporters._gguf_shape import Shape

READABLE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}


class Planned(NamedTuple):
    """One tensor of the file: rows of `sources` one after the other, or `values` (one fills it all)."""

    name: str
    sources: tuple[TensorEntry, ...]
    shape: tuple[int, ...]
    type: str  # ggml type name
    heads: int = 0  # > 0: reorder rows within this many heads
    add: float = 0.0  # to each value, in float32, before
    factor: float = 1.0  # multiplies it
    values: tuple[float, ...] = ()


def plan_tensors(ck: Checkpoint, family: ModuleType, shape: Shape, quant: str) -> list[Planned]:
    """Every tensor of the file, in the order written, each checked against the config.

    Raises InputRejected for a tensor that is missing, of another shape, or unknown to the arch.
    """
    arch = shape.arch
    places = families.place(family, shape.decoder, {n: e.shape for n, e in ck.tensors.items()}, ck.folder)
    attention = frozenset(family.ATTN.values())
    planned = [Planned(name, (), (len(v),), "F32", values=v) for name, v in shape.factors.items()]
    for name, place in places.items():
        if place.layer is not None and not shape.halves[place.layer][place.role not in attention]:
            continue
        if place.kind == "bias" and place.role not in arch.biases:
            raise InputRejected(f"{ck.folder}: {name} cannot be held by llama.cpp's {arch.name!r} arch; export to ONNX")
        entry = ck.tensors[name]
        if place.kind == "bias" and arch.optional_biases and not read_tensor(ck, name).any():
            continue
        if entry.dtype not in READABLE:
            raise InputRejected(f"{ck.folder}: {name} is {entry.dtype}; export from an unquantised model")
        planned.append(_one(place, entry, shape, quant))
        if place.role == "token_embd" and shape.tied and arch.ties is False:
            planned.append(planned[-1]._replace(name="output.weight"))
    if arch.name == "openelm":
        planned = list(_fused(planned))
    return planned + [p for i, half in enumerate(shape.halves) for p in _dummies(i, half, shape, quant)]


def _one(place: families.Place, entry: TensorEntry, shape: Shape, quant: str) -> Planned:
    role, block = place.role, "" if place.layer is None else f"blk.{place.layer}."
    d = shape.decoder.layer(place.layer or 0)
    heads = {"attn_q": d.n_heads, "attn_k": d.n_kv_heads}.get(role, 0) if shape.arch.interleaved else 0
    return Planned(
        f"{block}{role}.{place.kind}",
        (entry,),
        entry.shape,
        _type(entry.shape, quant),
        heads,
        d.norm_offset if role.endswith("norm") else 0.0,
        shape.query_factor if role == shape.arch.scale_into else 1.0,
    )


def _fused(planned: list[Planned]) -> Iterator[Planned]:
    """Query, key and value rows of a block as one matrix."""
    at = {p.name: p for p in planned}
    for p in planned:
        block, _, role = p.name.rpartition("attn_")
        if role == "q.weight":
            parts = [at[f"{block}attn_{x}.weight"] for x in "qkv"]
            rows = sum(part.shape[0] for part in parts)
            sources = tuple(part.sources[0] for part in parts)
            yield p._replace(name=f"{block}attn_qkv.weight", sources=sources, shape=(rows, p.shape[1]))
        elif role not in ("k.weight", "v.weight"):
            yield p


def _dummies(i: int, half: families.Half, shape: Shape, quant: str) -> Iterator[Planned]:
    """What a graph needs in place of a missing half, adding zero to the stream."""
    d, arch = shape.decoder, shape.arch.name
    shapes: dict[str, tuple[int, ...]] = {}
    if not half[0] and arch == "openelm":  # one head; deci needs nothing
        shapes = {"attn_norm": (d.hidden,), "attn_qkv": (3 * d.head_dim, d.hidden), "attn_q_norm": (d.head_dim,)}
        shapes |= {"attn_k_norm": (d.head_dim,), "attn_output": (d.hidden, d.head_dim)}
    if not half[1]:
        shapes |= {"ffn_norm": (d.hidden,), "ffn_gate": (DUMMY_FFN, d.hidden), "ffn_up": (DUMMY_FFN, d.hidden)}
        shapes |= {"ffn_down": (d.hidden, DUMMY_FFN)}
    for role, size in shapes.items():
        fill = 1.0 if role.endswith("norm") else 0.0
        yield Planned(f"blk.{i}.{role}.weight", (), size, _type(size, quant), values=(fill,))


def _type(shape: tuple[int, ...], quant: str) -> str:
    if len(shape) < 2:
        return "F32"
    return "F16" if quant == "Q8_0" and shape[-1] % 32 else quant  # as llama.cpp's converter falls back


def lossless_type(planned: list[Planned]) -> str:
    """F16 or BF16 when every matrix is stored so, else F32."""
    kinds = {entry.dtype for p in planned if len(p.shape) > 1 for entry in p.sources}
    return kinds.pop() if len(kinds) == 1 and kinds <= {"F16", "BF16"} else "F32"


def byte_shape(p: Planned) -> tuple[int, ...]:
    """The shape GGUFWriter wants for a quantised tensor: bytes per row."""
    return (*p.shape[:-1], p.shape[-1] // 32 * 34) if p.type == "Q8_0" else p.shape


def n_bytes(p: Planned) -> int:
    return math.prod(byte_shape(p)) * {"F32": 4, "F16": 2, "BF16": 2, "Q8_0": 1}[p.type]


def parameters(planned: list[Planned]) -> int:
    return sum(math.prod(p.shape) for p in planned)


def type_number(gguf: Any, p: Planned) -> Any:
    return gguf.GGMLQuantizationType[p.type]
