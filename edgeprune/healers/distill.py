"""Distill: the pruned model learns the whole one's predictions, KL(whole ‖ pruned) on every token.

Hinton et al. 2015, arXiv:1503.02531; for pruned language models Muralidharan et al. 2024 (Minitron), arXiv:2407.14679,
section 3, which also gives hidden states and finds logits alone best unless depth is cut much. The numbers are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeprune.blocks import whole as whole_blocks
from edgeprune.errors import UsageError
from edgeprune.families import for_model_type
from edgeprune.healers._losses import distilled
from edgeprune.healers._streams import before, removed_runs, streams
from edgeprune.healers._trainee import Batch, Cut, Recipe, Trainee, as_they_are, train_these, weights_of

if TYPE_CHECKING:
    import torch

SOURCE = (
    "knowledge distillation, Hinton et al. 2015, arXiv:1503.02531; Minitron, Muralidharan et al. 2024, arXiv:2407.14679"
)
RECIPE = Recipe(rate=1e-4, last_rate=1e-5, warmup=0.05, batch_tokens=1 << 16, beta2=0.95)
# hidden: weight of ‖stream − whole's‖² / ‖whole's‖² of every token after each cut
OPTIONS: dict[str, Any] = {"weights": "all", "temperature": 1.0, "hidden": 0.0}
JUDGE = "kl"
WEIGHTS = {
    "all": lambda name, outputs: True,
    "blocks": lambda name, outputs: ".layers." in name,
    "attention": lambda name, outputs: ".self_attn." in name,
    "ffn": lambda name, outputs: ".mlp." in name,
    "outputs": lambda name, outputs: name.endswith(outputs),
}


def prepare(student: Any, whole: Any, cut: Cut, options: dict[str, Any]) -> Trainee:
    """Raises UsageError for a choice of weights that there is not."""
    import torch

    if options["weights"] not in WEIGHTS:
        raise UsageError(f"weights={options['weights']}: distill trains one of {', '.join(WEIGHTS)}")
    family = for_model_type(student.config.model_type)
    outputs = tuple(f".{path}.weight" for path in family.OUTPUTS)
    parameters = weights_of(student, cut.blocks, lambda name: WEIGHTS[options["weights"]](name, outputs))
    train_these(student, parameters)
    n = whole.config.num_hidden_layers
    points = [after for _, after in removed_runs(cut.blocks, n)] if options["hidden"] else []
    here = [before(student, cut.blocks, half) for half in points]
    there = [before(whole, whole_blocks(n), half) for half in points]

    def loss(batch: Batch, share: float) -> torch.Tensor:
        with torch.no_grad():
            wanted, target = streams(whole, there, batch.tokens, to_the_end=True)
        found, logits = streams(student, here, batch.tokens, to_the_end=True)
        off = [
            ((x.float() - y.float()).square().sum(-1) / y.float().square().sum(-1))[batch.real].sum()
            for x, y in zip(found, wanted, strict=True)
        ]
        return distilled(logits, target, batch, options["temperature"]) + options["hidden"] * sum(off)

    return Trainee(parameters, loss, as_they_are(student, parameters))
