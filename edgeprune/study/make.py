"""The files of a study: generated at their true shape with random weights, or exported from folders that were really pruned.

At most one group of them is there at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from edgeprune import _generated as generated
from edgeprune.errors import EdgepruneError, InputRejected, OutOfResources
from edgeprune.export import export, formats
from edgeprune.files import need_space, remove, staging
from edgeprune.study.design import Task

Source = Callable[[Task, Path], None]  # writes the task's artifact under a path


class Made(NamedTuple):
    paths: dict[str, Path]  # task -> its file or folder
    failed: dict[str, str]  # task -> why there is none


@contextmanager
def files(source: Source, folder: Path, tasks: Sequence[Task], keep: set[str]) -> Iterator[Made]:
    """The artifacts of these tasks, made where they are not there; all but those of `keep` are deleted afterwards.

    What can't be made is told in `failed`; a full disk raises OutOfResources.
    """
    made = Made({}, {})
    try:
        for task in tasks:
            out = folder / f"{task.variant.name}-{task.quant}{'.gguf' if formats()[task.runtime] == 'gguf' else ''}"
            made.paths[task.name] = out
            if out.exists():
                continue
            try:
                source(task, out)
            except OutOfResources:
                raise
            except EdgepruneError as e:
                made.failed[task.name] = f"{task.name}: {e}".replace(f"{folder}/", "")
                del made.paths[task.name]
        yield made
    finally:
        for name, path in made.paths.items():
            if name not in keep:
                remove(path)


def generated_source(disk_bytes: int) -> Source:
    """Random weights. ONNX is exported from a float32 folder, which has to fit in `disk_bytes` for a while."""

    def make(task: Task, out: Path) -> None:
        g = task.variant.shape
        if formats()[task.runtime] == "gguf":
            need_space(out.parent, task.variant.params * 2)
            with staging(out, flush=False) as partial:
                generated.make_gguf(g, task.quant, partial, mixed=True)
            return
        n_bytes = 4 * task.variant.params
        if n_bytes > disk_bytes:
            raise InputRejected(
                f"an ONNX folder is made from float32 weights of {n_bytes / 1e9:.1f} GB, {disk_bytes / 1e9:.1f} GB may be "
                "used; raise --max-disk"
            )
        need_space(out.parent, n_bytes)
        folder = out.with_name(out.name + "-float32")
        try:
            generated.make_folder(g, folder)
            export(folder, formats()[task.runtime], task.quant, out, verify=False)
        finally:
            remove(folder)

    return make
