"""A run folder's records, read and checked one by one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from edgeprune.errors import InputRejected
from edgeprune.evaluation import Evaluation
from edgeprune.healing import Healing
from edgeprune.types import Artifact, DeviceProfile, Measurement, ModelSpec, Plan, Prediction, Record, Scores

MAX_BYTES = 256 << 20  # raw samples of a long study stay far below
RECORDS = ("plan", "device", "model", "scores", "artifacts", "measurements", "quality", "predictions", "run")


class Run(Record):
    """How the folder was made; fields we don't know are left alone. `created` is a date as its maker wrote it."""

    model_config = ConfigDict(extra="ignore")

    command: str = ""
    environment: dict[str, Any] = {}
    created: str = ""
    chat_templates: dict[str, str] = {}  # folder -> SHA-256


@dataclass(frozen=True)
class Inputs:
    plan: Plan
    device: DeviceProfile | None
    model: ModelSpec | None
    scores: Scores | None
    healing: Healing | None
    artifacts: tuple[Artifact, ...]
    measurements: tuple[Measurement, ...]
    qualities: tuple[Evaluation, ...]
    predictions: dict[str, Prediction]
    run: Run


def read(folder: Path) -> Inputs:
    """Raises InputRejected when plan.json is missing, or when any record is there and malformed."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputRejected(f"a report was asked for {folder}, which is not a folder; name the folder of a run")
    if not (folder / "plan.json").is_file():
        raise InputRejected(
            f"a report was asked for {folder}, which holds no plan.json; name the folder of a run, "
            "or put a plan there with `edgeprune plan … -o plan.json`"
        )
    return Inputs(
        plan=_record(folder, "plan", Plan),
        device=_record(folder, "device", DeviceProfile),
        model=_record(folder, "model", ModelSpec),
        scores=_record(folder, "scores", Scores),
        healing=_record(folder / "healed", "healing", Healing),
        artifacts=_record(folder, "artifacts", tuple[Artifact, ...]) or (),
        measurements=_record(folder, "measurements", tuple[Measurement, ...]) or (),
        qualities=_record(folder, "quality", tuple[Evaluation, ...]) or (),
        predictions=_record(folder, "predictions", dict[str, Prediction]) or {},
        run=_record(folder, "run", Run) or Run(),
    )


def _record(folder: Path, name: str, kind: Any) -> Any:
    """One file as `kind`, or None when it is not there."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputRejected(f"{path} is larger than {MAX_BYTES >> 20} MiB; it is no record of edgeprune")
        raw = path.read_bytes()
    except OSError as e:
        raise InputRejected(f"{path} cannot be read ({e.strerror}); make it readable or remove it") from e
    try:
        return TypeAdapter(kind).validate_json(raw)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(p) for p in first["loc"]) or "document"
        raise InputRejected(f"{path}: field {where}: {first['msg']}; make the file again or remove it") from None
