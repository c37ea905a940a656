"""GGUF metadata as the bytes of its entries: kept ones are copied, changed ones keep their type.

Entry: length and key, value type, value; an array is its element type, its length, its elements (docs/gguf.md of ggml).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from edgeprune.errors import InputRejected
from edgeprune.gguf_file import GGUFHeader

_UINT32, _INT32, _BOOL, _STRING, _ARRAY = 4, 5, 7, 8, 9
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_INTEGERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}


def read_entries(header: GGUFHeader) -> dict[str, bytes]:
    """Every entry of the first file as it is, in order."""
    end = max((stop for _, stop in header.spans.values()), default=0)
    with open(header.paths[0], "rb") as file:
        raw = file.read(end)
    if len(raw) != end:
        raise InputRejected(f"{header.paths[0]} is truncated; download it again")
    return {key: raw[start:stop] for key, (start, stop) in header.spans.items()}


def text(key: str, value: str) -> bytes:
    return _key(key) + struct.pack("<I", _STRING) + _text(value)


def number(key: str, value: int) -> bytes:
    return _key(key) + struct.pack("<II", _UINT32, value)


def numbers(key: str, values: Sequence[int]) -> bytes:
    """An array of 32-bit integers."""
    return _key(key) + struct.pack(f"<IIQ{len(values)}i", _ARRAY, _INT32, len(values), *values)


def flags(key: str, values: Sequence[bool]) -> bytes:
    return _key(key) + struct.pack("<IIQ", _ARRAY, _BOOL, len(values)) + bytes(values)


def with_number(entry: bytes, key: str, value: int) -> bytes:
    """The same entry with another whole number. Raises InputRejected when it holds none."""
    head = _key(key)
    (kind,) = struct.unpack_from("<I", entry, len(head))
    if kind not in _INTEGERS:
        raise InputRejected(f"metadata {key} is not a whole number; the file is damaged, download it again")
    return head + struct.pack("<I", kind) + struct.pack(_INTEGERS[kind], value)


def is_array(entry: bytes, key: str) -> bool:
    return struct.unpack_from("<I", entry, len(_key(key)))[0] == _ARRAY


def length(entry: bytes, key: str) -> int:
    """Elements of an array entry."""
    return struct.unpack_from("<Q", entry, len(_key(key)) + 8)[0]


def sliced(entry: bytes, key: str, picks: Sequence[int]) -> bytes:
    """The same array with only the elements `picks`, in that order."""
    head = _key(key)
    kind, element, n = struct.unpack_from("<IIQ", entry, len(head))
    if kind != _ARRAY or element not in _BYTES:
        raise InputRejected(f"metadata {key} is not an array of numbers; refusing to guess")
    start, width = len(head) + 16, _BYTES[element]
    body = b"".join(entry[start + i * width : start + (i + 1) * width] for i in picks)
    return head + struct.pack("<IIQ", kind, element, len(picks)) + body


def renamed(entry: bytes, old: str, new: str) -> bytes:
    """The same value under another key."""
    return _key(new) + entry[len(_key(old)) :]


def _key(key: str) -> bytes:
    return _text(key)


def _text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw
