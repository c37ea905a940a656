"""What can be said of a block list: what it keeps, what it removes, whether it is sound."""

from __future__ import annotations

import functools
import re

from edgeprune.types import Block, Blocks


@functools.cache
def whole(n_blocks: int) -> Blocks:
    return tuple(Block(attn=i, ffn=i) for i in range(n_blocks))


def is_portable(blocks: Blocks) -> bool:
    """No missing halves: the same architecture, loads everywhere."""
    return all(b.attn is not None and b.ffn is not None for b in blocks)


def kept_sublayers(blocks: Blocks) -> list[tuple[str, int]]:
    """[("A", 0), ("F", 0), …] in the order they run."""
    return [(kind, i) for b in blocks for kind, i in (("A", b.attn), ("F", b.ffn)) if i is not None]


def from_sublayers(halves: list[tuple[str, int]]) -> Blocks:
    """The reverse of `kept_sublayers`: an attention and the feed-forward right after it make a block."""
    out: list[Block] = []
    for kind, i in halves:
        if kind == "F" and out and out[-1].ffn is None:
            out[-1] = Block(attn=out[-1].attn, ffn=i)
        else:
            out.append(Block(attn=i, ffn=None) if kind == "A" else Block(attn=None, ffn=i))
    return tuple(out)


def removed_sublayers(blocks: Blocks, n_blocks: int) -> list[tuple[str, int]]:
    kept = set(kept_sublayers(blocks))
    return [(kind, i) for i in range(n_blocks) for kind in "AF" if (kind, i) not in kept]


def without_block(blocks: Blocks, index: int) -> Blocks:
    """Drop the whole layer whose attention is `index`'th of the *whole* model (an aligned cut)."""
    return tuple(b for b in blocks if b.attn != index)


def check_blocks(blocks: Blocks, n_blocks: int) -> None:
    """Raises ValueError unless the list is non-empty, in range, ascending and without repeats."""
    order = [2 * i + (kind == "F") for kind, i in kept_sublayers(blocks)]
    if not order:
        raise ValueError("the block list is empty")
    if any(b.attn is None and b.ffn is None for b in blocks):
        raise ValueError("a block has neither attention nor feed-forward")
    if min(order) < 0 or max(order) >= 2 * n_blocks:
        raise ValueError(f"a block names a layer outside 0…{n_blocks - 1}")
    if any(b <= a for a, b in zip(order, order[1:], strict=False)):
        raise ValueError("sub-layers repeat or run out of order")


def describe_removed(blocks: Blocks, n_blocks: int) -> str:
    """Human text such as "layers 11-13; F4 A5" ("" when nothing is removed)."""
    gone = set(removed_sublayers(blocks, n_blocks))
    layers = [i for i in range(n_blocks) if ("A", i) in gone and ("F", i) in gone]
    halves = [f"{k}{i}" for i in range(n_blocks) for k in "AF" if (k, i) in gone and i not in layers]
    runs: list[list[int]] = []
    for i in layers:
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    parts = []
    if layers:
        text = ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
        parts.append(f"layer{'s' if len(layers) > 1 else ''} {text}")
    if halves:
        parts.append(" ".join(halves))
    return "; ".join(parts)


def without(text: str, n_blocks: int) -> Blocks:
    """What stays when this goes: layers and halves as `describe_removed` writes them, "13-15, 17; F11 A12" or "13,14,15".
    Raises ValueError naming what can't be read or is not there."""
    gone: set[tuple[str, int]] = set()
    for part in re.split(r"[\s,;]+", re.sub(r"\blayers?\b", " ", text).strip()):
        found = re.fullmatch(r"([AF]?)(\d+)(?:-(\d+))?", part, re.IGNORECASE)
        first, last = (int(found[2]), int(found[3] or found[2])) if found else (1, 0)
        if first > last:
            raise ValueError(f"{part!r} is neither a layer (13), a run of layers (13-15) nor a half of one (A13, F13)")
        if last >= n_blocks:
            raise ValueError(f"{part} is outside the layers 0 to {n_blocks - 1}")
        gone |= {(kind, i) for i in range(first, last + 1) for kind in (found[1].upper() or "AF")}
    kept = [half for half in kept_sublayers(whole(n_blocks)) if half not in gone]
    if not kept:
        raise ValueError("that leaves nothing")
    return from_sublayers(kept)


def to_text(blocks: Blocks) -> str:
    """A block list in one line: "0-10 13 14:15 20:- 21" (attention:feed-forward, "-" for none, runs of whole layers)."""
    parts: list[str] = []
    run: list[int] = []

    def close() -> None:
        if run:
            parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
            run.clear()

    for b in blocks:
        if b.attn is not None and b.attn == b.ffn:
            if run and run[-1] + 1 != b.attn:
                close()
            run.append(b.attn)
        else:
            close()
            parts.append(":".join("-" if i is None else str(i) for i in (b.attn, b.ffn)))
    close()
    return " ".join(parts)


def from_text(text: str) -> Blocks:
    """The reverse of `to_text`. Raises ValueError for anything else."""
    out: list[Block] = []
    for part in text.split():
        if ":" in part:
            attn, ffn = (None if half == "-" else int(half) for half in part.split(":"))
            out.append(Block(attn=attn, ffn=ffn))
        else:
            first, _, last = part.partition("-")
            out += [Block(attn=i, ffn=i) for i in range(int(first), int(last or first) + 1)]
    return tuple(out)
