"""The other end of a measurement: one model open in a process of its own, doing one thing per line it is asked.

A context is filled once and gone back to before every repetition, so that a long one costs its prompt only once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeprune import catalog
from edgeprune._child import Answer, serve
from edgeprune.bench import decode_ns, memory_now


def _work(request: dict[str, Any], steps: Iterator[str], answer: Answer) -> None:
    import numpy as np

    module = catalog.load("edgeprune.runtimes", request["runtime"])
    rng = np.random.default_rng(0)
    rng.integers(0, 2, 2)  # loaded before the baseline: it is ours, not the model's
    build, before = module.version(), memory_now()["rss"]
    contexts, n_prompt, n_gen = request["contexts"], request["n_prompt"], request["n_gen"]
    n_ctx = max(n_prompt, max(contexts) + n_gen) + 2
    session = module.open_session(Path(request["path"]), n_ctx=n_ctx, n_threads=request["n_threads"])

    def tokens(n: int) -> list[int]:
        return rng.integers(0, session.n_vocab, n).tolist()

    def prefill(n: int) -> int:
        ids = tokens(n)
        session.reset()
        start = time.perf_counter_ns()
        if n:
            session.prefill(ids)
        return time.perf_counter_ns() - start

    for step in steps:
        what, _, n = step.partition(" ")
        if what == "prefill":
            answer(ns=prefill(n_prompt))
        elif what == "fill":
            answer(ns=prefill(int(n)))
        elif what == "decode":
            each = decode_ns(session, tokens(n_gen))
            if not session.rewind(int(n)):
                prefill(int(n))
            answer(ns=each)
        elif what == "warm":
            prefill(n_prompt)
            decode_ns(session, tokens(2))
            answer(backend=session.backend, build=build)
        else:
            answer(**memory_now(), before=before)


if __name__ == "__main__":
    serve(_work)
