"""Text -> token windows. The default text is installed with CPython: the topics of `help()` (pydoc_data.topics).

Its topics are dealt out in turn, even ones for calibration and odd ones for evaluation, so the two never overlap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from edgeprune.errors import InputRejected, UsageError
from edgeprune.types import Text

Split = Literal["calibration", "evaluation"]


class Windows(NamedTuple):
    """Token ids, every window of the same length, and what text they come from."""

    windows: list[list[int]]
    text: Text


def default_text(split: Split) -> tuple[str, str]:
    """(name, text) of one half of CPython's help topics. Topics quote each other; a paragraph counts where it is first."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    halves: tuple[list[str], list[str]] = ([], [])
    for i, topic in enumerate(sorted(topics)):
        for paragraph in topics[topic].split("\n\n"):
            if paragraph.strip() not in seen:
                seen.add(paragraph.strip())
                halves[i % 2].append(paragraph)
    return f"CPython help topics, {split} half", "\n\n".join(halves[split == "evaluation"])


def read_text(files: Sequence[Path], split: Split) -> tuple[str, str]:
    """(name, text) of the files in the order given, or of the default text. Raises InputRejected."""
    if not files:
        return default_text(split)
    parts = []
    for path in files:
        try:
            parts.append(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as e:
            raise InputRejected(f"{path} can't be read as UTF-8 text: {e}") from None
    return ", ".join(Path(p).name for p in files), "\n\n".join(parts)


def windows(
    encode: Callable[[str], list[int]],
    files: Sequence[Path] = (),
    *,
    split: Split,
    n_windows: int,
    context_tokens: int,
    bos_token: int | None = None,
    avoid_sha256: str | None = None,
) -> Windows:
    """`n_windows` windows of `context_tokens`, not overlapping. Calibration spreads them evenly over the text,
    evaluation takes them from its start, as published perplexities do.

    bos_token, where given, is the first token of every window. Raises UsageError when the text is too short, or
    when its hash is `avoid_sha256` (text used to choose the cuts can't also judge them).
    """
    name, text = read_text(files, split)
    sha = text_sha256(text)
    if sha == avoid_sha256:
        raise UsageError(
            f"{name}: the same text chose the cuts, it can't also judge them; name another evaluation text"
        )
    tokens = encode(text)
    body = context_tokens - (bos_token is not None)
    available = len(tokens) // body
    if available < 1:
        raise UsageError(
            f"{name} has {len(tokens)} tokens, one window needs {body}; give a longer text or a smaller --context"
        )
    n = min(n_windows, available)
    spread = split == "calibration"
    starts = [(i * available // n if spread else i) * body for i in range(n)]
    head = [] if bos_token is None else [bos_token]
    return Windows(
        [head + tokens[s : s + body] for s in starts],
        Text(name=name, sha256=sha, tokens=n * context_tokens, context_tokens=context_tokens, stride_tokens=body),
    )


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def keep_apart(files: Sequence[Path], sha256: str, avoid_sha256: str | None) -> None:
    """Raises UsageError when a text is the one that must not be used again."""
    if sha256 == avoid_sha256:
        name = ", ".join(Path(p).name for p in files) or "the default text"
        raise UsageError(
            f"{name}: the same text chose the cuts, it can't also judge them; name another evaluation text"
        )
