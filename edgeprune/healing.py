"""What healing yields: what was tried on which text, what it won back, and what was kept of it."""

from __future__ import annotations

from typing import Literal

from edgeprune.types import SCHEMA_VERSION, Record, Text


class Won(Record):
    """One kind of text, measured on windows held aside. KL(whole ‖ it) in nats per token."""

    text: str
    windows: int
    perplexity_whole: float
    perplexity_cut: float
    perplexity_healed: float
    kl_cut: float
    kl_healed: float


class Trial(Record):
    """A scope that was tried, and KL of each kind of text with it."""

    scope: str
    kl: tuple[float, ...]


class Healed(Record):
    """A projection that was changed, named as in the whole model."""

    sublayer: str  # "F11": the feed-forward of layer 11, "A3" the attention of layer 3
    strength: float | None  # of the ridge, relative to the mean of the diagonal
    left_out: float | None  # of the squared error, predicted on kinds of text left out; 1 is none of it gone


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
    changed: tuple[Healed, ...]
    seconds: float
    versions: dict[str, str]
