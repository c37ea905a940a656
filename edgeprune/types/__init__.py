"""The records that flow between verbs, and their JSON. Imports nothing of ours.

Frozen; units in field names (`_bytes`, `_tokens`, `_ns`, `_tok_per_s`); unknown is None, never 0.
Predicted and measured numbers never share a field.
"""

from __future__ import annotations

from edgeprune.types._device import Calibration, DeviceProfile, Figure, PowerMode
from edgeprune.types._model import Block, Blocks, BlockSpec, ModelSpec, PathStep, Scores, SubLayerSpec, Text
from edgeprune.types._plan import Alternative, Budget, Plan, Prediction
from edgeprune.types._record import SCHEMA_VERSION, Record, six
from edgeprune.types._result import Artifact, Measurement, Quality, Workload

__all__ = [
    "SCHEMA_VERSION",
    "Record",
    "Block",
    "Blocks",
    "SubLayerSpec",
    "BlockSpec",
    "ModelSpec",
    "Text",
    "PathStep",
    "Scores",
    "Figure",
    "PowerMode",
    "Calibration",
    "DeviceProfile",
    "Budget",
    "Prediction",
    "Alternative",
    "Plan",
    "Artifact",
    "Workload",
    "Measurement",
    "Quality",
    "six",
]
