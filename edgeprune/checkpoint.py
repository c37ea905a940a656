"""Transformers folders: validated safetensors headers, memory-mapped tensors, streaming writes. No torch.

Format: https://github.com/huggingface/safetensors#format (8-byte header length, JSON header, data without holes).
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from edgeprune import families
from edgeprune.blocks import from_text
from edgeprune.errors import InputRejected
from edgeprune.files import CHUNK_BYTES

DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
DTYPE_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1}
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
ZEROS = Path(os.devnull)  # stands for the file of a tensor that is all zeros
# What goes with the weights unchanged, into a pruned folder and an ONNX one.
CARRIED = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
MAX_HEADER_BYTES = 100_000_000  # the reference implementation's cap


class TensorEntry(NamedTuple):
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # absolute byte offsets in the file
    end: int


def put_tensor(f: IO[bytes], values: np.ndarray, dtype: str, overflow: str) -> TensorEntry:
    """Write a tensor at the end of an open file; where it is then. Raises InputRejected, saying `overflow`, where a value is
    not finite."""
    if not np.isfinite(values.astype(np.float32)).all():
        raise InputRejected(overflow)
    start = f.tell()
    f.write(np.ascontiguousarray(values).tobytes())
    return TensorEntry(Path(f.name), dtype, values.shape, start, f.tell())


class Checkpoint(NamedTuple):
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read `config.json` and the safetensors headers; every range is checked, no weight is read.

    Raises InputRejected: no config, remote code, only pickle weights, a missing, truncated or inconsistent shard.
    """
    folder = Path(folder)
    config = read_config(folder)
    tensors: dict[str, TensorEntry] = {}
    for shard in _shards(folder):
        for name, entry in read_header(shard).items():
            if name in tensors:
                raise InputRejected(
                    f"{shard}: tensor {name!r} is also in {tensors[name].file.name}; the shards disagree"
                )
            tensors[name] = entry
    index = folder / "model.safetensors.index.json"
    if index.exists():
        missing = sorted(set(_index(index)) - set(tensors))
        if missing:
            raise InputRejected(
                f"{index}: lists {missing[0]!r} and {len(missing) - 1} more that no shard holds; download again"
            )
    return Checkpoint(folder, config, tensors)


