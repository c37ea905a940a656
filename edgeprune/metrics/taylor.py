"""Taylor: the first-order estimate of what the loss loses with a block's weights.

I_i = Σ_W Σ_jk | Σ_b W_jk ∂L_b/∂W_jk | over the matrices W of block i, L_b the mean cross-entropy of window b: signed
over windows, absolute over weights. Norms and biases, embeddings and head are left out.
Shortened LLaMA, Kim et al. 2024, arXiv:2402.02834, section 3.1 (Taylor criterion).
"""

from __future__ import annotations

from typing import Any

from edgeprune.errors import OutOfResources
from edgeprune.metrics._memory import backward_bytes
from edgeprune.metrics._weights import offloaded

SOURCE = "Shortened LLaMA, Kim et al. 2024, arXiv:2402.02834, section 3.1"


def rate(model: Any, windows: list[list[int]], work: Any) -> list[float]:
    """Takes four bytes per weight of the blocks for the gradients; the model comes back as it was.

    Processes share the windows and add up their gradients. Raises OutOfResources where weights, gradients and what a
    window's pass keeps for them don't fit in memory together.
    """
    weights = sum(p.nbytes for p in model.parameters()) + 4 * sum(p.numel() for p in model.model.layers.parameters())
    n_bytes = weights + backward_bytes(model, max(map(len, windows)))
    if offloaded(model) or n_bytes > work.max_bytes:
        raise OutOfResources(
            f"taylor keeps all weights, their gradients and one pass in memory, {n_bytes / 1e6:.0f} MB, and "
            f"{work.max_bytes / 1e6:.0f} MB is the limit; raise --max-memory or take another metric"
        )
    return work.once(lambda: _rate(model, windows, work))


def _rate(model: Any, windows: list[list[int]], work: Any) -> list[float]:
    import torch
    from torch.nn.functional import cross_entropy

    blocks = [[p for p in layer.parameters() if p.ndim == 2] for layer in model.model.layers]
    frozen = [w for block in blocks for w in block if not w.requires_grad]
    gradient = {w: torch.zeros_like(w, dtype=torch.float32) for block in blocks for w in block}

    def accumulate(w: Any) -> None:
        """Into float32, whatever the weights are; called as soon as one gradient is there, so that it can go."""
        gradient[w] += w.grad
        w.grad = None

    for w in frozen:
        w.requires_grad_(True)
    handles = [w.register_post_accumulate_grad_hook(accumulate) for w in gradient]
    try:
        with torch.enable_grad():
            for done, window in enumerate(windows[work.rank :: work.world], 1):
                tokens = torch.tensor([window], device=model.device)
                logits = model(input_ids=tokens, use_cache=False).logits[0]
                cross_entropy(logits[:-1].float(), tokens[0, 1:].to(logits.device)).backward()
                work.progress(min(done * work.world, len(windows)), len(windows))
    finally:
        for handle in handles:
            handle.remove()
        for w in frozen:
            w.requires_grad_(False)
    for g in gradient.values():
        work.add_up(g)
    return [sum(_product(w.detach(), gradient[w]) for w in block) for block in blocks]


def _product(w: Any, g: Any) -> float:
    import torch

    return (w.float() * g).abs().sum(dtype=torch.float64).item()
