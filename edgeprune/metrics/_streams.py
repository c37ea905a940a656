"""The residual stream between the sub-layers, and how much each step changes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from edgeprune.metrics._halves import entrance, halves, run_device
from edgeprune.metrics._sweep import pieces

if TYPE_CHECKING:
    import torch


def streams(model: Any, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """2n + 1 streams (g, t, d) of tokens (g, t), float32: before each attention and each feed-forward in turn, and after
    the last one, before the final norm (transformers' hidden_states[-1] is after it). One is held at a time."""
    stream, kwargs = entrance(model, tokens)
    yield stream.float()
    for (_, layer), run in halves(model):
        stream = run(stream, **kwargs[layer])
        yield stream.float()


def per_window(
    model: Any, windows: list[list[int]], work: Any, read: Callable[[Iterator[torch.Tensor]], Any]
) -> list[Any]:
    """read(the streams of some windows) -> one result per window; all results in the order of the windows."""
    import torch

    def do(piece: list[int]) -> Any:
        with torch.inference_mode():
            return read(streams(model, torch.tensor([windows[w] for w in piece], device=run_device(model))))

    groups = pieces(model, windows, range(len(windows)), 1, work.max_bytes)
    found = work.each(groups, do, lambda n: work.progress(n, len(groups)))
    return [result for group in found for result in group]


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

    found = per_window(model, windows, work, read)
    n_tokens = sum(map(len, windows))
    return [math.fsum(of_one) / n_tokens for of_one in zip(*found, strict=True)]


def cosine_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """1 − cos(x, y) (…) of streams (…, d)."""
    import torch

    return 1 - torch.nn.functional.cosine_similarity(x, y, dim=-1)
