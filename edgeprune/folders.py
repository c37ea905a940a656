"""Small bridges for the verbs: any MODEL as a transformers folder, a JSON record from a path."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from edgeprune.errors import InputRejected, UsageError
from edgeprune.types import Record

R = TypeVar("R", bound=Record)


@contextlib.contextmanager
def as_folder(path: Path) -> Iterator[Path]:
    """A transformers folder as it is; a .gguf dequantised to float32 in a temporary folder, removed afterwards."""
    if path.is_dir():
        yield path
        return
    from edgeprune.materialise import materialise

    with tempfile.TemporaryDirectory(prefix="edgeprune-") as temporary:
        folder = Path(temporary) / path.stem
        materialise(path, folder)
        yield folder


def read_record(path: Path, kind: type[R]) -> R:
    """Raises UsageError when there is no such file, InputRejected when it is not such a record."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{path} can't be read as a {kind.__name__}: {e}") from None
    try:
        return kind.from_json(text)
    except ValueError as e:
        raise InputRejected(f"{path}: {e}; make it again") from None


def public_name(model: str) -> str:
    """How a card may call a model: a hub id as it is, a local path by its last part."""
    path = Path(model)
    return path.resolve().name if path.exists() else model.removeprefix("hf://")
