"""SliceGPT: rotate the stream between the layers to its principal directions and leave out the last (Ashkboos et al. 2024,
arXiv:2401.15024), with one rotation for all layers.

The paper has a rotation Q for every layer, and a matrix QᵀQ′ on every residual connection between two, for which no stock
runtime has a place. With one Q those matrices are the identity and go. Q are the eigenvectors of Σ x̂ᵀx̂, by falling
eigenvalue, x̂ the stream as each norm of the model normalises it, without gain, so that every place counts alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeprune.widths._inputs import run

if TYPE_CHECKING:
    import torch

SOURCE = "SliceGPT, Ashkboos et al. 2024, arXiv:2401.15024, with one rotation for all layers"


def rotation(model: Any, windows: Sequence[Sequence[int]], progress: Callable[[int, int], None]) -> torch.Tensor:
    """(d, d), float64, on the CPU."""
    import torch

    d = model.config.hidden_size
    norms = [m for m in model.modules() if m.__class__.__name__.endswith("RMSNorm") and m.weight.shape == (d,)]
    found = torch.zeros(d, d, dtype=torch.float64, device=model.device)

    def note(_: Any, args: tuple[Any, ...]) -> None:
        x = args[0].reshape(-1, d).float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-12)
        found.add_(x.T @ x)

    run(model, windows, norms, note, progress)
    return torch.linalg.eigh(found.cpu()).eigenvectors.flip(1)