def halves(checkpoint: Checkpoint) -> tuple[tuple[bool, bool], ...]:
    """Per block, whether it has attention and whether it has a feed-forward, as the edgeprune.json of a pruned folder says.

    Transformers has no such blocks, so the folder holds zeros in their place and gives the same logits; exports leave
    them out. Raises InputRejected when weights said to be left out are not zero.
    """
    n = checkpoint.config["num_hidden_layers"]
    path = checkpoint.folder / "edgeprune.json"
    if not path.is_file():
        return ((True, True),) * n
    try:
        kept = from_text(json.loads(path.read_text(encoding="utf-8")).get("kept", ""))
    except (ValueError, AttributeError):
        raise InputRejected(f"{path} is not what edgeprune wrote; prune again") from None
    out = tuple((b.attn is not None, b.ffn is not None) for b in kept) or ((True, True),) * n
    if len(out) != n:
        raise InputRejected(f"{path} lists {len(out)} blocks, config.json {n}; prune again")
    family = families.for_model_type(checkpoint.config["model_type"])
    for i, there in enumerate(out):
        for present, names, output in zip(there, (family.ATTN, family.FFN), family.OUTPUTS, strict=True):
            name = f"{family.LAYER.format(i=i)}{output}.weight"
            if not present and output in names and read_tensor(checkpoint, name).any():
                raise InputRejected(
                    f"{path} says block {i} has no {output.split('.')[0]}, but {name} is not zero; prune again"
                )
    return out


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, refused when it would run code."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise InputRejected(f"{folder} has no config.json; name a transformers folder, a .gguf file or a hub id")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise InputRejected(f"{path} is not JSON: {e}; download it again") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputRejected(f"{path} names no model_type; is this a transformers model?")
    if "auto_map" in config:
        raise InputRejected(f"{path} has auto_map: the model needs its own code, which edgeprune does not run")
    odd = [k for k in config if k.startswith("_") and "implementation" in k]
    if odd:
        raise InputRejected(f"{path} sets {odd[0]}, which can load foreign code; remove it if you trust the model")
    return config


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Tensor entries of one safetensors file. Raises InputRejected naming the file and what is wrong."""
    size = path.stat().st_size
    with open(path, "rb") as f:
        raw = f.read(8)
        if len(raw) < 8:
            raise InputRejected(f"{path} is truncated: {size} bytes; download it again")
        (n,) = struct.unpack("<Q", raw)
        if n > MAX_HEADER_BYTES or 8 + n > size:
            raise InputRejected(f"{path} is not safetensors or is truncated: header of {n} bytes in a file of {size}")
        try:
            header = json.loads(f.read(n).decode("utf-8"), object_pairs_hook=_no_duplicates)
            entries = {k: _entry(path, k, v, 8 + n, size) for k, v in header.items() if k != "__metadata__"}
        except InputRejected:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise InputRejected(f"{path}: damaged safetensors header ({_short(e)}); download it again") from None
    position = 8 + n
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            raise InputRejected(
                f"{path}: tensor {name!r} starts at {entry.start}, expected {position}: hole or overlap"
            )
        position = entry.end
    if position != size:
        raise InputRejected(
            f"{path} should end at byte {position} and ends at {size}: truncated or padded; download again"
        )
    return entries


def read_tensor(checkpoint: Checkpoint, name: str) -> np.ndarray:
    """Memory-mapped, read-only array; BF16 as ml_dtypes.bfloat16."""
    entry = checkpoint.tensors[name]
    if entry.dtype == "BF16":
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16)
    elif entry.dtype in _NUMPY:
        dtype = np.dtype(_NUMPY[entry.dtype])
    else:
        raise InputRejected(
            f"{entry.file}: tensor {name!r} has type {entry.dtype}; edgeprune reads F64, F32, F16 and BF16"
        )
    if entry.end == entry.start:
        return np.zeros(entry.shape, dtype)
    data = np.memmap(entry.file, mode="r", offset=entry.start, shape=(entry.end - entry.start,), dtype=np.uint8)
    return data.view(dtype).reshape(entry.shape)


def raw_bytes(entry: TensorEntry, start: int = 0, length: int | None = None) -> bytes:
    with open(entry.file, "rb") as f:
        f.seek(entry.start + start)
        return f.read(entry.end - entry.start - start if length is None else length)


def copy_tensors(path: Path, entries: Iterable[tuple[str, TensorEntry]]) -> None:
    """Write a safetensors file from byte ranges of others: kept tensors stay bit-identical, memory stays flat.

    An entry whose file is ZEROS is written as zeros.
    """
    items = list(entries)
    with open(path, "wb") as out:
        out.write(_encode_header((name, e.dtype, e.shape, e.end - e.start) for name, e in items))
        for _, e in items:
            if e.file == ZEROS:
                _write_zeros(out, e.end - e.start)
                continue
            with open(e.file, "rb") as src:
                src.seek(e.start)
                left = e.end - e.start
                while left:
                    chunk = src.read(min(left, CHUNK_BYTES))
                    if not chunk:
                        raise InputRejected(f"{e.file} ended while it was read; was it changed meanwhile?")
                    out.write(chunk)
                    left -= len(chunk)


def _write_zeros(out: IO[bytes], n: int) -> None:
    for start in range(0, n, CHUNK_BYTES):
        out.write(bytes(min(CHUNK_BYTES, n - start)))


def write_float32(path: Path, shapes: dict[str, tuple[int, ...]], produce: Callable[[str], np.ndarray]) -> None:
    """Write a safetensors file of float32 tensors, one in memory at a time; `produce(name)` gives its values."""
    with open(path, "wb") as out:
        out.write(_encode_header((name, "F32", shape, 4 * math.prod(shape)) for name, shape in shapes.items()))
        for name, shape in shapes.items():
            values = np.ascontiguousarray(produce(name), dtype="<f4")
            if values.shape != shape:
                raise InputRejected(f"tensor {name!r} should be {list(shape)} and is {list(values.shape)}")
            out.write(values.data)


def _encode_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """Length and JSON header for (name, dtype, shape, bytes) laid out without holes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape, n_bytes in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + n_bytes]}
        position += n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _shards(folder: Path) -> list[Path]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        names = sorted(set(_index(index).values()))
        for name in names:
            if Path(name).name != name:
                raise InputRejected(f"{index}: shard {name!r} is not a plain file name")
            if not (folder / name).is_file():
                raise InputRejected(f"{index}: shard {name} is missing; download it again")
        return [folder / name for name in names]
    if single.is_file():
        return [single]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise InputRejected(
            f"{folder} has only pickle weights, which can run code; convert them to safetensors with a tool you trust"
        )
    raise InputRejected(f"{folder} has no model.safetensors; name a transformers folder with weights")


def _index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(k, str) and isinstance(v, str) for k, v in weight_map.items()):
            raise TypeError("weight_map")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputRejected(f"{path} is not a safetensors index; download it again") from None
    return weight_map


def _entry(path: Path, name: str, value: dict[str, Any], base: int, size: int) -> TensorEntry:
    dtype, shape, (start, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    if dtype not in DTYPE_BYTES:
        raise InputRejected(f"{path}: tensor {name!r} has unknown type {dtype!r}")
    if "\0" in name or not name:
        raise InputRejected(f"{path}: a tensor has an unusable name")
    if not all(type(d) is int and d >= 0 for d in (*shape, start, end)):
        raise InputRejected(f"{path}: tensor {name!r} has a negative or fractional shape or offset")
    n = DTYPE_BYTES[dtype] * math.prod(shape)
    if end - start != n:
        raise InputRejected(f"{path}: tensor {name!r} of shape {list(shape)} needs {n} bytes and has {end - start}")
    if base + end > size:
        raise InputRejected(
            f"{path} is truncated: tensor {name!r} ends at byte {base + end} of {size}; download it again"
        )
    return TensorEntry(path, dtype, shape, base + start, base + end)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name occurs twice")
    return out


def _short(e: Exception) -> str:
    return str(e).splitlines()[0][:80] if str(e) else type(e).__name__
