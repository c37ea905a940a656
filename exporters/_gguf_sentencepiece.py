"""The pieces of a SentencePiece `tokenizer.model`, read without the sentencepiece package.

Message ModelProto { repeated SentencePiece pieces = 1; NormalizerSpec
normalizer_spec = 3; … }, SentencePiece { string piece = 1; float score = 2;
Type type = 3 [default = NORMAL] }: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
Its type numbers are GGUF's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from edgeprune.errors import InputRejected

MAX_BYTES = 64 << 20


def read_pieces(path: Path) -> list[tuple[str, float, int]]:
    """(text, score, type) by id. Raises InputRejected when the file is not such a message."""
    pieces = []
    try:
        for number, value in _fields(_read(path)):
            if number == 1:
                piece = dict(_fields(value))
                score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
                pieces.append((piece[1].decode("utf-8"), score, piece.get(3, 1)))
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, struct.error):
        raise InputRejected(f"{path} is not a SentencePiece model or is damaged; download it again") from None
    if not pieces:
        raise InputRejected(f"{path} holds no pieces; download it again")
    return pieces


def puts_a_space_first(path: Path) -> bool:
    """NormalizerSpec { optional bool add_dummy_prefix = 3 [default = true] } of a model that `read_pieces` can read."""
    specs = [dict(_fields(value)) for number, value in _fields(_read(path)) if number == 3]
    return bool(specs[-1].get(3, 1)) if specs else True


def _read(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise InputRejected(f"{path} is over {MAX_BYTES >> 20} MiB: not a SentencePiece model")
    return path.read_bytes()


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Protobuf wire format: https://protobuf.dev/programming-guides/encoding/."""
    pos = 0
    while pos < len(data):
        tag, pos = _varint(data, pos)
        wire = tag & 7
        if wire == 0:
            value, pos = _varint(data, pos)
            yield tag >> 3, value
            continue
        if wire == 2:
            n, pos = _varint(data, pos)
        elif wire in (1, 5):
            n = 8 if wire == 1 else 4
        else:
            raise ValueError("wire type")
        if pos + n > len(data):
            raise ValueError("truncated")
        yield tag >> 3, data[pos : pos + n]
        pos += n


def _varint(data: bytes, pos: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[pos]
        pos += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, pos
    raise ValueError("varint")
