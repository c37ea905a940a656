"""PERP: only what is cheap is trained: norms, biases, and a scale for every output of the blocks' output projections.

Zimmer et al. 2023, arXiv:2312.15230, retrain biases and norms, and find that little more is needed. The scales, which go
into the projections' rows afterwards, and the rates are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from edgeprune import families
from edgeprune.healers._losses import language, logits_of
from edgeprune.healers._trainee import Cut, Recipe, Trainee, as_they_are, train_these, weights_of

if TYPE_CHECKING:
    import torch

SOURCE = "PERP, Zimmer et al. 2023, arXiv:2312.15230"
RECIPE = Recipe(rate=2e-3, last_rate=2e-4, warmup=0.1, batch_tokens=1 << 14)
OPTIONS: dict[str, Any] = {}
JUDGE = "loss"


def prepare(student: Any, whole: Any, cut: Cut, options: dict[str, Any]) -> Trainee:
    import torch

    outputs = tuple(f".{path}.weight" for path in families.for_model_type(student.config.model_type).OUTPUTS)
    small = weights_of(student, cut.blocks, lambda name: name.endswith((".bias", "norm.weight")))
    scaled = weights_of(student, cut.blocks, lambda name: name.endswith(outputs))
    scales: dict[str, torch.nn.Parameter] = {}
    for name, weight in scaled.items():
        module = student.get_submodule(name.removesuffix(".weight"))
        module.output_scale = torch.nn.Parameter(torch.zeros(weight.shape[0]))  # beside 1, where it starts
        module.register_forward_hook(lambda m, _, y: y * (1 + m.output_scale).to(y.dtype))
        scales[name] = module.output_scale
    parameters = small | {f"{name}.scale": scale for name, scale in scales.items()}
    train_these(student, parameters)
    direct = as_they_are(student, small)

    def merged(old: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        biases = {name.removesuffix("weight") + "bias": scale for name, scale in scales.items()}
        for name, values in direct(old):
            yield name, values * (1 + biases[name].detach()) if name in biases else values
        for name, scale in scales.items():
            yield name, old(name) * (1 + scale.detach().cpu())[:, None]

    return Trainee(parameters, lambda batch, share: language(logits_of(student, batch), batch), merged)
