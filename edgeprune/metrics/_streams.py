"""The residual stream between the sub-layers, caught by hooks, and how much each step changes it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from edgeprune import families
from edgeprune.metrics._capture import capture

if TYPE_CHECKING:
    import torch


def streams(model: Any, window: list[int]) -> list[torch.Tensor]:
    """2n + 1 streams (t, d), float32: before each attention and each feed-forward in turn, and after the last one.

    Every other one lies between blocks. The last is taken before the final norm (transformers' hidden_states[-1] is
    after it). In every family a feed-forward's first module, its norm where it has one, reads the stream itself.
    """
    import torch

    family = families.for_model_type(model.config.model_type)
    ffn_door = next(iter(family.FFN)).partition(".")[0]
    before_ffn: list[torch.Tensor] = []

    def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        before_ffn.append(args[0] if args else kwargs["hidden_states"])

    doors = [layer.get_submodule(ffn_door) for layer in model.model.layers]
    handles = [door.register_forward_pre_hook(keep, with_kwargs=True) for door in doors]
    try:
        with torch.inference_mode():
            got = capture(model, torch.tensor([window], device=model.device))
    finally:
        for handle in handles:
            handle.remove()
    halves = [h for call, middle in zip(got.calls, before_ffn, strict=True) for h in (call.hidden, middle)]
    return [h[0].to(model.device, torch.float32) for h in (*halves, got.stream)]


def mean_change(
    model: Any,
    windows: list[list[int]],
    progress: Callable[[int, int], None],
    change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    sublayers: bool = False,
) -> list[float]:
    """Mean over all tokens of change(x, y) (t,), x and y the streams (t, d) before and after each block.

    `sublayers`: before and after each sub-layer instead, [A0, F0, A1, …].
    """
    totals: list[float] = []
    for done, window in enumerate(windows, 1):
        around = streams(model, window)[:: 1 if sublayers else 2]
        sums = [change(x, y).double().sum().item() for x, y in pairwise(around)]
        totals = [a + b for a, b in zip(totals, sums, strict=True)] if totals else sums
        progress(done, len(windows))
    return [total / sum(map(len, windows)) for total in totals]


def cosine_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """1 − cos(x, y) (t,) of streams (t, d)."""
    import torch

    return 1 - torch.nn.functional.cosine_similarity(x, y, dim=-1)
