"""The same files in a real llama-bench, one after another: whether its ratios are ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgeprune import catalog, llama_bench
from edgeprune.errors import InputRejected
from edgeprune.study.design import Task
from edgeprune.study.record import Stock
from edgeprune.types import Workload
from edgeprune.work import Log

RUNTIME = "llamacpp"


class LlamaBench:
    """As edgeprune.study.judge.Judge: gets files while they are there, keeps answers in a log. One failure ends it."""

    def __init__(self, binary: Path, load: Workload, log: Log, say: Callable[[str], None]):
        self._binary, self._load, self._log, self._say = binary, load, log, say
        self._build = catalog.load("edgeprune.runtimes", RUNTIME).version()
        self._done = {(x["variant"], x["quant"]) for x in log.answers}
        self._failed = False

    def left(self, of: Sequence[Task]) -> list[Task]:
        asked = [] if self._failed else [t for t in of if t.runtime == RUNTIME]
        return [t for t in asked if (t.variant.name, t.quant) not in self._done]

    def __call__(self, made: Sequence[tuple[Task, Path]], work: Path) -> None:
        paths = {t.name: path for t, path in made}
        for t in self.left([t for t, _ in made]):
            try:
                rows = llama_bench.run(self._binary, paths[t.name], self._load, self._build)
            except InputRejected as e:
                self._failed = True
                self._say(f"no llama-bench: {e}")
                return
            rate = {bool(row["n_gen"]): row["avg_ts"] for row in rows}
            found = Stock(
                variant=t.variant.name, quant=t.quant, prefill_tok_per_s=rate[False], decode_tok_per_s=rate[True]
            )
            self._done.add((t.variant.name, t.quant))
            self._log.add(found.model_dump(mode="json"))
