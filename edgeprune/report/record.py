"""The report as a record: what was read, and the conclusions drawn from it."""

from __future__ import annotations

from typing import Literal

from edgeprune.evaluation import Evaluation
from edgeprune.healing import Healing
from edgeprune.types import (
    SCHEMA_VERSION,
    Artifact,
    DeviceProfile,
    Measurement,
    ModelSpec,
    Plan,
    Prediction,
    Record,
    Scores,
)


class BudgetLine(Record):
    line: str  # "memory", "file size", "decode speed", "time to first token", "damage", "perplexity"
    unit: str  # "bytes", "tok/s", "s", "nats", "×"
    asked: float
    predicted: float | None
    measured: float | None
    verdict: Literal["met", "missed", "not measured"]


class Report(Record):
    schema_version: Literal[1] = SCHEMA_VERSION
    title: str
    headline: str  # the verdict in one sentence
    plan: Plan
    device: DeviceProfile | None
    model: ModelSpec | None
    scores: Scores | None
    healing: Healing | None = None
    verdict: tuple[BudgetLine, ...]
    artifacts: tuple[Artifact, ...]
    measurements: tuple[Measurement, ...]
    qualities: tuple[Evaluation, ...]
    predictions: dict[str, Prediction]  # by artifact path
    not_measured: tuple[str, ...]
    risks: tuple[str, ...]
    environment: dict[str, str]
    command: str
    chat_templates: dict[str, str] = {}  # SHA-256 of each folder's chat template: "whole", "pruned", "healed"
    created: str


class Beside(Record):
    """Two or more runs, lettered A, B, … in the order their folders were named."""

    schema_version: Literal[1] = SCHEMA_VERSION
    title: str
    headline: str
    folders: tuple[str, ...]
    runs: tuple[Report, ...]
    unlike: tuple[str, ...]  # what keeps their figures from being compared
