"""Text to heal by, in kinds: every text is one, and a single text's thirds stand for three.

Training reads instructions too: a .jsonl file of {"messages": [{"role": …, "content": …}, …]} lines goes through the
model's chat template, and only what the assistant says is learnt.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from edgeprune.calibration import Windows, read_texts, read_windows, text_sha256
from edgeprune.closed_form import Kind
from edgeprune.errors import InputRejected, UsageError
from edgeprune.types import ModelSpec, Text

ASIDE = 8  # one window in so many of each kind of text is held aside, at least one
MOST_ASIDE = 8  # for training, which looks at them often
ALL = 10**12  # tokens, more than any text has
RUN_WORDS = 13
MOST_SHARED = 0.1  # of a text that judges, in one that heals: more is no quotation
PARTS = 3  # a single text is cut into so many, which stand for kinds

T = TypeVar("T")


class Example(NamedTuple):
    """Tokens, and which of them are to be predicted from those before; never the first."""

    tokens: list[int]
    learn: list[bool]


def read_kinds(
    tok: Any, spec: ModelSpec, files: Sequence[Path], avoid: Sequence[Path], n_windows: int, context_tokens: int
) -> tuple[Windows, list[Kind]]:
    """Windows of text by kind. Raises UsageError when a kind is too short to hold a window aside, or when one of the
    texts is in `avoid`."""
    named = read_texts(files, "calibration")
    keep_from_judging(named, avoid)
    read = read_windows(tok, spec, files, n_windows, context_tokens)
    kinds = in_kinds(read, [name for name, _ in named])
    return read, [Kind(name, *_dealt(name, found, context_tokens)) for name, found in kinds]


def in_kinds(read: Windows, names: Sequence[str]) -> list[tuple[str, list[list[int]]]]:
    """The windows of each of these texts; of a single one its parts."""
    return _kinds(
        [(name, [w for w, k in zip(read.windows, read.kinds, strict=True) if k == i]) for i, name in enumerate(names)]
    )


def read_examples(
    tok: Any, spec: ModelSpec, files: Sequence[Path], avoid: Sequence[Path], n_tokens: float, context_tokens: int
) -> tuple[Text, list[Kind]]:
    """As `read_kinds`, of Examples: about `n_tokens` of them to train on, all there is where that is less."""
    context_tokens = min(context_tokens, spec.context_length_tokens)
    talks = [path for path in files if Path(path).suffix == ".jsonl"]
    plain = [path for path in files if path not in talks]
    named = (read_texts(plain, "calibration") if plain or not files else []) + [
        pair for path in talks for pair in read_texts([path], "calibration")
    ]
    keep_from_judging(named, avoid)
    share = min(n_tokens, ALL) * ASIDE / (ASIDE - 1) / len(named)
    by_text: list[tuple[str, list[Example]]] = []
    if plain or not files:
        n_windows = max(2, math.ceil(share / context_tokens)) * (len(named) - len(talks))
        read = read_windows(tok, spec, plain, n_windows, context_tokens)
        by_text = [(name, []) for name, _ in named[: len(named) - len(talks)]]
        for window, kind in zip(read.windows, read.kinds, strict=True):
            by_text[kind][1].append(Example(window, [False] + [True] * (len(window) - 1)))
    for name, text in named[len(by_text) :]:
        by_text.append((name, list(_until(_conversations(tok, name, text, context_tokens), share))))
    kinds = [Kind(name, *_dealt(name, found, context_tokens, MOST_ASIDE)) for name, found in _kinds(by_text)]
    about = Text(
        name=", ".join(name for name, _ in named), sha256=text_sha256("\n\n".join(text for _, text in named)),
        parts=tuple(text_sha256(text) for _, text in named), context_tokens=context_tokens, stride_tokens=context_tokens,
        tokens=sum(len(e.tokens) for kind in kinds for e in [*kind.fit, *kind.aside]),
    )  # fmt: skip
    return about, kinds


def conversation(tok: Any, messages: Sequence[dict[str, Any]]) -> Example:
    """A conversation as the model would meet it: every prompt up to the assistant's turn, then what the assistant says.

    Both are encoded by themselves, as in generation. Raises ValueError where the template takes back what it wrote.
    """
    tokens: list[int] = []
    learn: list[bool] = []
    written = ""
    if not all(isinstance(message[field], str) for message in messages for field in ("role", "content")):
        raise ValueError("a role or a content is no text")
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = tok.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
        said = tok.apply_chat_template(messages[: i + 1], tokenize=False)
        if not prompt.startswith(written) or not said.startswith(prompt):
            raise ValueError("the chat template rewrites what came before")
        for text, learnt in ((prompt[len(written) :], False), (said[len(prompt) :], True)):
            ids = tok.encode(text, add_special_tokens=False)
            tokens += ids
            learn += [learnt] * len(ids)
        written = said
    return Example(tokens, [False, *learn[1:]])


def _conversations(tok: Any, name: str, text: str, context_tokens: int) -> Iterator[Example]:
    """In an order that is always the same, cut to the context; those in which nothing is left to learn are passed over."""
    if not getattr(tok, "chat_template", None):
        raise InputRejected(f"{name} holds conversations, and the model has no chat template; give plain text")
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    for n, line in random.Random(0).sample(lines, len(lines)):
        try:
            found = conversation(tok, json.loads(line)["messages"])
        except Exception as e:  # not JSON, other fields, or whatever a template raises
            what = " ".join(f"{type(e).__name__}: {e}".split())[:120]
            raise InputRejected(
                f'{name}, line {n} is not {{"messages": [{{"role": …, "content": …}}, …]}} that the chat template takes ({what})'
            ) from None
        cut = Example(found.tokens[:context_tokens], found.learn[:context_tokens])
        if any(cut.learn):
            yield cut


def _until(examples: Iterator[Example], n_tokens: float) -> Iterator[Example]:
    for example in examples:
        yield example
        n_tokens -= len(example.tokens)
        if n_tokens <= 0:
            return


def keep_from_judging(named: Sequence[tuple[str, str]], avoid: Sequence[Path]) -> None:
    """Raises UsageError when one of these (name, text) is in one of the files that are to judge, or holds much of it."""
    judges = read_texts(avoid, "evaluation") if avoid else []
    wanted = [(judging, text_sha256(judged), _runs(judged)) for judging, judged in judges]
    for name, text in named if wanted else ():
        sha256, held = text_sha256(text), _runs(text)
        for judging, judged_sha256, runs in wanted:
            if sha256 == judged_sha256:
                raise UsageError(f"{name} is to judge the result, it can't also shape it; name another --calibration")
            if (share := _share(runs, held)) > MOST_SHARED:
                raise UsageError(
                    f"{name} holds {share:.0%} of {judging}, which is to judge the result, so it can't shape it; name another "
                    "--calibration"
                )


def shared(text: str, judged: str) -> float:
    """How much of `judged` is in `text` too: of its runs of 13 words those that are, the measure of overlap of Brown et al.
    2020 (arXiv:2005.14165, appendix C)."""
    return _share(_runs(judged), _runs(text))


def _runs(text: str) -> set[int]:
    words = text.split()
    return {hash(run) for run in zip(*(words[i:] for i in range(RUN_WORDS)), strict=False)}


def _share(wanted: set[int], held: set[int]) -> float:
    return len(wanted & held) / len(wanted) if wanted else 0.0


def _kinds(by_text: list[tuple[str, list[T]]]) -> list[tuple[str, list[T]]]:
    if len(by_text) > 1:
        return by_text
    ((name, found),) = by_text
    ends = [round(part * len(found) / PARTS) for part in range(PARTS + 1)]
    return [(f"{name}, part {i + 1}", found[ends[i] : ends[i + 1]]) for i in range(PARTS)]


def _dealt(name: str, found: list[T], context_tokens: int, most: int | None = None) -> tuple[list[T], list[T]]:
    """(to fit to, held aside)"""
    n = max(1, min(len(found) // ASIDE, most or len(found)))
    aside = {(2 * i + 1) * len(found) // (2 * n) for i in range(n)}
    fit = [w for i, w in enumerate(found) if i not in aside]
    if not fit:
        more = "--tokens" if most else "--windows"  # training has a most
        raise UsageError(
            f"{name} gives {'one window' if found else 'no window'} of {context_tokens} tokens, healing needs two of each kind of "
            f"text; give more text, a smaller --window or more {more}"
        )
    return fit, [found[i] for i in sorted(aside)]
