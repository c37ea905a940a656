"""What removal does to a real model: its files judged while they are there to be timed, on text that nothing was chosen by.

Answers are kept in a log as they come. Models with fewer blocks and thinner ones are also judged healed: each is healed once,
since that takes long, and judged then in every quantisation that the study has of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from edgeprune import evaluate, heal
from edgeprune.behaviour import tasks
from edgeprune.behaviour.tasks import Suite
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation import TaskScore
from edgeprune.export import export, formats
from edgeprune.files import remove
from edgeprune.study.design import Task
from edgeprune.study.real import Subject
from edgeprune.study.record import Quality
from edgeprune.work import Log

Progress = Callable[[str, int, int], None]
TOGETHER = 6  # files judged in one pass, beside the whole model


class Asked(NamedTuple):
    """How files are judged."""

    n_windows: int
    context_tokens: int
    n_threads: int
    healer: str | None = None  # also judge what this makes of all but the whole model
    heal_windows: int = heal.WINDOWS


class Judge:
    """`found` and `failed` are what there is so far; a failed one is not tried again."""

    def __init__(
        self, subject: Subject, study: Sequence[Task], asked: Asked, suite: Suite | None, log: Log, progress: Progress,
        say: Callable[[str], None],
    ):  # fmt: skip
        self._subject, self._asked, self._log, self._progress, self._say = subject, asked, log, progress, say
        self._study = study  # all its tasks
        self._suite = suite  # zero-shot tasks, if they are asked for
        self.found, self.failed = replay(log.answers)

    def left(self, of: Sequence[Task]) -> list[tuple[Task, bool]]:
        """(task, healed) of what is not judged yet."""
        healed = [t for t in of if self._asked.healer and t.variant.kind != "whole"]
        wanted = [*((t, False) for t in of), *((t, True) for t in healed)]
        known = {(q.variant, q.quant, q.healed) for q in self.found} | self.failed.keys()
        return [(t, h) for t, h in wanted if (t.variant.name, t.quant, h) not in known]

    def __call__(self, made: Sequence[tuple[Task, Path]], work: Path) -> None:
        """Judge all that is left of these files, and of their variants healed. What fails is told and left out."""
        left = self.left([t for t, _ in made])
        plain = {t.name for t, healed in left if not healed}
        self._judge({path: t for t, path in made if t.name in plain}, healed=False)
        for variant in dict.fromkeys(t.variant.name for t, healed in left if healed):
            every = [t for t, healed in self.left(self._study) if healed and t.variant.name == variant]
            with self._healed(every, work / f"{variant}-healed") as files:
                self._judge(files, healed=True)

    def _judge(self, files: Mapping[Path, Task], healed: bool) -> None:
        by_name = {path.name: path for path in files}
        for start in range(0, len(files), TOGETHER):
            part = dict(list(by_name.items())[start : start + TOGETHER])
            try:
                answers = evaluate.evaluate(
                    part, whole=self._subject.folder, files=self._subject.judging, n_windows=self._asked.n_windows,
                    context_tokens=self._asked.context_tokens, n_threads=self._asked.n_threads, avoid=self._subject.text,
                    progress=self._progress,
                )  # fmt: skip
            except EdgepruneError as e:
                self._fail([files[path] for path in part.values()], healed, e)
                continue
            for q in answers:
                path = by_name[q.subject]
                t = files[path]
                made = Quality(
                    variant=t.variant.name, quant=t.quant, method=t.variant.method or t.variant.kind, healed=healed,
                    perplexity=q.perplexity, kl=q.kl, kl_stderr=q.kl_stderr, text=q.text.name,
                    tasks=self._scores(path, q.sha256),
                )  # fmt: skip
                self.found.append(made)
                self._log.add(made.model_dump(mode="json"))

    def _scores(self, path: Path, sha256: str) -> tuple[TaskScore, ...]:
        if not self._suite:
            return ()
        try:
            return tasks.score(self._suite, path.name, path, sha256, self._progress).scores
        except EdgepruneError as e:
            self._say(f"no tasks of {path.name}: {e}")
            return ()

    def _fail(self, these: Sequence[Task], healed: bool, e: EdgepruneError) -> None:
        for t in these:
            key, why = (t.variant.name, t.quant, healed), f"not judged: {t.name}{', healed' if healed else ''}: {e}"
            self.failed[key] = why
            self._log.add({"failed": key, "why": why})
            self._say(why)

    @contextlib.contextmanager
    def _healed(self, these: Sequence[Task], place: Path) -> Iterator[Mapping[Path, Task]]:
        """Files of one variant, healed, in a folder for a while. What fails is told and left out."""
        subject, cut, folder = self._subject, place / "cut", place / "healed"
        files: dict[Path, Task] = {}
        try:
            remove(place)  # of a run that was killed
            place.mkdir()
            subject.write(these[0].variant.name, cut)
            heal.heal(
                cut, subject.folder, subject.spec, folder, method=self._asked.healer, files=subject.calibration,
                avoid=subject.judging, n_windows=self._asked.heal_windows, context_tokens=512,
                base_model=subject.name, command="edgeprune study", progress=self._progress,
            )  # fmt: skip
            remove(cut)
            for t in these:
                self._export(t, folder, place, files)
        except EdgepruneError as e:
            self._fail(these, True, e)
        try:
            yield files
        finally:
            remove(place)

    def _export(self, t: Task, folder: Path, place: Path, files: dict[Path, Task]) -> None:
        out = place / f"{t.variant.name}-healed-{t.quant}{'.gguf' if formats()[t.runtime] == 'gguf' else ''}"
        try:
            export(folder, formats()[t.runtime], t.quant, out, verify=False)
            files[out] = t
        except EdgepruneError as e:
            self._fail([t], True, e)


def replay(lines: Sequence[dict]) -> tuple[list[Quality], dict[tuple[str, str, bool], str]]:
    """Qualities, and (variant, quantisation, healed) -> why there is none, of a log."""
    failed = {tuple(x["failed"]): x["why"] for x in lines if "failed" in x}
    return [Quality.model_validate(x) for x in lines if "failed" not in x], failed
