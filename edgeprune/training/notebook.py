"""What a training run remembers in case it is killed, in a hidden folder beside its output."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeprune.files import disk_errors, staging, write_text
from edgeprune.work import claim

if TYPE_CHECKING:
    import torch

Judged = tuple[tuple[float, ...], ...]  # of each kind of text: numbers that should be small, the first counts
CHECKPOINT = "checkpoint.safetensors"


class Progress(NamedTuple):
    """Where a run stands; with the weights and AdamW's moments all that a checkpoint holds."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    looks: tuple[tuple[int, Judged], ...] = ()  # (tokens, what was found)
    best: int | None = None  # which look no kind of text was worse at than before, and the sum least
    part: float = 1.0  # of the way to the last weights that the best look was at


class Notebook:
    """A run's checkpoint, and the question it belongs to: another question begins anew. Every process reads it, the
    first writes. `say` is told when there is something to go on from."""

    def __init__(self, folder: Path, question: Any, rank: int = 0, say: Callable[[str], None] = lambda _: None):
        self.folder, self.rank, self.say = folder, rank, say
        self.key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()

    def read(self) -> tuple[Progress, dict[str, torch.Tensor]] | None:
        from safetensors import safe_open

        path = self.folder / CHECKPOINT
        if not path.is_file():
            return None
        with safe_open(path, "pt") as f:
            about = f.metadata()
            if about["question"] != self.key:
                return None
            now = Progress(*json.loads(about["progress"]))
            self.say(f"going on where it stopped: {now.step} steps are done")
            return now._replace(looks=_tuples(now.looks)), {k: f.get_tensor(k) for k in f.keys()}

    def write(self, progress: Progress, tensors: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save_file

        if self.rank == 0:
            with staging(self.folder / CHECKPOINT, force=True) as partial:
                save_file(tensors, partial, {"question": self.key, "progress": json.dumps(progress)})

    def remembered(self, work: Callable[[], int]) -> int:
        """What `work` gave in the run's first sitting."""
        path = self.folder / "first.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        if known.get("question") == self.key:
            return known["answer"]
        answer = work()
        if self.rank == 0:
            write_text(path, json.dumps({"question": self.key, "answer": answer}), force=True)
        return answer


@contextlib.contextmanager
def kept_beside(out: Path, rank: int) -> Iterator[Path]:
    """A hidden folder beside the output, which stays when this fails and goes when the output is there.

    Raises UsageError while another run of the same output uses it.
    """
    folder = out.parent / f".{out.name}.training"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+b") as lock:
        if rank == 0:
            claim(lock, folder)
            for left in folder.glob(".*partial-*"):  # of a kill while it was written
                left.unlink()
        try:
            yield folder
        except BaseException:
            if rank == 0 and not (folder / CHECKPOINT).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)


def _tuples(x: Any) -> Any:
    return tuple(map(_tuples, x)) if isinstance(x, list) else x
