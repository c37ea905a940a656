"""Byte ranges of files into one file, by the kernel where it can (copy_file_range), else through one buffer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from edgeprune.errors import InputRejected

CHUNK_BYTES = 1 << 26  # between two calls of `progress`
BUFFER_BYTES = 1 << 23
_UNABLE = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


class Piece(NamedTuple):
    source: Path | None  # None: zeros
    start: int
    target: int
    n_bytes: int


def copy_pieces(
    out: Path, head: bytes, pieces: list[Piece], total: int, progress: Callable[[int, int], None]
) -> None:  # fmt: skip
    """Write `out`: `head`, then the pieces, which ascend; what lies between them is zero.

    Raises InputRejected when a source ends early.
    """
    with ExitStack() as stack:
        target = stack.enter_context(open(out, "xb", buffering=0))
        files: dict[Path, int] = {}
        for p in pieces:
            if p.source and p.source not in files:
                files[p.source] = stack.enter_context(open(p.source, "rb", buffering=0)).fileno()
        _write(target.fileno(), head, 0)
        for p in merged(pieces):
            done = 0
            while p.source and done < p.n_bytes:
                n = min(CHUNK_BYTES, p.n_bytes - done)
                if not _copy(files[p.source], p.start + done, target.fileno(), p.target + done, n):
                    raise InputRejected(
                        f"{p.source} ends before byte {p.start + p.n_bytes}; it is damaged or was changed"
                    )
                done += n
                progress(p.target + done, total)
        target.truncate(total)
    progress(total, total)


def merged(pieces: list[Piece]) -> list[Piece]:
    """Neighbours that are neighbours in their source too, padding included, become one."""
    out: list[Piece] = []
    for p in pieces:
        last = out[-1] if out else None
        if last and p.source and last.source == p.source and p.start - last.start == p.target - last.target:
            out[-1] = last._replace(n_bytes=p.start + p.n_bytes - last.start)
        else:
            out.append(p)
    return out


def _copy(source: int, start: int, target: int, at: int, n: int) -> bool:
    """False when the source ends early."""
    done = 0
    while done < n and hasattr(os, "copy_file_range"):
        try:
            step = os.copy_file_range(source, target, n - done, start + done, at + done)
        except OSError as e:
            if e.errno not in _UNABLE:
                raise
            break
        if not step:
            return False
        done += step
    buffer = memoryview(bytearray(min(BUFFER_BYTES, n - done)))
    while done < n:
        os.lseek(source, start + done, os.SEEK_SET)
        step = os.readv(source, [buffer[: n - done]])
        if not step:
            return False
        _write(target, buffer[:step], at + done)
        done += step
    return True


def _write(target: int, data: bytes | memoryview, at: int) -> None:
    data = memoryview(data)
    os.lseek(target, at, os.SEEK_SET)
    while data:
        data = data[os.write(target, data) :]
