"""Magnitude: the sum of the absolute weights of a block's matrices. Reads no text.

I_i = Σ_W Σ_jk |W_jk| over the matrices W of block i; norms and biases are left out.
Shortened LLaMA, Kim et al. 2024, arXiv:2402.02834, section 3.1 (Mag criterion).
"""

from __future__ import annotations

from typing import Any

from edgeprune.metrics._weights import at_hand

SOURCE = "Shortened LLaMA, Kim et al. 2024, arXiv:2402.02834, section 3.1"


def rate(model: Any, windows: list[list[int]], work: Any) -> list[float]:
    import torch

    layers = model.model.layers
    found = []
    for done, layer in enumerate(layers, 1):
        with at_hand(layer):
            matrices = [p.detach() for p in layer.parameters() if p.ndim == 2]
            found.append(sum(w.abs().sum(dtype=torch.float64).item() for w in matrices))
        work.progress(done, len(layers))
    return found
