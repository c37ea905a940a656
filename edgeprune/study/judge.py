"""What removal does to a real model: its files judged while they are there to be timed, on text that nothing was chosen by.

Answers are kept in a log as they come. Models with fewer blocks are also judged healed, from folders that are kept until the
study ends, since healing takes long.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
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
    healer: str | None = None  # also judge what this makes of models with fewer blocks
    heal_windows: int = heal.WINDOWS


class Judge:
    """`found` and `failed` are what there is so far; a failed one is not tried again."""

    def __init__(
        self, subject: Subject, asked: Asked, suite: Suite | None, log: Log, progress: Progress, say: Callable[[str], None]
    ):  # fmt: skip
        self._subject, self._asked, self._log, self._progress, self._say = subject, asked, log, progress, say
        self._suite = suite  # zero-shot tasks, if they are asked for
        self.found, self.failed = replay(log.answers)

    def left(self, of: Sequence[Task]) -> list[tuple[Task, bool]]:
        """(task, healed) of what is not judged yet."""
        healed = [t for t in of if self._asked.healer and t.variant.kind == "depth"]
        wanted = [*((t, False) for t in of), *((t, True) for t in healed)]
        known = {(q.variant, q.quant, q.healed) for q in self.found} | self.failed.keys()
        return [(t, h) for t, h in wanted if (t.variant.name, t.quant, h) not in known]

    def __call__(self, made: Sequence[tuple[Task, Path]], work: Path) -> None:
        """Judge all that is left of these files. What fails is told and left out."""
        paths = {t.name: path for t, path in made}
        left = self.left([t for t, _ in made])
        for start in range(0, len(left), TOGETHER):
            part = left[start : start + TOGETHER]
            with contextlib.ExitStack() as stack:
                files = {}
                for t, healed in part:
                    try:
                        path = stack.enter_context(self._healed(t, work)) if healed else paths[t.name]
                    except EdgepruneError as e:
                        self._fail(t, healed, e)
                    else:
                        files[path.name] = t, healed, path
                self._judge(files)

    def finish(self, work: Path) -> None:
        for path in work.glob("healed-*"):
            remove(path)

    def _judge(self, files: dict[str, tuple[Task, bool, Path]]) -> None:
        try:
            answers = evaluate.evaluate(
                {name: path for name, (*_, path) in files.items()}, whole=self._subject.folder,
                n_windows=self._asked.n_windows, context_tokens=self._asked.context_tokens,
                n_threads=self._asked.n_threads, avoid=self._subject.text, progress=self._progress,
            ) if files else []  # fmt: skip
        except EdgepruneError as e:
            for t, healed, _ in files.values():
                self._fail(t, healed, e)
            return
        for q in answers:
            t, healed, path = files[q.subject]
            made = Quality(
                variant=t.variant.name, quant=t.quant, method=t.variant.method or t.variant.kind, healed=healed,
                perplexity=q.perplexity, kl=q.kl, kl_stderr=q.kl_stderr, tasks=self._scores(path, q.sha256),
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

    def _fail(self, t: Task, healed: bool, e: EdgepruneError) -> None:
        key, why = (t.variant.name, t.quant, healed), f"not judged: {t.name}{', healed' if healed else ''}: {e}"
        self.failed[key] = why
        self._log.add({"failed": key, "why": why})
        self._say(why)

    @contextlib.contextmanager
    def _healed(self, t: Task, work: Path) -> Iterator[Path]:
        """The variant's file, healed, for a while."""
        folder, subject = work / f"healed-{t.variant.name}", self._subject
        if not folder.exists():
            cut = work / f"{t.variant.name}-to-heal"
            try:
                subject.write(t.variant.name, cut)
                heal.heal(
                    cut, subject.folder, subject.spec, folder, method=self._asked.healer, n_windows=self._asked.heal_windows,
                    context_tokens=512, base_model=subject.name, command="edgeprune study", progress=self._progress,
                )  # fmt: skip
            finally:
                remove(cut)
        out = work / f"{t.variant.name}-healed-{t.quant}{'.gguf' if formats()[t.runtime] == 'gguf' else ''}"
        try:
            export(folder, formats()[t.runtime], t.quant, out, verify=False)
            yield out
        finally:
            remove(out)


def replay(lines: Sequence[dict]) -> tuple[list[Quality], dict[tuple[str, str, bool], str]]:
    """Qualities, and (variant, quantisation, healed) -> why there is none, of a log."""
    failed = {tuple(x["failed"]): x["why"] for x in lines if "failed" in x}
    return [Quality.model_validate(x) for x in lines if "failed" not in x], failed
