"""Full: continued pre-training of all weights with the language-model loss. For those with GPUs and much text.

Shortened LLaMA, Kim et al. 2024, arXiv:2402.02834, section on continued pre-training; the numbers here are ours.
"""

from __future__ import annotations

from typing import Any

from edgeprune.healers._losses import language, logits_of
from edgeprune.healers._trainee import Cut, Recipe, Trainee, as_they_are, train_these, weights_of

SOURCE = "continued pre-training, as in Shortened LLaMA, Kim et al. 2024, arXiv:2402.02834"
RECIPE = Recipe(rate=1e-4, last_rate=1e-5, warmup=0.05, batch_tokens=1 << 18, weight_decay=0.1, beta2=0.95)
OPTIONS: dict[str, Any] = {}
JUDGE = "loss"


def prepare(student: Any, whole: Any, cut: Cut, options: dict[str, Any]) -> Trainee:
    parameters = weights_of(student, cut.blocks, lambda name: True)
    train_these(student, parameters)
    return Trainee(
        parameters, lambda batch, share: language(logits_of(student, batch), batch), as_they_are(student, parameters)
    )
