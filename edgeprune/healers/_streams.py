"""The stream of a running model at chosen points, with its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgeprune import families
from edgeprune.blocks import kept_sublayers, whole
from edgeprune.healers._trainee import place_of
from edgeprune.types import Blocks

if TYPE_CHECKING:
    import torch

Half = tuple[str, int]


def before(model: Any, blocks: Blocks, half: Half | None) -> Any:
    """The module whose input is the stream just before this half of the whole model, in a model that has `blocks`; None
    is after the last one. The first of a half's modules, as its family lists them, is given the stream itself."""
    if half is None:
        return model.model.norm
    family = families.for_model_type(model.config.model_type)
    first = next(iter(family.ATTN if half[0] == "A" else family.FFN))
    return model.model.layers[place_of(half, blocks)].get_submodule(first)


def removed_runs(blocks: Blocks, n_blocks: int) -> list[tuple[list[Half], Half | None]]:
    """Each run of neighbours that `blocks` leaves out, and the kept half right after it, None at the end of the model."""
    kept = set(kept_sublayers(blocks))
    found: list[tuple[list[Half], Half | None]] = []
    run: list[Half] = []
    for half in [*kept_sublayers(whole(n_blocks)), None]:
        if half is not None and half not in kept:
            run.append(half)
        elif run:
            found.append((run, half))
            run = []
    return found


class _Enough(Exception):
    pass


def streams(
    model: Any, places: Sequence[Any], tokens: torch.Tensor, to_the_end: bool = False
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """(n, t, d) before each of these modules, in the order they run, and the logits (n, t, v) if run `to_the_end`."""
    found: list[torch.Tensor] = []

    def note(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        if len(found) < len(places):  # layers run again for their gradient are not noted again
            found.append(args[0])
        if len(found) == len(places) and not to_the_end:
            raise _Enough

    hooks = [place.register_forward_pre_hook(note) for place in places]
    try:
        return found, model(input_ids=tokens, use_cache=False).logits
    except _Enough:
        return found, None
    finally:
        for hook in hooks:
            hook.remove()
