"""Importance matrices: the mean square of every input column of a matrix, as llama-imatrix measures it.

A matrix of the whole model serves the pruned one: each kept half takes the entries of the block it came from. One
that was measured on the pruned model is taken as it is; the number of blocks tells the two apart.
Formats: llama.cpp tools/imatrix (GGUF since 2025, .dat before) as common/imatrix-loader.cpp reads them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeprune.blocks import from_text
from edgeprune.errors import InputRejected
from edgeprune.gguf_file import read_header
from edgeprune.types import Blocks

_MAX_ENTRIES = 65_536
_MAX_NAME_BYTES = 256


class Matrix(NamedTuple):
    path: Path
    datasets: tuple[str, ...]
    n_chunks: int
    weights: dict[str, np.ndarray]  # tensor name -> float32, contiguous: one per column (and expert)


def read(path: Path) -> Matrix:
    """Either format. Raises InputRejected when the file is neither, damaged, or holds values no measurement gives."""
    path = Path(path)
    try:
        with open(path, "rb") as f:
            is_gguf = f.read(4) == b"GGUF"
        matrix = _read_gguf(path) if is_gguf else _read_legacy(path)
    except OSError as e:
        raise InputRejected(f"{path} cannot be read: {e.strerror or e}") from None
    for name, values in matrix.weights.items():
        if not np.isfinite(values).all() or (values < 0).any():
            raise InputRejected(f"{path}: {name} has values that are no mean squares; the matrix is damaged")
    return matrix


def fit(matrix: Matrix, columns: Mapping[str, int], origin: Mapping[str, str], complete: bool) -> Matrix:
    """`matrix` for the tensors of one file: name -> values per tensor (columns, times experts).

    origin: that file's provenance; "kept" and "blocks_whole" say which blocks of the whole model it has.
    complete: the quantisation can't do without; a block matrix that has no entry is then refused.
    Raises InputRejected naming what differs when the matrix is of another model.
    """
    n_of, n_here = _n_blocks(matrix.weights), _n_blocks(columns)
    kept, n_whole = _kept(origin)
    if n_of == n_whole and len(kept) == n_here:
        matrix = matrix._replace(weights=_of_kept(matrix.weights, columns, kept))
    elif n_of != n_here:
        before = f" ({n_whole} before pruning)" if kept else ""
        raise InputRejected(
            f"{matrix.path} is of a model with {n_of} blocks, this one has {n_here}{before}; "
            "make one of this model with llama-imatrix"
        )
    for name, n in columns.items():
        values = matrix.weights.get(name)
        if values is None and complete and name.startswith("blk."):
            raise InputRejected(f"{matrix.path} has no entry for {name}, which this quantisation needs; make it anew")
        if values is not None and values.size != n:
            raise InputRejected(
                f"{matrix.path} is of another model: {values.size} values for {name}, which has {n} columns"
            )
    return matrix


def _kept(origin: Mapping[str, str]) -> tuple[Blocks, int | None]:
    try:
        return from_text(origin.get("kept", "")), int(origin.get("blocks_whole", 0)) or None
    except ValueError:
        raise InputRejected(f"the model's own record of its blocks is damaged: {str(origin)[:120]}") from None


def _n_blocks(names: Mapping[str, object]) -> int:
    return 1 + max((i for i, _ in map(_place, names) if i is not None), default=-1)


def _place(name: str) -> tuple[int | None, str]:
    """(block, role) of "blk.3.attn_q.weight"; (None, name) for what belongs to no block."""
    found = re.fullmatch(r"blk\.(\d{1,6})\.(.+)", name)
    return (int(found[1]), found[2]) if found else (None, name)


def _of_kept(weights: Mapping[str, np.ndarray], columns: Mapping[str, int], kept: Blocks) -> dict[str, np.ndarray]:
    out = {name: v for name, v in weights.items() if _place(name)[0] is None}
    for new, block in enumerate(kept):
        for name, values in weights.items():
            old, role = _place(name)
            if old is not None and old == (block.ffn if role.startswith("ffn") else block.attn):
                out[f"blk.{new}.{role}"] = values
    for name, n in columns.items():
        i, role = _place(name)
        if i is None or name in out:
            continue
        if role == "attn_qkv.weight" and f"blk.{i}.attn_q.weight" in out:  # fused on export; all three read one input
            out[name] = out[f"blk.{i}.attn_q.weight"]
        elif (kept[i].ffn if role.startswith("ffn") else kept[i].attn) is None:  # zeros that stand for a missing half
            out[name] = np.ones(n, np.float32)
    return out


def _read_gguf(path: Path) -> Matrix:
    header = read_header(path)
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for name, t in header.tensors.items():
        entry, _, kind = name.rpartition(".")
        if kind in ("in_sum2", "counts"):
            if t.type != "F32":
                raise InputRejected(f"{path}: {name} is {t.type}, not F32; the matrix is damaged")
            pairs.setdefault(entry, {})[kind] = np.fromfile(path, "<f4", t.n_bytes // 4, offset=t.offset)
    if not pairs:
        raise InputRejected(f"{path} is a GGUF file, but no importance matrix; make one with llama-imatrix")
    meta, weights = header.metadata, {}
    for name, pair in pairs.items():
        if len(pair) < 2 or pair["in_sum2"].size % pair["counts"].size:
            raise InputRejected(f"{path}: sums and counts of {name} do not belong together; the matrix is damaged")
        counts = np.rint(pair["counts"])[:, None]  # one per expert
        sums = pair["in_sum2"].reshape(counts.size, -1)
        with np.errstate(all="ignore"):
            weights[name] = np.where(counts > 0, sums / counts, np.float32(1)).ravel()
    datasets, n_chunks = meta.get("imatrix.datasets"), meta.get("imatrix.chunk_count")
    named = tuple(d for d in datasets if isinstance(d, str)) if isinstance(datasets, tuple) else ()
    return Matrix(path, named, n_chunks if isinstance(n_chunks, int) else 0, weights)


def _read_legacy(path: Path) -> Matrix:
    """Entry count; each: name, calls, value count, values times calls. Then chunks and the data set's name."""
    data, pos = path.read_bytes(), 0

    def fail() -> InputRejected:
        return InputRejected(f"{path} is not an importance matrix, or a damaged one; make it with llama-imatrix")

    def number() -> int:
        nonlocal pos
        if pos + 4 > len(data):
            raise fail()
        pos += 4
        return struct.unpack_from("<i", data, pos - 4)[0]

    def text(limit: int) -> str:
        nonlocal pos
        n = number()
        if not 0 < n <= limit or pos + n > len(data):
            raise fail()
        pos += n
        try:
            return data[pos - n : pos].decode("utf-8")
        except UnicodeDecodeError:
            raise fail() from None

    weights = {}
    n_entries = number()
    if not 0 < n_entries <= _MAX_ENTRIES:
        raise fail()
    for _ in range(n_entries):
        name, calls, n = text(_MAX_NAME_BYTES), number(), number()
        if n < 1 or pos + 4 * n > len(data):
            raise fail()
        sums = np.frombuffer(data, "<f4", n, pos)
        weights[name] = sums / np.float32(calls) if calls > 0 else sums
        pos += 4 * n
    if pos == len(data):  # written before 2024
        return Matrix(path, (), 0, weights)
    chunks = number()
    return Matrix(path, (text(len(data)),) if pos < len(data) else (), chunks, weights)
