"""Which block lists a runtime can run: asked by the planner before it proposes one and by exporters before they work."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

Half = tuple[bool, bool]  # whether a block has attention, and a feed-forward


def refusal(
    family: ModuleType, runtime: str, rotates: Sequence[bool], halves: Sequence[Half], tied: bool, alike: bool = True
) -> str | None:
    """Why `runtime` can't run these blocks, and which cuts it could; None when it can.

    `rotates`: per block, whether its attention has a rotary embedding. `alike`: all blocks are equally wide. onnxruntime's
    graph is written block by block and holds anything; llama.cpp's graphs are fixed per architecture. Windows and scales
    need no rule: GGUF says them.
    """
    if runtime != "llamacpp":
        return None
    return (
        _irregular(family, halves, tied)
        or (None if alike else _uneven(family, tied))
        or _unrotated(family, rotates, halves)
    )


def _irregular(family: ModuleType, halves: Sequence[Half], tied: bool) -> str | None:
    if all(a and f for a, f in halves):
        return None
    arch = getattr(family, "GGUF_ARCH_IRREGULAR", None)
    name = family.__name__.rsplit(".", 1)[-1]
    instead = "allowed are whole layers and cuts from one half-layer to the same half of another; or export to ONNX"
    if arch is None or (arch == "openelm" and not tied):
        untied = " with an output matrix of its own" if arch else ""
        return f"llama.cpp has no architecture for {name} blocks without attention or feed-forward{untied}; {instead}"
    if arch == "deci" and not halves[0][0]:
        return f"llama.cpp needs attention in the first block (it reads the head size there); {instead}"
    return None


def _uneven(family: ModuleType, tied: bool) -> str | None:
    arch = getattr(family, "GGUF_ARCH_IRREGULAR", None)
    if arch is not None and (arch != "openelm" or tied):
        return None
    untied = " with an output matrix of its own" if arch else ""
    return (
        f"llama.cpp has no architecture for {family.__name__.rsplit('.', 1)[-1]} models{untied} whose blocks differ in width "
        "(for most it takes the first block's); prune to one width for all (--uniform), or export to ONNX"
    )


def _unrotated(family: ModuleType, rotates: Sequence[bool], halves: Sequence[Half]) -> str | None:
    """Blocks that llama.cpp leaves without rotation by their position, whatever the file says."""
    every = getattr(family, "NOPE_EVERY", {}).get("llamacpp")
    if every is None:
        return None
    for i, (rotated, (attention, _)) in enumerate(zip(rotates, halves, strict=True)):
        if attention and rotated == ((i + 1) % every == 0):
            return (
                f"llama.cpp leaves every {every}th block of this architecture, and no other, without rotation; in block {i} "
                f"of this model that is wrong. Allowed are cuts of {every}, {2 * every}, … neighbouring layers (from any "
                "half-layer on), and of any number at the end; or export to ONNX"
            )
    return None
