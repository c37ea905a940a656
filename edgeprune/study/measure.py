"""Timings of the study's models: those to be compared open side by side, their repetitions in turn, forwards and backwards.

Files are made when their turn comes and deleted once measured. Every answer is a line of JSON, written as it comes; the same
command goes on after the last round that is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from typing import Protocol as Interface

from edgeprune import _host_runs
from edgeprune._child import Child
from edgeprune.errors import EdgepruneError
from edgeprune.files import tree_bytes
from edgeprune.study import make
from edgeprune.study.design import Design, Task, file_bytes
from edgeprune.work import Log

Progress = Callable[[str, int, int], None]
PROCESS_BYTES = 150_000_000  # an interpreter with the bindings, and the buffers of a small model


class Protocol(NamedTuple):
    """How everything is timed."""

    contexts: tuple[int, ...] = (0, 2048)  # tokens in the cache while decoding
    n_prompt: int = 256
    n_gen: int = 24
    repetitions: int = 5
    threads: tuple[int, ...] = (1,)


class Limits(NamedTuple):
    disk_bytes: int = 4_000_000_000  # of files that are there at a time
    memory_bytes: int = 6_000_000_000  # of models that are open at a time


class Other(Interface):
    """What else is done with files while they are there; it keeps its own answers."""

    def left(self, of: Sequence[Task]) -> Sequence[Any]:
        """What is not done yet of these."""

    def __call__(self, made: Sequence[tuple[Task, Path]], work: Path) -> None:
        """Do what is left of these files, with a folder for one's own."""


class Sample(NamedTuple):
    """One repetition of one model in one state."""

    variant: str
    runtime: str
    quant: str
    threads: int
    what: str  # "decode", "prefill" or "memory"
    context: int  # tokens before; of a prefill: of the prompt
    repetition: int
    group: int  # models of one group were open together
    ns: tuple[int, ...]  # of each token, or of the prompt
    backend: str = ""
    build: str = ""
    file_bytes: int = 0
    memory_bytes: int = 0


class Group(NamedTuple):
    """Tasks measured together: depth variants, each with those to be compared with it."""

    tasks: tuple[Task, ...]
    threads: int


def groups(d: Design, p: Protocol, limits: Limits) -> list[Group]:
    """Per quantisation, or where the limits ask for more of them per ratio too; a width is with the depth of its ratio."""
    out: list[Group] = []
    for threads in p.threads:
        for runtime, quant in dict.fromkeys((t.runtime, t.quant) for t in d.tasks):
            mine = [t for t in d.tasks if (t.runtime, t.quant) == (runtime, quant)]
            parts: list[list[Task]] = []
            for i, depth in enumerate(t for t in mine if t.variant.kind == "depth"):
                others = [t for t in mine if t.variant.kind == "width" and t.variant.ratio == depth.variant.ratio]
                others = [mine[0], *others] if i == 0 else others
                parts += [[depth, *part] for part in _parts(depth, others, limits)]
            out += [Group(tuple(tasks), threads) for tasks in _joined(parts, limits)]
    return out


def _joined(parts: Sequence[list[Task]], limits: Limits) -> list[list[Task]]:
    """Neighbours together where they fit; parts of one ratio never do."""
    out: list[list[Task]] = []
    for part in parts:
        if out and _fits([*out[-1], *part], limits):
            out[-1] = [*out[-1], *part]
        else:
            out.append(part)
    return out


def _parts(depth: Task, others: Sequence[Task], limits: Limits) -> list[list[Task]]:
    """`others` in lists that fit beside the depth variant, one at least in each."""
    parts: list[list[Task]] = [[]]
    for task in others:
        together = [depth, *parts[-1], task]
        if parts[-1] and not _fits(together, limits):
            parts.append([])
        parts[-1].append(task)
    return parts


def _fits(tasks: Sequence[Task], limits: Limits) -> bool:
    sizes = [task_bytes(t) for t in tasks]
    return sum(sizes) <= limits.disk_bytes and sum(1.3 * n + PROCESS_BYTES for n in sizes) <= limits.memory_bytes


def task_bytes(task: Task) -> int:
    return file_bytes(task.variant, task.runtime, task.quant)


