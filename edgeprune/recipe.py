"""A plan as other tools take it: a mergekit configuration, or llama-quantize's list of layers to leave out.

Both know whole layers only, so a plan that joins halves of two layers, or leaves one half out, is refused.
"""

from __future__ import annotations

import json

from edgeprune.errors import InputRejected, UsageError
from edgeprune.types import Blocks, Plan

FORMATS = ("mergekit", "prune-layers")


def recipe(plan: Plan, fmt: str, model: str | None = None) -> str:
    """The plan in one of FORMATS, as the text of a file or of an argument.

    `model`: hub id or path that mergekit is to load; the plan's own name for it by default. Raises UsageError for an
    unknown format, InputRejected for a plan the tool can't express.
    """
    if fmt not in FORMATS:
        raise UsageError(f"no recipe called {fmt!r}; known: {', '.join(FORMATS)}")
    kept = whole_layers(plan.blocks, fmt)
    if fmt == "mergekit":
        return mergekit(kept, model or plan.model)
    gone = sorted(set(range(plan.n_blocks_whole)) - set(kept))
    if not gone:
        raise InputRejected("the plan removes nothing, so there is no --prune-layers list; leave the option out")
    return ",".join(map(str, gone)) + "\n"


def mergekit(kept: list[int], model: str) -> str:
    """A passthrough merge; layer_range is half-open, and without a dtype tensors stay as they are stored.

    Format: https://github.com/arcee-ai/mergekit, mergekit/config.py.
    """
    lines = ["slices:"]
    for first, last in runs(kept):
        lines += ["- sources:", f"  - model: {json.dumps(model)}", f"    layer_range: [{first}, {last + 1}]"]
    return "\n".join([*lines, "merge_method: passthrough", ""])


def runs(layers: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, last) of each unbroken run."""
    out: list[tuple[int, int]] = []
    for i in layers:
        if out and out[-1][1] + 1 == i:
            out[-1] = (out[-1][0], i)
        else:
            out.append((i, i))
    return out


def whole_layers(blocks: Blocks, fmt: str) -> list[int]:
    """The layers kept, in order. Raises InputRejected naming the first block that is not one whole layer."""
    for n, b in enumerate(blocks):
        if b.attn != b.ffn:
            halves = f"attention {_from(b.attn)}, feed-forward {_from(b.ffn)}"
            raise InputRejected(
                f"{fmt} knows whole layers only, block {n} of the plan is {halves}; use `edgeprune prune` for this plan"
            )
    return [b.attn for b in blocks if b.attn is not None]


def _from(layer: int | None) -> str:
    return "missing" if layer is None else f"from layer {layer}"
