"""Perplexity by removal: the perplexity of the model with one block left out.

Shortened LLaMA, Kim et al. 2024, arXiv:2402.02834, section 3.1 (PPL criterion). The stream before the missing
block is the whole model's, so a candidate costs only the blocks after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from edgeprune.divergence import nll
from edgeprune.metrics._capture import capture, head, run_layers

SOURCE = "Shortened LLaMA, Kim et al. 2024, arXiv:2402.02834, section 3.1"


def rate(model: Any, windows: list[list[int]], progress: Callable[[int, int], None]) -> list[float]:
    import torch

    layers = model.model.layers
    total = [0.0] * len(layers)
    n_tokens = 0
    with torch.inference_mode():
        for done, window in enumerate(windows):
            tokens = torch.tensor([window], device=model.device)
            calls = capture(model, tokens).calls
            for i in range(len(layers)):
                stream = run_layers(layers[i + 1 :], calls[i].hidden, calls[i + 1 :])
                total[i] += nll(head(model, stream), tokens[0])
                progress(done * len(layers) + i + 1, len(windows) * len(layers))
            n_tokens += len(window) - 1
    return [math.exp(t / n_tokens) for t in total]
