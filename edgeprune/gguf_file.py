"""GGUF headers, read within bounds: nothing a file claims is believed before it is checked against its size.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Only the standard library; no weight is read.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune.errors import InputRejected

# ggml type number: (name, elements per block, bytes per block); from ggml.h and the structs of ggml-common.h.
GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip

# general.file_type: name as llama.cpp's quantiser spells it; from enum llama_ftype in llama.h.
FILE_TYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
    39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip

MAX_HEADER_BYTES = 64 << 20  # vocabularies of 262k tokens need 15 MB
MAX_ENTRIES = 65_536  # metadata keys, and tensors
MAX_STRINGS = 2_000_000  # elements of string arrays, all together
MAX_NAME_BYTES = 63  # GGML_MAX_NAME less the closing NUL
_LARGE = 1024  # arrays longer than this are left out unless asked for
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
_SCALARS = {kind: struct.Struct(code) for kind, code in _SCALARS.items()}
_U32, _U64, _BOOL, _STRING, _ARRAY = 4, 10, 7, 8, 9
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")  # llama_split_path of llama.h


class GGUFTensor(NamedTuple):
    type: str  # ggml type name
    shape: tuple[int, ...]  # torch order: the reverse of ggml's ne
    offset: int  # absolute in its file, in bytes
    n_bytes: int
    path: Path  # the file it lies in: the model's only one, or a part of it


class Omitted(NamedTuple):
    """Stands for an array that was checked and stepped over."""

    length: int


class GGUFHeader(NamedTuple):
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    alignment: int
    data_offset: int  # of the first file
    size: int  # bytes of all files
    paths: tuple[Path, ...]  # the file, or the parts of a split model; the first holds the metadata
    spans: dict[str, tuple[int, int]]  # metadata key -> where its whole entry lies in the first file

    @property
    def weight_bytes(self) -> int:
        return sum(t.n_bytes for t in self.tensors.values())


def read_header(path: Path, arrays: bool = False) -> GGUFHeader:
    """Metadata and tensor table of a little-endian GGUF of version 2 or 3; any part of a split model opens all of it.

    Arrays of more than 1024 elements (tokens, merges) come as `Omitted` unless `arrays`; others as tuples.
    Raises InputRejected, in one line, for anything llama.cpp would not open as a model.
    """
    path = Path(path)
    named = _read_one(path, arrays)
    count = named.metadata.get("split.count", 0)
    if count in (0, 1):
        if not named.tensors:
            raise InputRejected(f"{path} holds no tensors: it is a vocabulary, not a model")
        return named
    paths = split_paths(path)
    if len(paths) != count or path not in paths:
        raise InputRejected(
            f"{path} is part {_ordinal(named)} of {count} by its metadata, and its name should end in -00001-of-{count:05d}.gguf "
            "or the like; give the parts their names back"
        )
    return _joined(path, paths, [named if p == path else _read_part(p, path, arrays) for p in paths])


def split_paths(path: Path) -> tuple[Path, ...]:
    """Files of the model that `path` names: itself, or all parts when it is called name-00002-of-00003.gguf."""
    path = Path(path)
    named = _SPLIT_NAME.fullmatch(path.name)
    if not named or not 1 <= int(named[2]) <= int(named[3]):
        return (path,)
    return tuple(path.with_name(f"{named[1]}-{i:05d}-of-{named[3]}.gguf") for i in range(1, int(named[3]) + 1))


def _read_part(part: Path, named: Path, arrays: bool) -> GGUFHeader:
    if not part.exists():
        raise InputRejected(f"{part} is missing, a part of the split model {named}; put all parts into one folder")
    return _read_one(part, arrays)


def _joined(path: Path, paths: tuple[Path, ...], parts: list[GGUFHeader]) -> GGUFHeader:
    """One header over all parts, which must belong together as llama.cpp wants it (llama-model-loader.cpp)."""
    tensors: dict[str, GGUFTensor] = {}
    for i, (part, p) in enumerate(zip(parts, paths, strict=True)):
        if part.metadata.get("split.no") != i or part.metadata.get("split.count") != len(parts):
            found = f"part {_ordinal(part)} of {part.metadata.get('split.count')}"
            raise InputRejected(f"{p} is {found} by its metadata, not part {i + 1} of {len(parts)}; download it again")
        twice = next((name for name in part.tensors if name in tensors), None)
        if twice:
            raise InputRejected(f"{p}: tensor {twice!r} is in an earlier part too; the parts are of different models")
        tensors |= part.tensors
    want = parts[0].metadata.get("split.tensors.count")
    if want != len(tensors):
        raise InputRejected(
            f"{path}: its {len(parts)} parts hold {len(tensors)} tensors, {want} were split; download them again"
        )
    size = sum(p.size for p in parts)
    return parts[0]._replace(tensors=tensors, size=size, paths=paths)


def _ordinal(part: GGUFHeader) -> Any:
    number = part.metadata.get("split.no")
    return number + 1 if type(number) is int else number


def _read_one(path: Path, arrays: bool) -> GGUFHeader:
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise InputRejected(f"{path} is not a regular file; name a .gguf file")
            return _Reader(path, file, info.st_size, arrays).header()
    except OSError as e:
        raise InputRejected(f"{path} cannot be read: {e.strerror or e}") from None


def tensor_samples(header: GGUFHeader, n_bytes: int = 64) -> Iterator[tuple[str, str, tuple[int, ...], bytes]]:
    """(name, type, shape, up to `n_bytes` from the middle) of every tensor, for fingerprints."""
    with ExitStack() as stack:
        files = {path: stack.enter_context(open(path, "rb")) for path in header.paths}
        for name, t in header.tensors.items():
            n = min(n_bytes, t.n_bytes)
            files[t.path].seek(t.offset + (t.n_bytes - n) // 2)
            sample = files[t.path].read(n)
            if len(sample) != n:
                raise InputRejected(f"{t.path} is truncated inside tensor {name!r}; download it again")
            yield name, t.type, t.shape, sample


def file_type(header: GGUFHeader) -> str:
    """Quantisation as llama.cpp names it ("Q4_K_M"); "unknown" when the file does not say."""
    kind = header.metadata.get("general.file_type")
    return FILE_TYPES.get(kind, "unknown") if isinstance(kind, int) else "unknown"


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a named pipe would block


class _Reader:
    """A cursor over the header; the buffer grows with what is really there, up to MAX_HEADER_BYTES."""

    def __init__(self, path: Path, file: Any, size: int, arrays: bool):
        self.path, self.file, self.size, self.arrays = path, file, size, arrays
        self.buffer = bytearray()
        self.pos = 0
        self.n_strings = 0

    def fail(self, what: str) -> InputRejected:
        what = what if len(what) <= 200 else what[:200] + "…"
        return InputRejected(f"{self.path}: {what}; it is damaged or not a GGUF model, download it again")

    def need(self, n: int) -> None:
        """Have `n` bytes after the cursor in the buffer."""
        end = self.pos + n
        if end <= len(self.buffer):
            return
        if end > self.size:
            raise self.fail(f"truncated, the header goes past byte {self.size}")
        if end > MAX_HEADER_BYTES:
            raise self.fail(f"the header is over {MAX_HEADER_BYTES >> 20} MiB")
        want = min(max(end, 2 * len(self.buffer), 1 << 20), self.size, MAX_HEADER_BYTES)
        self.buffer += self.file.read(want - len(self.buffer))
        if end > len(self.buffer):
            raise self.fail("truncated while it was read")

    def number(self, kind: int) -> Any:
        code = _SCALARS[kind]
        self.need(code.size)
        (value,) = code.unpack_from(self.buffer, self.pos)
        self.pos += code.size
        if kind == _BOOL:
            if value > 1:
                raise self.fail(f"a truth value of {value} at byte {self.pos - 1}")
            return bool(value)
        return value

    def raw_string(self, limit: int = MAX_HEADER_BYTES) -> bytes:
        n = self.number(_U64)
        if n > limit:
            raise self.fail(f"a text of {n} bytes at byte {self.pos - 8}, at most {limit} fit there")
        self.need(n)
        self.pos += n
        return bytes(self.buffer[self.pos - n : self.pos])

    def name(self, what: str, limit: int) -> str:
        raw = self.raw_string(limit)
        if not raw or b"\0" in raw:
            raise self.fail(f"an empty or unusable {what}")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"a {what} that is not UTF-8") from None

    def value(self, key: str) -> Any:
        kind = self.number(_U32)
        if kind == _ARRAY:
            return self.array(key)
        if kind == _STRING:
            return self.raw_string().decode("utf-8", "replace")
        if kind not in _SCALARS:
            raise self.fail(f"{key!r} has unknown value type {kind}")
        return self.number(kind)

    def array(self, key: str) -> Any:
        kind, n = self.number(_U32), self.number(_U64)
        keep = self.arrays or n <= _LARGE
        if kind == _STRING:
            self.n_strings += n
            if n * 8 > self.size or self.n_strings > MAX_STRINGS:
                raise self.fail(f"{key!r} claims {n} texts")
            if keep:
                return tuple(self.raw_string().decode("utf-8", "replace") for _ in range(n))
            self.skip_strings(n)
        elif kind in _SCALARS:
            code = _SCALARS[kind]
            if n * code.size > self.size:
                raise self.fail(f"{key!r} claims {n} numbers")
            self.need(n * code.size)
            self.pos += n * code.size
            if keep:
                values = struct.unpack_from(f"<{n}{code.format[-1]}", self.buffer, self.pos - n * code.size)
                return tuple(map(bool, values)) if kind == _BOOL else values
        else:
            raise self.fail(f"{key!r} is an array of type {kind}, which GGUF does not have")
        return Omitted(n)

    def skip_strings(self, n: int) -> None:
        unpack, buffer, pos = _SCALARS[_U64].unpack_from, self.buffer, self.pos
        for _ in range(n):
            if pos + 8 > len(buffer):
                self.pos = pos
                self.need(8)
            pos += 8 + unpack(buffer, pos)[0]
        self.pos = pos
        self.need(0)

    def header(self) -> GGUFHeader:
        if self.size < 24:
            raise self.fail(f"{self.size} bytes are too few for a GGUF header")
        self.need(24)
        if self.buffer[:4] != b"GGUF":
            start = bytes(self.buffer[:4])
            raise InputRejected(f"{self.path} is not a GGUF file: it starts with {start!r}, not b'GGUF'")
        self.pos = 4
        version = self.number(_U32)
        if version and version & 0xFFFF == 0:
            raise InputRejected(f"{self.path} is a big-endian GGUF; convert it with gguf-convert-endian")
        if version not in (2, 3):
            raise InputRejected(f"{self.path} is GGUF version {version}; only 2 and 3 are read, convert it again")
        n_tensors, n_keys = self.number(_U64), self.number(_U64)
        if max(n_tensors, n_keys) > MAX_ENTRIES or n_keys * 13 + n_tensors * 33 > self.size:
            raise self.fail(f"claims {n_tensors} tensors and {n_keys} metadata keys in {self.size} bytes")
        metadata: dict[str, Any] = {}
        spans: dict[str, tuple[int, int]] = {}
        for _ in range(n_keys):
            start = self.pos
            key = self.name("metadata key", 65_535)
            if key in metadata:
                raise self.fail(f"metadata key {key!r} occurs twice")
            metadata[key] = self.value(key)
            spans[key] = (start, self.pos)
        split = metadata.get("split.count", 0)
        if type(split) is not int or split < 0:
            raise self.fail(f"split.count is {str(split)[:40]!r}, not a number of parts")
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self.fail(f"general.alignment is {str(alignment)[:40]!r}, not a power of two")
        tensors, data_offset = self.tensors(n_tensors, alignment)
        return GGUFHeader(version, metadata, tensors, alignment, data_offset, self.size, (self.path,), spans)

    def tensors(self, n_tensors: int, alignment: int) -> tuple[dict[str, GGUFTensor], int]:
        table: list[tuple[str, str, tuple[int, ...], int, int]] = []
        for _ in range(n_tensors):
            name = self.name("tensor name", MAX_NAME_BYTES)
            n_dims = self.number(_U32)
            if not 1 <= n_dims <= 4:
                raise self.fail(f"tensor {name!r} has {n_dims} dimensions, 1 to 4 are possible")
            ne = tuple(self.number(_U64) for _ in range(n_dims))
            kind, offset = self.number(_U32), self.number(_U64)
            if kind not in GGML_TYPES:
                raise self.fail(f"tensor {name!r} has unknown type {kind}")
            type_name, block, block_bytes = GGML_TYPES[kind]
            count = 1
            for d in ne:
                count *= d
            if not count or count > 8 * self.size or ne[0] % block:
                raise self.fail(f"tensor {name!r} of type {type_name} has the impossible shape {list(ne[::-1])}")
            table.append((name, type_name, ne[::-1], offset, count // block * block_bytes))
        data_offset = expected = -(-self.pos // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, type_name, shape, offset, n_bytes in table:
            start = data_offset + offset
            if start != expected:
                raise self.fail(f"tensor {name!r} starts at byte {start}, not {expected}: hole or overlap")
            if start + n_bytes > self.size:
                raise self.fail(f"truncated: tensor {name!r} ends at byte {start + n_bytes} of {self.size}")
            if name in tensors:
                raise self.fail(f"tensor {name!r} occurs twice")
            tensors[name] = GGUFTensor(type_name, shape, start, n_bytes, self.path)
            expected = start + -(-n_bytes // alignment) * alignment
        return tensors, data_offset
