"""Files that are either complete under their final name or not there at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from edgeprune.errors import EdgepruneError, InputRejected, OutOfResources, UsageError
from edgeprune.gguf_file import split_paths

CHUNK_BYTES = 1 << 22


@contextlib.contextmanager
def staging(out: Path, force: bool = False, flush: bool = True) -> Iterator[Path]:
    """A sibling path to write to; renamed to `out` on success, removed on any failure, Ctrl-C included.

    The caller creates a file or a folder there. On the same file system, so the rename is atomic. With `flush` it is
    on the disk before it is renamed and survives a power cut; without, the system writes it when it likes, as after cp.
    Raises UsageError when `out` exists (unless `force`), OutOfResources when the disk or a permission says no.
    """
    out = Path(out)
    refuse_existing(out, force)
    partial = out.parent / f".{out.name}.partial-{uuid.uuid4().hex[:8]}"
    try:
        with disk_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(out):
            yield partial
            if not partial.exists():
                raise EdgepruneError(f"nothing was written for {out}")
            _settle(partial, flush)
            _replace(partial, out)
    finally:
        remove(partial)


def refuse_existing(out: Path, force: bool) -> None:
    """Raises UsageError when an output is there already; verbs ask before they work, `staging` before it writes."""
    if out.exists() and not force:
        raise UsageError(f"{out} exists; choose another output, or pass --force to replace it")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Full disk, missing permission or no memory as one clear line."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutOfResources(f"no space left writing {path}; free some or choose another place") from e
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
            raise OutOfResources(f"cannot write {path}: {e.strerror}; choose another place") from e
        raise
    except MemoryError as e:
        raise OutOfResources(f"out of memory writing {path}; close other programs or use a smaller model") from e


def write_text(path: Path, text: str, force: bool = False) -> None:
    with staging(path, force) as partial:
        partial.write_text(text, encoding="utf-8")


def need_space(folder: Path, n_bytes: int) -> None:
    """Raises OutOfResources before work when `folder`'s disk can't take `n_bytes` with a tenth to spare."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < n_bytes * 1.1:
        raise OutOfResources(
            f"{folder} needs about {n_bytes * 1.1 / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; free some or choose another place"
        )


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(CHUNK_BYTES):
            digest.update(chunk)
            if progress:
                progress(len(chunk))
    return digest.hexdigest()


def write_sums(folder: Path) -> None:
    """SHA256SUMS over every file of the folder, sorted, in the format of `sha256sum -c`."""
    lines = [f"{sha256_file(p)}  {p.relative_to(folder).as_posix()}" for p in _files(folder) if p.name != "SHA256SUMS"]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_sums(folder: Path) -> None:
    """Raises InputRejected naming the first file that is missing or changed. A folder without sums passes."""
    sums = folder / "SHA256SUMS"
    if not sums.exists():
        return
    for line in sums.read_text(encoding="utf-8").splitlines():
        want, name = line.split("  ", 1)
        target = folder / name
        if not target.is_file():
            raise InputRejected(f"{folder}: {name} is listed in SHA256SUMS and missing; make the folder again")
        if sha256_file(target) != want:
            raise InputRejected(f"{folder}: {name} does not match SHA256SUMS; it was changed or damaged, make it again")


def sha256_tree(path: Path) -> str:
    """One digest for a file; for a folder, or the parts of a split GGUF, of the sorted "digest  name" lines of its files."""
    path = Path(path)
    files = _files(path)
    if files == [path]:
        return sha256_file(path)
    sums = path / "SHA256SUMS"
    if path.is_dir() and sums.exists():
        return sha256_file(sums)
    root = path if path.is_dir() else path.parent
    lines = (f"{sha256_file(p)}  {p.relative_to(root).as_posix()}\n" for p in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tree_bytes(path: Path) -> int:
    """Of a file, of all files of a folder, or of all parts of the split GGUF that `path` is one of."""
    return sum(p.stat().st_size for p in _files(Path(path)))


def _files(path: Path) -> list[Path]:
    """All there is under a name: a file, a folder's files, a split model's parts."""
    found = path.rglob("*") if path.is_dir() else split_paths(path)
    return sorted(p for p in found if p.is_file())


def _settle(path: Path, flush: bool) -> None:
    """Give files the permissions the user's umask asks for (some writers leave 0600), and flush them to disk."""
    umask = os.umask(0)
    os.umask(umask)
    for p in _files(path):
        p.chmod(0o666 & ~umask)
        if not flush:
            continue
        fd = os.open(p, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _replace(partial: Path, out: Path) -> None:
    """Rename; an old folder is moved aside first and removed only once the new one is in place."""
    if not out.is_dir():
        os.replace(partial, out)
        return
    old = out.parent / f".{out.name}.partial-old-{uuid.uuid4().hex[:8]}"
    os.rename(out, old)
    try:
        os.rename(partial, out)
    except OSError:
        os.rename(old, out)
        raise
    remove(old)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