def run(
    d: Design, p: Protocol, limits: Limits, folder: Path, log: Log, *, source: make.Source, others: Sequence[Other] = (),
    progress: Progress, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Every sample, and a line for every model that could not be made or run, into the log; `others` get every file while it
    is there.

    Raises OutOfResources for a full disk.
    """
    samples, failed = replay(log.answers)
    plan = groups(d, p, limits)
    total, done = sum(len(g.tasks) for g in plan), 0

    def fail(task: str, why: str) -> None:
        failed[task] = why
        log.add({"failed": task, "why": why})
        say(f"left out: {why}")

    for n, group in enumerate(plan):
        complete = {s.variant for s in samples if s.group == n and s.what == "memory"}
        tasks = [t for t in group.tasks if t.name not in failed]
        timed = complete >= {t.variant.name for t in tasks}
        if len(tasks) > 1 and not (timed and not any(other.left(tasks) for other in others)):
            keep = {t.name for t in plan[n + 1].tasks} if n + 1 < len(plan) else set()
            with make.files(source, folder, tasks, keep) as made:
                for name, why in made.failed.items():
                    fail(name, why)
                files = [(t, made.paths[t.name]) for t in tasks if t.name in made.paths]
                while len(files) > 1 and not timed:
                    log.add({"begin": n})
                    try:
                        for s in _together(files, group, p, n):
                            progress(f"{s.variant} {s.quant}: {s.what}, context {s.context}", done, total)
                            log.add(s._asdict())
                    except _Failed as e:
                        fail(e.task, str(e))
                        files = [(t, path) for t, path in files if t.name not in failed]
                    else:
                        timed = True
                for other in others:
                    other(files, folder)
        done += len(group.tasks)
    progress("measuring", total, total)


def replay(lines: Sequence[dict[str, Any]]) -> tuple[list[Sample], dict[str, str]]:
    """Samples, and task -> why it failed, of a log. A group that was begun again counts from there."""
    samples: list[Sample] = []
    failed: dict[str, str] = {}
    for line in lines:
        if "begin" in line:
            samples = [s for s in samples if s.group != line["begin"]]
        elif "failed" in line:
            failed[line["failed"]] = line["why"]
        else:
            samples.append(Sample(**{**line, "ns": tuple(line["ns"])}))
    return samples, failed


class _Failed(Exception):
    """One model of a group can't be run."""

    def __init__(self, task: str, why: EdgepruneError):
        super().__init__(f"{task}: {why}")
        self.task = task


class _Open(NamedTuple):
    task: Task
    child: Child
    facts: dict[str, Any]
    group: Group
    n: int

    def ask(self, step: str) -> dict[str, Any]:
        try:
            return self.child.ask(step)
        except EdgepruneError as e:
            raise _Failed(self.task.name, e) from None

    def sample(self, what: str, context: int, k: int, ns: Any = (), **more: Any) -> Sample:
        times = (ns,) if isinstance(ns, int) else tuple(ns)
        t = self.task
        named = (t.variant.name, t.runtime, t.quant, self.group.threads, what, context, k, self.n, times)
        return Sample(*named, **self.facts, **more)


def _together(models: Sequence[tuple[Task, Path]], group: Group, p: Protocol, n: int) -> Iterator[Sample]:
    """Prompts, then every context, each in rounds of all models. Raises _Failed."""
    with ExitStack() as stack:
        opened: list[_Open] = []
        n_ctx = max(p.n_prompt, max(p.contexts) + p.n_gen) + 2
        for task, path in models:
            child = stack.enter_context(_host_runs.opened(path, task.runtime, n_ctx, group.threads, path.name))
            model = _Open(task, child, {"file_bytes": tree_bytes(path)}, group, n)
            model.facts.update(model.ask(f"warm {p.n_prompt}"))
            opened.append(model)
        rounds = [opened[:: 1 if k % 2 == 0 else -1] for k in range(p.repetitions)]
        for k, turn in enumerate(rounds):
            for m in turn:
                yield m.sample("prefill", p.n_prompt, k, m.ask(f"prefill {p.n_prompt}")["ns"])
        for context in p.contexts:
            for m in opened:
                filled = m.ask(f"prefill {context}")["ns"]
                if context:
                    yield m.sample("prefill", context, 0, filled)
            for k, turn in enumerate(rounds):
                for m in turn:
                    yield m.sample("decode", context, k, m.ask(f"decode {p.n_gen}")["ns"])
        for m in opened:
            found = m.ask("memory")
            yield m.sample("memory", max(p.contexts), 0, memory_bytes=found["peak"] - found["before"])
