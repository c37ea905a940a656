"""Block influence: how much a block turns the stream.

BI_i = 1 − E_t[ cos(h_i,t , h_i+1,t) ], h_i the stream before block i, over every token.
ShortGPT, Men et al. 2024, arXiv:2403.03853, eq. 1. The last block's output is taken before the final norm
(transformers' hidden_states[-1] is after it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeprune.metrics._capture import capture

SOURCE = "ShortGPT, Men et al. 2024, arXiv:2403.03853, eq. 1"


def rate(model: Any, windows: list[list[int]], progress: Callable[[int, int], None]) -> list[float]:
    import torch

    total = torch.zeros(len(model.model.layers), dtype=torch.float64)
    n_tokens = 0
    with torch.inference_mode():
        for done, window in enumerate(windows, 1):
            got = capture(model, torch.tensor([window], device=model.device))
            streams = [call.hidden for call in got.calls] + [got.stream]
            for i, (x, y) in enumerate(zip(streams, streams[1:], strict=False)):
                cosine = torch.nn.functional.cosine_similarity(x.float(), y.float(), dim=-1)
                total[i] += (1 - cosine.double()).sum().cpu()
            n_tokens += len(window)
            progress(done, len(windows))
    return (total / n_tokens).tolist()
