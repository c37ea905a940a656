"""LoRA: a low-rank change of every projection, trained with the language-model loss and merged.

ΔW = (alpha / rank) · B A, Hu et al. 2021, arXiv:2106.09685, through peft. The recipe is Shortened LLaMA's, Kim et al. 2024,
arXiv:2402.02834, appendix: all projections, rank 8, alpha 16, dropout 0.05, AdamW at 1e-4, 64 sequences of 256 tokens a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from edgeprune.healers._losses import language, logits_of
from edgeprune.healers._trainee import Cut, Recipe, Trainee, train_these, weights_of

if TYPE_CHECKING:
    import torch

SOURCE = "LoRA, Hu et al. 2021, arXiv:2106.09685; recipe of Shortened LLaMA, Kim et al. 2024, arXiv:2402.02834"
RECIPE = Recipe(rate=1e-4, last_rate=1e-5, warmup=0.05, batch_tokens=64 * 256)
OPTIONS: dict[str, Any] = {"rank": 8, "alpha": 16.0, "dropout": 0.05}
JUDGE = "loss"
REQUIRES = "peft"


def prepare(student: Any, whole: Any, cut: Cut, options: dict[str, Any]) -> Trainee:
    import peft

    matrices = weights_of(student, cut.blocks, lambda name: ".layers." in name)
    names = [name.removesuffix(".weight") for name, p in matrices.items() if p.ndim == 2]
    config = peft.LoraConfig(
        r=options["rank"],
        lora_alpha=options["alpha"],
        lora_dropout=options["dropout"],
        target_modules=names,
        bias="none",
    )
    peft.inject_adapter_in_model(config, student)
    student.eval()  # adapters come with their dropout on
    parameters = {name: p for name, p in student.named_parameters() if ".lora_" in name}
    train_these(student, parameters)

    def merged(old: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        for name in names:
            delta = student.get_submodule(name).get_delta_weight("default").detach()
            yield f"{name}.weight", old(f"{name}.weight") + delta.float().cpu()

    return Trainee(parameters, lambda batch, share: language(logits_of(student, batch), batch), merged)
