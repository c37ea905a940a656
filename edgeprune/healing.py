"""What healing yields: what was tried on which text, what it won back, and what was kept of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from edgeprune.types import SCHEMA_VERSION, Record, Text, six


class Won(Record):
    """One kind of text, measured on windows held aside. KL(whole ‖ it) in nats per token."""

    text: str
    windows: int
    perplexity_whole: float
    perplexity_cut: float  # of the folder that was healed: a cut, or one healed before
    perplexity_healed: float
    kl_cut: float
    kl_healed: float


def won(text: str, windows: int, loss: Sequence[float], kl: Sequence[float]) -> Won:
    """loss: nats per token of the whole model, before and after healing; kl: before and after."""
    whole, cut, healed = (six(math.exp(x)) for x in loss)
    return Won(
        text=text, windows=windows, perplexity_whole=whole, perplexity_cut=cut, perplexity_healed=healed, kl_cut=six(kl[0]),
        kl_healed=six(kl[1]),
    )  # fmt: skip


class Trial(Record):
    """A scope that was tried, and KL of each kind of text with it."""

    scope: str
    kl: tuple[float, ...]


class Look(Record):
    """What training had come to after so many tokens: KL or loss of each kind of text, nats per token."""

    tokens: int
    found: tuple[float, ...]


class Trained(Record):
    """How weights were trained, where they were."""

    options: dict[str, str | float]
    rate: float
    sequences_per_step: int
    steps: int  # that were made
    planned_steps: int
    tokens: int
    parameters: int  # numbers that were trained
    judged_by: str  # "kl" or "loss"
    looks: tuple[Look, ...]
    kept: int | None  # which look's weights; None: none was better on every kind, nothing was changed
    part: float = 1.0  # of the way from the weights before to the trained ones that was kept
    processes: int
    added: tuple[str, ...] = ()  # sub-layers given back with other weights, named as in the whole model


class Healing(Record):
    schema_version: Literal[1] = SCHEMA_VERSION
    method: str
    source: str  # the paper
    scope: str | None  # which of the trials was kept; None: none helped on every kind, nothing was changed
    text: Text
    fit_windows: int
    precision: str  # of the weights while they were fitted
    trials: tuple[Trial, ...]
    kinds: tuple[Won, ...]
    # Sub-layers of which weights changed, named as in the whole model: solved anew the output projection, trained any weight.
    changed: tuple[str, ...]  # "F11": the feed-forward of layer 11, "A3" the attention of layer 3
    seconds: float
    versions: dict[str, str]
    trained: Trained | None = None
    former: Healing | None = None  # what healed the folder before

    def steps(self) -> tuple[Healing, ...]:
        """All that healed the folder, the first first."""
        return (*(self.former.steps() if self.former else ()), self)
