"""The residual stream between the sub-layers, and how much each step changes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from edgeprune.metrics._halves import entrance, halves, run_device
from edgeprune.metrics._memory import each_window, room

if TYPE_CHECKING:
    import torch


def streams(model: Any, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """2n + 1 streams (g, t, d) of tokens (g, t), float32: before each attention and each feed-forward in turn, and after
    the last one, before the final norm (transformers' hidden_states[-1] is after it). One is held at a time."""
    stream, kwargs = entrance(model, tokens)
    yield stream.float()
    for (_, layer), run in halves(model):
        stream = run(stream, **kwargs[layer])
        yield stream.to(tokens.device).float()  # the layers of a large model may be spread over devices


def per_window(
    model: Any, windows: list[list[int]], work: Any, read: Callable[[Iterator[torch.Tensor]], list[Any]], held: int
) -> list[Any]:
    """read(the streams of some windows) -> one result per window; all results in the order of the windows.

    held: how many float32 streams of a window `read` has in memory at most.
    """
    import torch

    def do(piece: list[int]) -> list[Any]:
        with torch.inference_mode():
            return read(streams(model, torch.tensor([windows[w] for w in piece], device=run_device(model))))

    of_a_window = (held + 2) * 4 // model.dtype.itemsize  # a layer's input and output besides
    at_once = room(model, windows, work.max_bytes, least=of_a_window) // of_a_window
    return each_window(
        model, windows, range(len(windows)), work, do, at_once, lambda done: work.progress(done, len(windows))
    )


def mean_change(
    model: Any, windows: list[list[int]], work: Any, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    sublayers: bool = False,
) -> list[float]:  # fmt: skip
    """Mean over all tokens of change(x, y) (g, t), x and y the streams (g, t, d) before and after each block.

    `sublayers`: before and after each sub-layer instead, [A0, F0, A1, …].
    """
    import torch

    def read(around: Iterator[torch.Tensor]) -> list[list[float]]:
        x, sums = next(around), []
        for k, y in enumerate(around):
            if sublayers or k % 2:
                sums.append(change(x, y).double().sum(-1).cpu())
                x = y
        return torch.stack(sums, dim=-1).tolist()

    found = per_window(model, windows, work, read, held=6)  # x, y, and what `change` makes of them
    n_tokens = sum(map(len, windows))
    return [math.fsum(of_one) / n_tokens for of_one in zip(*found, strict=True)]


def cosine_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """1 − cos(x, y) (…) of streams (…, d)."""
    import torch

    return 1 - torch.nn.functional.cosine_similarity(x, y, dim=-1)
