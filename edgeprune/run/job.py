"""What a run was asked for, and what all its steps share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune import __version__, model
from edgeprune.behaviour.tasks import Asked
from edgeprune.calibration import DEFAULT
from edgeprune.errors import EdgepruneError, UsageError
from edgeprune.files import check_sums, sha256_tree, write_text
from edgeprune.training.pace import Budget
from edgeprune.types import ModelSpec, Record, Workload

Progress = Callable[[str, int, int], None]
DEFAULT_EXPORTS = ("gguf:Q8_0", "gguf:Q4_K_M", "onnx:int8", "onnx:int4-mixed")


class Options(NamedTuple):
    metric: str = "kl_search"
    effort: int = 1
    after_heal: str | None = None
    through: str = "auto"
    calibration: tuple[Path, ...] = ()
    texts: tuple[Path, ...] = ()
    windows: int = 8
    context: int = 512
    max_steps: int | None = None
    max_bytes: int | None = None  # of weights and activations while scoring and healing
    exports: tuple[str, ...] = DEFAULT_EXPORTS
    baseline: bool = True
    workload: Workload = Workload()
    depths: tuple[int, ...] | None = None  # of the context, at which decoding is timed too; None: its end
    mode: str | None = None
    heal: tuple[str, ...] = ()  # healers, each on what the one before it made
    heal_windows: int | None = None  # of text, of one that solves
    budget: Budget | None = None  # of each that trains
    settings: Mapping[str, str] = {}  # of each that trains
    asked: Asked = Asked()  # tasks and text


class Journal:
    """Remembers by hash what each step read and wrote."""

    def __init__(self, path: Path, say: Callable[[str], None]):
        self.path, self.say = path, say
        try:
            self.entries: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        except ValueError:
            self.entries = {}

    def step(self, name: str, inputs: Any, outputs: Sequence[Path], work: Callable[[], None]) -> None:
        """Do `work`, which must write `outputs`, unless the same inputs already gave outputs that still verify."""
        key = hashlib.sha256(json.dumps([__version__, inputs], sort_keys=True, default=str).encode()).hexdigest()
        entry = self.entries.get(name)
        if entry and entry["inputs"] == key and all(_verified(p, entry["outputs"].get(p.name)) for p in outputs):
            self.say(f"{name}: already done")
            return
        self.say(name)
        work()
        self.entries[name] = {"inputs": key, "outputs": {p.name: sha256_tree(p) for p in outputs}}
        write_text(self.path, json.dumps(self.entries, indent=1) + "\n", force=True)


def _verified(path: Path, sha: str | None) -> bool:
    if not path.exists() or sha256_tree(path) != sha:
        return False
    try:
        check_sums(path) if path.is_dir() else None
    except EdgepruneError:
        return False
    return True


class Job(NamedTuple):
    out: Path
    base: Path  # the whole model's folder
    spec: ModelSpec  # of the .gguf when `base` was made from one
    options: Options
    base_model: str  # how a card calls it
    command: str
    journal: Journal
    progress: Progress


def claim(out: Path) -> None:
    """A run folder is new, empty, or a run of ours to go on with."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "journal.json").exists())):
        raise UsageError(f"{out} exists and is not a run folder of edgeprune; choose another output")
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "journal.json").exists():
        write_text(out / "journal.json", "{}\n")


def shas(files: Sequence[Path]) -> list[str]:
    return [str(p) if p == DEFAULT else sha256_tree(model.resolve(str(p))) for p in files]


def write(path: Path, record: Record) -> None:
    write_text(path, record.to_json(), force=True)


def write_all(path: Path, records: Sequence[Record] | Mapping[str, Record]) -> None:
    """A list of records, or an object of named ones."""
    if isinstance(records, Mapping):
        found: Any = {name: r.model_dump(mode="json") for name, r in records.items()}
    else:
        found = [r.model_dump(mode="json") for r in records]
    write_text(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n", force=True)
