"""LLM-Streamline: each removed run replaced by one trained network.

The network is what the run began with: its first feed-forward with norm and residual ("mlp", a block without attention), or
its first two halves, a decoder block ("block"). So it takes its place in the block list under its own name. It learns to
give what the whole run gave: mean squared error between the student's stream after it and the whole model's after the run;
then, for the last `lm` of all steps, the language-model loss. All else is frozen. Of several runs each has its error.

Chen et al. 2024, arXiv:2403.19135. Theirs: one run, AdamW from 2e-4 to 5e-5, weight decay 1e-3, clip 5, warm-up 1 %,
128 sequences of 2048 tokens a step; their MLP has no gate and no residual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeprune.blocks import from_sublayers, kept_sublayers, whole
from edgeprune.errors import UsageError
from edgeprune.families import for_model_type
from edgeprune.healers._losses import language, logits_of
from edgeprune.healers._streams import before, removed_runs, streams
from edgeprune.healers._trainee import Batch, Cut, Recipe, Trainee, as_they_are, place_of, train_these, weights_of
from edgeprune.types import Blocks

if TYPE_CHECKING:
    import torch

SOURCE = "LLM-Streamline, Chen et al. 2024, arXiv:2403.19135"
RECIPE = Recipe(
    rate=2e-4, last_rate=5e-5, warmup=0.01, batch_tokens=128 * 2048, weight_decay=1e-3, clip=5.0, beta2=0.95
)
OPTIONS: dict[str, Any] = {"replace": "mlp", "lm": 0.0}
JUDGE = "kl"


def given_back(blocks: Blocks, n_blocks: int, options: dict[str, Any]) -> Blocks:
    """With what replaces each removed run that is longer than that. Raises UsageError where there is none."""
    if options["replace"] not in ("mlp", "block"):
        raise UsageError(f"replace={options['replace']}: streamline replaces a removed run by mlp or block")
    more = set(kept_sublayers(blocks))
    for run, _ in removed_runs(blocks, n_blocks):
        first = [half for half in run if half[0] == "F"][:1] if options["replace"] == "mlp" else run[:2]
        more.update(first if len(run) > len(first) else ())
    found = from_sublayers([half for half in kept_sublayers(whole(n_blocks)) if half in more])
    if found == blocks:
        raise UsageError(
            f"no run of removed sub-layers is longer than the {options['replace']} that would replace it; heal by another method"
        )
    return found


def prepare(student: Any, whole_model: Any, cut: Cut, options: dict[str, Any]) -> Trainee:
    import torch
    from torch.nn.functional import mse_loss

    new = set(kept_sublayers(cut.blocks)) - set(kept_sublayers(cut.before))
    family, n = for_model_type(student.config.model_type), whole_model.config.num_hidden_layers
    prefixes = tuple(
        family.LAYER.format(i=place_of(half, cut.blocks)) + path + "."
        for half in new
        for path in (family.ATTN if half[0] == "A" else family.FFN)
    )
    parameters = weights_of(student, cut.blocks, lambda name: name.startswith(prefixes))
    train_these(student, parameters)
    ends = [after for run, after in removed_runs(cut.before, n) if new & set(run)]
    here = [before(student, cut.blocks, half) for half in ends]
    there = [before(whole_model, whole(n), half) for half in ends]

    def loss(batch: Batch, share: float) -> torch.Tensor:
        if share >= 1 - options["lm"]:
            return language(logits_of(student, batch), batch)
        with torch.no_grad():
            wanted, _ = streams(whole_model, there, batch.tokens)
        found, _ = streams(student, here, batch.tokens)
        return sum(
            mse_loss(x[batch.real].float(), y[batch.real].float(), reduction="sum") / x.shape[-1]
            for x, y in zip(found, wanted, strict=True)
        )

    return Trainee(parameters, loss, as_they_are(student, parameters))
