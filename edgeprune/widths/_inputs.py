"""What goes into the output projections of the whole model: sums over tokens, no activations kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeprune import families

if TYPE_CHECKING:
    import torch


class Inputs(NamedTuple):
    """Of one projection, over n tokens, float64 (k)."""

    weight: torch.Tensor  # the projection's (d, k), as it is stored
    n: int
    total: torch.Tensor  # Σ x
    squares: torch.Tensor  # Σ x²

    @property
    def mean(self) -> torch.Tensor:
        return self.total / self.n

    @property
    def variance(self) -> torch.Tensor:
        return (self.squares / self.n - self.mean.square()).clamp(min=0)


def projections(model: Any) -> tuple[list[Any], list[Any]]:
    """The output projections of all layers' attention, and of all layers' feed-forward."""
    attention, ffn = families.for_model_type(model.config.model_type).OUTPUTS
    return [layer.get_submodule(attention) for layer in model.model.layers], [
        layer.get_submodule(ffn) for layer in model.model.layers
    ]


def gather(
    model: Any, windows: Sequence[Sequence[int]], progress: Callable[[int, int], None]
) -> tuple[list[Inputs], list[Inputs]]:
    """Of every layer's attention output and every layer's feed-forward output, over all tokens of all windows."""
    import torch

    modules = projections(model)
    sums = {m: torch.zeros(2, m.in_features, dtype=torch.float64, device=m.weight.device) for ms in modules for m in ms}

    def note(module: Any, args: tuple[Any, ...]) -> None:
        x = args[0].reshape(-1, args[0].shape[-1]).double()
        sums[module] += torch.stack([x.sum(0), x.square().sum(0)])

    run(model, windows, sums, note, progress)
    n = sum(map(len, windows))
    attention, ffn = ([Inputs(m.weight.detach(), n, *sums[m].cpu()) for m in ms] for ms in modules)
    return attention, ffn


def run(
    model: Any, windows: Sequence[Sequence[int]], modules: Any, note: Callable[[Any, tuple[Any, ...]], None],
    progress: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Run the windows through the layers; note(module, its arguments) before each call of these modules."""
    import torch

    noted = [m.register_forward_pre_hook(note) for m in modules]
    try:
        with torch.inference_mode():
            for done, window in enumerate(windows, 1):
                model.model(input_ids=torch.tensor([list(window)], device=model.device), use_cache=False)
                progress(done, len(windows))
    finally:
        for handle in noted:
            handle.remove()


def n_groups(model: Any) -> int:
    """Groups of heads that share keys and values."""
    return families.decoder(model.config.to_dict()).n_kv_heads
