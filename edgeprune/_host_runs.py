"""Timed runs of many models in turn, for a fit: every model in a fresh process, opened once, its repetitions interleaved.

One pass empties the cache, reads a prompt (timed as a whole) and generates after it (timed token by token), so a long
prompt gives the prefill and the decode sample of its depth at once. Tokens are random, as llama-bench's.
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
        for job in jobs:
            request = job._asdict() | {"path": str(job.path), "n_threads": n_threads}
            child = Child("edgeprune._host_runs", request, job.runtime, f"running {job.name}")
            children.append(stack.enter_context(child))
            children[-1].ask("warm up")
            done += 1
            progress("opening and warming up", done, total)
        found = [Runs(job.name, "", "", [[] for _ in job.passes], [[] for _ in job.passes], {}) for job in jobs]
        for k in range(repetitions):
            turn = range(len(jobs))
            for i in turn if k % 2 == 0 else reversed(turn):
                found[i] = _with(found[i], children[i].ask("repeat"))
                done += 1
                progress("measuring, in turns", done, total)
            after_round(found)
        return found


def _with(runs: Runs, answer: dict[str, Any]) -> Runs:
    """One repetition more."""
    return runs._replace(
        backend=answer["backend"],
        build=answer["build"],
        prefill_ns=[[*a, b] for a, b in zip(runs.prefill_ns, answer["prefill_ns"], strict=True)],
        token_ns=[[*a, b] for a, b in zip(runs.token_ns, answer["token_ns"], strict=True)],
        memory=answer["memory"],
    )


def _timed(session: Any, prompt: int, gen: int, rng: Any) -> tuple[int, list[int]]:
    """ns of the prompt, and of each token after it."""
    ids = rng.integers(0, session.n_vocab, prompt + gen).tolist()
    session.reset()
    start = time.perf_counter_ns()
    session.prefill(ids[:prompt])
    return time.perf_counter_ns() - start, decode_ns(session, ids[prompt:])


def _work(request: dict[str, Any], steps: Iterator[str], answer: Answer) -> None:
    import numpy as np

    module = catalog.load("edgeprune.runtimes", request["runtime"])
    build = module.version()
    rng = np.random.default_rng(0)
    rng.integers(0, 2, 2)  # loaded before the baseline: it is ours, not the model's
    before = memory_now()["rss"]
    passes = request["passes"]
    n_ctx, longest = max(p + g for p, g in passes), max(p for p, _ in passes)
    session = module.open_session(Path(request["path"]), n_ctx=n_ctx, n_threads=request["n_threads"])
    loaded = memory_now()["rss"]
    for step in steps:
        if step == "warm up":
            _timed(session, longest, 2, rng)
            answer()
            continue
        prefill, tokens = zip(*(_timed(session, p, g, rng) for p, g in passes), strict=True)
        memory = memory_now() | {"before": before, "loaded": loaded}
        answer(backend=session.backend, build=build, prefill_ns=prefill, token_ns=tokens, memory=memory)


if __name__ == "__main__":
    serve(_work)
