"""Text -> token windows. The default texts are installed with CPython and with the packages edgeprune needs.

Calibration reads texts of several kinds in turn: documentation, source code, prose. Evaluation reads documentation that
calibration does not: the topics of `help()` (pydoc_data.topics) are dealt out, even ones to the one, odd ones to the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edgeprune.errors import InputRejected, UsageError
from edgeprune.types import ModelSpec, Text

Split = Literal["calibration", "evaluation"]
DEFAULT = Path("default")  # among files; one of that name is to be given by its whole path


class Windows(NamedTuple):
    """Token ids, every window of the same length, and what text they come from."""

    windows: list[list[int]]
    text: Text
    kinds: tuple[int, ...] = ()  # which of the calibration texts each window is of


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


def library_source() -> str:
    """Every eighth module of the standard library."""
    import sysconfig

    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[::8]
    return "\n\n".join(m.read_text(encoding="utf-8", errors="replace") for m in modules)


def package_descriptions() -> str:
    """What the packages edgeprune needs say of themselves, the first pages each."""
    import re
    from importlib.metadata import PackageNotFoundError, metadata, requires

    found = []
    for requirement in requires("edgeprune") or []:
        if "extra ==" not in requirement:
            try:
                about = metadata(re.split(r"[^\w.-]", requirement)[0])
            except PackageNotFoundError:
                continue
            found.append(str(about.get("Description") or about.get_payload() or "")[:20_000])
    return "\n\n".join(found)


def _installed(split: Split) -> list[tuple[str, str]]:
    if split == "evaluation":
        return [default_text("evaluation")]
    more = [("standard library source", library_source()), ("package descriptions", package_descriptions())]
    return [default_text("calibration"), *((name, text) for name, text in more if text)]


def read_texts(files: Sequence[Path], split: Split) -> list[tuple[str, str]]:
    """(name, text) of each file in the order given, or of the default texts, for which the word `default` stands too.

    Raises InputRejected.
    """
    found = []
    for path in files or [DEFAULT]:
        if path == DEFAULT:
            found += _installed(split)
            continue
        try:
            found.append((Path(path).name, Path(path).read_text(encoding="utf-8")))
        except OSError as e:
            raise InputRejected(f"{path} can't be read: {e.strerror}; name a text file") from None
        except UnicodeDecodeError as e:
            raise InputRejected(
                f"{path} is not UTF-8 text: byte {e.start} is {e.object[e.start]:#x}; convert it"
            ) from None
    return found


def windows(
    encode: Callable[[str], list[int]],
    files: Sequence[Path] = (),
    *,
    split: Split,
    n_windows: int,
    context_tokens: int,
    bos_token: int | None = None,
    avoid: Text | None = None,
) -> Windows:
    """`n_windows` windows of `context_tokens`, not overlapping. Calibration takes them from the texts in turn, spread
    evenly over each; evaluation from the start of all texts joined, as published perplexities do.

    bos_token, where given, is the first token of every window. Raises UsageError when the text is too short, or when
    one of the texts is in `avoid` (text used to choose the cuts can't also judge them).
    """
    texts = read_texts(files, split)
    keep_apart(texts, avoid)
    name, joined = ", ".join(name for name, _ in texts), "\n\n".join(text for _, text in texts)
    body = context_tokens - (bos_token is not None)
    tokens = [encode(text) for _, text in texts] if split == "calibration" else [encode(joined)]
    available = [len(t) // body for t in tokens]
    if not any(available):
        raise UsageError(
            f"{name} has {sum(map(len, tokens))} tokens, one window needs {body}; give a longer text or a smaller --window"
        )
    taken = [0] * len(tokens)
    turns = []  # which text the next window is from
    while len(turns) < min(n_windows, sum(available)):
        for i in range(len(tokens)):
            if taken[i] < available[i] and len(turns) < n_windows:
                turns.append((i, taken[i]))
                taken[i] += 1
    spread = split == "calibration"
    starts = [(i, (k * available[i] // taken[i] if spread else k) * body) for i, k in turns]
    head = [] if bos_token is None else [bos_token]
    return Windows(
        [head + tokens[i][start : start + body] for i, start in starts],
        Text(
            name=name, sha256=text_sha256(joined), parts=tuple(text_sha256(text) for _, text in texts),
            tokens=len(turns) * context_tokens, context_tokens=context_tokens, stride_tokens=body,
        ),
        tuple(i for i, _ in turns),
    )  # fmt: skip


def read_windows(
    tok: Any, spec: ModelSpec, files: Sequence[Path], n_windows: int, context_tokens: int,
    split: Split = "calibration", avoid: Text | None = None,
) -> Windows:  # fmt: skip
    """Windows of a text as a transformers tokenizer reads it, no longer than the model's context."""
    return windows(
        lambda s: tok.encode(s, add_special_tokens=False), files, split=split, n_windows=n_windows, avoid=avoid,
        context_tokens=min(context_tokens, spec.context_length_tokens), bos_token=_bos(tok),
    )  # fmt: skip


def _bos(tok: Any) -> int | None:
    """The token this tokenizer puts before a text, if it does."""
    ids = tok.encode("a")
    return tok.bos_token_id if ids and tok.bos_token_id is not None and ids[0] == tok.bos_token_id else None


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def keep_apart(texts: Sequence[tuple[str, str]], avoid: Text | None) -> None:
    """Raises UsageError when one of the texts is one of those that must not be used again, by hash."""
    used = {avoid.sha256, *avoid.parts} if avoid else set()
    for name, text in [*texts, ("the same text", "\n\n".join(text for _, text in texts))]:
        if text_sha256(text) in used:
            raise UsageError(f"{name} chose the cuts, it can't also judge them; name another evaluation text")
