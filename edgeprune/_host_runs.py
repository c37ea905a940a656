"""Models open side by side for timed runs in turn: each in a fresh process, opened once, doing one thing per line it is asked.

    warm N      backend and build; after N tokens read and two generated, untimed
    prefill N   ns that an emptied cache takes to read N tokens
    decode N    ns of each of N tokens generated after what is cached, which is then gone back to
    memory      bytes: before the model, with it loaded, now, and the most

Tokens are random, as llama-bench's. `measure` runs prompts with generation after them for a fit, so that a long prompt gives
the prefill and the decode sample of its depth at once; a model's turn begins with what is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune import catalog
from edgeprune._child import Answer, Child, serve
from edgeprune.bench import decode_ns, memory_now

Progress = Callable[[str, int, int], None]


class Pass(NamedTuple):
    """Read `prompt` tokens, then generate `gen`."""

    prompt: int
    gen: int


class Job(NamedTuple):
    name: str
    path: Path
    runtime: str
    passes: tuple[Pass, ...]

    @property
    def context_tokens(self) -> int:
        return max(p.prompt + p.gen for p in self.passes)


class Runs(NamedTuple):
    """Raw samples of one job: per pass and repetition, ns of the prompt and of every generated token; memory in bytes."""

    name: str
    backend: str
    build: str
    prefill_ns: list[list[int]]
    token_ns: list[list[list[int]]]
    memory: dict[str, int]


def undisturbed(samples: Sequence[float]) -> float:
    """The lower quartile. Whatever else runs on a machine only adds time, to some samples more than to others; on an idle
    one the quartile is the median within a percent or two."""
    return sorted(samples)[(len(samples) - 1) // 4]


def measure(
    jobs: Sequence[Job], repetitions: int, n_threads: int, progress: Progress,
    after_round: Callable[[list[Runs]], None] = lambda found: None,
) -> list[Runs]:  # fmt: skip
    """All jobs, forwards and backwards in turn; `after_round` gets what there is after each. Raises as bench.measure."""
    done, total = 0, len(jobs) * (repetitions + 1)
    with ExitStack() as stack:
        children = []
        found = []
        for job in jobs:
            child = stack.enter_context(opened(job.path, job.runtime, job.context_tokens, n_threads, job.name))
            warm = child.ask(f"warm {max(p.prompt for p in job.passes)}")
            found.append(
                Runs(job.name, warm["backend"], warm["build"], [[] for _ in job.passes], [[] for _ in job.passes], {})
            )
            children.append(child)
            done += 1
            progress("opening and warming up", done, total)
        for k in range(repetitions):
            turn = range(len(jobs))
            for i in turn if k % 2 == 0 else reversed(turn):
                found[i] = _repeated(found[i], jobs[i].passes, children[i])
                done += 1
                progress("measuring, in turns", done, total)
            after_round(found)
        return found


def opened(path: Path, runtime: str, n_ctx: int, n_threads: int, name: str) -> Child:
    """A model in a process of its own, to be entered and asked."""
    request = {"path": str(path), "runtime": runtime, "n_ctx": n_ctx, "n_threads": n_threads}
    return Child("edgeprune._host_runs", request, runtime, f"running {name}")


def _repeated(runs: Runs, passes: Sequence[Pass], child: Child) -> Runs:
    """One repetition more, behind something untimed: what ran before has left its own data in the caches, and threads that
    still wait for work."""
    child.ask(f"warm {passes[0].prompt}")
    prefill, tokens = [], []
    for i, p in enumerate(passes):
        prefill.append([*runs.prefill_ns[i], child.ask(f"prefill {p.prompt}")["ns"]])
        tokens.append([*runs.token_ns[i], child.ask(f"decode {p.gen}")["ns"]])
    return runs._replace(prefill_ns=prefill, token_ns=tokens, memory=child.ask("memory"))


def _work(request: dict[str, Any], steps: Iterator[str], answer: Answer) -> None:
    import numpy as np

    module = catalog.load("edgeprune.runtimes", request["runtime"])
    rng = np.random.default_rng(0)
    rng.integers(0, 2, 2)  # loaded before the baseline: it is ours, not the model's
    build, before = module.version(), memory_now()["rss"]
    session = module.open_session(Path(request["path"]), n_ctx=request["n_ctx"], n_threads=request["n_threads"])
    loaded, n_cached = memory_now()["rss"], 0

    def tokens(n: int) -> list[int]:
        return rng.integers(0, session.n_vocab, n).tolist()

    def prefill(n: int) -> int:
        nonlocal n_cached
        ids, n_cached = tokens(n), n
        session.reset()
        start = time.perf_counter_ns()
        if n:
            session.prefill(ids)
        return time.perf_counter_ns() - start

    def decode(n: int) -> list[int]:
        found = decode_ns(session, tokens(n))
        if not session.rewind(n_cached):
            prefill(n_cached)
        return found

    for step in steps:
        what, _, n = step.partition(" ")
        if what == "warm":
            prefill(int(n))
            decode(2)
            answer(backend=session.backend, build=build)
        elif what == "memory":
            answer(**memory_now(), before=before, loaded=loaded)
        else:
            answer(ns=prefill(int(n)) if what == "prefill" else decode(int(n)))


if __name__ == "__main__":
    serve(_work)
