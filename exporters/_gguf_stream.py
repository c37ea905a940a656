"""The values of a planned tensor, read, changed and converted in pieces of a few megabytes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import IO

import numpy as np

from edgeprune.checkpoint import TensorEntry
from edgeprune.errors import InputRejected
from exporters._gguf_tensors import READABLE, Planned, n_bytes

PIECE_BYTES = 4 << 20


class Stream:
    """What GGUFWriter.write_tensor_data needs of an array, without holding it."""

    def __init__(self, planned: Planned):
        self.planned, self.nbytes = planned, n_bytes(planned)

    def tofile(self, out: IO[bytes]) -> None:
        for piece in _pieces(self.planned):
            out.write(memoryview(np.ascontiguousarray(piece)).cast("B"))


def _pieces(p: Planned) -> Iterator[np.ndarray]:
    if p.values:
        values = np.array(p.values, "<f4")
        yield _encode(np.broadcast_to(values, p.shape), p, None)
    for entry in p.sources:
        yield from _pieces_of(entry, p)


def _pieces_of(entry: TensorEntry, p: Planned) -> Iterator[np.ndarray]:
    stored = np.dtype(READABLE[entry.dtype])
    width = entry.shape[-1] if len(entry.shape) > 1 else 1
    n_rows = int(np.prod(entry.shape)) // width
    unit = n_rows // p.heads if p.heads else 1  # a head must stay whole to be reordered
    step = max(1, PIECE_BYTES // (unit * width * stored.itemsize)) * unit
    with open(entry.file, "rb") as file:
        file.seek(entry.start)
        for row in range(0, n_rows, step):
            n = min(step, n_rows - row) * width
            raw = np.fromfile(file, stored, n)
            if raw.size != n:
                raise InputRejected(f"{entry.file} ended inside {p.name}; was it changed meanwhile?")
            rows = raw.reshape(-1, width)
            yield _convert(_interleave(rows, unit) if p.heads else rows, p, entry)


def _interleave(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rotary pairs (i, i + d/2) as transformers stores them -> (2i, 2i + 1) as llama.cpp's NORM rope reads them."""
    width = rows.shape[1]
    return rows.reshape(-1, 2, head_dim // 2, width).swapaxes(1, 2).reshape(-1, width)


def _convert(rows: np.ndarray, p: Planned, entry: TensorEntry) -> np.ndarray:
    changed = p.add != 0.0 or p.factor != 1.0
    if entry.dtype == p.type and not changed:
        _finite(rows, p, entry)
        return rows
    if entry.dtype == "BF16" and p.type == "F16" and not changed:
        half = _f16_of_bf16()[rows]
        if ((half.view("<u2") & 0x7C00) == 0x7C00).any():
            _finite(rows, p, entry)
            raise _past_f16(p, entry)
        return half
    x = (rows.astype("<u4") << 16).view("<f4") if entry.dtype == "BF16" else rows.astype("<f4", copy=False)
    _finite(x, p, entry)
    if changed:
        x = (x + np.float32(p.add)) * np.float32(p.factor)
    return _encode(x, p, entry)


def _encode(x: np.ndarray, p: Planned, entry: TensorEntry | None) -> np.ndarray:
    if p.type == "F32":
        return x
    if p.type == "F16":
        with np.errstate(over="ignore"):
            half = x.astype("<f2")
        if np.isinf(half).any():
            raise _past_f16(p, entry)
        return half
    if p.type == "BF16":  # round to nearest even
        bits = np.ascontiguousarray(x).view("<u4")
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    import gguf

    return gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0)


@functools.cache
def _f16_of_bf16() -> np.ndarray:
    """What each of the 65,536 BF16 values rounds to: looking it up takes a third of the time of computing it."""
    with np.errstate(over="ignore"):
        return (np.arange(1 << 16, dtype="<u4") << 16).view("<f4").astype("<f2")


def _past_f16(p: Planned, entry: TensorEntry | None) -> InputRejected:
    where = entry.file if entry else "the config"
    return InputRejected(f"{where}: {p.name} has values past 65504, the end of F16; use BF16 or F32")


def _finite(x: np.ndarray, p: Planned, entry: TensorEntry) -> None:
    bad = ((x & 0x7F80) == 0x7F80).any() if x.dtype.kind == "u" else not np.isfinite(x).all()
    if bad:
        raise InputRejected(f"{entry.file}: {p.name} has NaN or infinite values; the checkpoint is damaged")
