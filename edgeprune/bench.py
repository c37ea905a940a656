"""The one timing protocol, llama-bench's, for every runtime: batch 1, no sampling, each artifact in a fresh process.

Warm-up: the whole prompt; one token. Each repetition: empty cache; the depth prefilled untimed; then timed,
prompt processing of n_prompt random tokens with one synchronisation at its end, and generation of n_gen random
tokens with one each. Source of the method: llama.cpp tools/llama-bench/llama-bench.cpp.
"""

from __future__ import annotations

import datetime
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgeprune import catalog
from edgeprune._child import Answer, Child, serve
from edgeprune.errors import InputRejected, UsageError
from edgeprune.files import sha256_tree, tree_bytes
from edgeprune.runtimes import cache_option
from edgeprune.types import Measurement, Workload

Progress = Callable[[str, int, int], None]


def runtime_for(path: Path) -> str:
    """The runtime that reads an artifact. Raises InputRejected."""
    if not Path(path).exists():
        raise InputRejected(f"{path}: no such file or folder; export one first")
    for name, module in catalog.load_all("edgeprune.runtimes").items():
        if module.reads(Path(path)):
            return name
    raise InputRejected(
        f"{path} is not something a runtime reads: a .gguf file, an ONNX folder or a transformers folder"
    )


def physical_cores() -> int:
    """llama-bench's default thread count; what a container may use at most."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def measure(artifacts: dict[str, Path], workload: Workload, *, progress: Progress) -> list[Measurement]:
    """Time artifacts (name -> path), each in a fresh process of its own.

    Repetitions are interleaved, forwards and backwards in turn, so that a machine's moods fall on all alike; when they
    do not fit in memory together, one after another. Raises InputRejected when a runtime refuses a file,
    OutOfResources when a process is killed.
    """
    together = fits_together(artifacts.values())
    groups = [list(artifacts.items())] if together else [[item] for item in artifacts.items()]
    total, done = len(artifacts) * (workload.repetitions + 1), 0
    found: dict[str, Measurement] = {}
    for group in groups:
        with ExitStack() as stack:
            workers = []
            for name, path in group:
                workers.append(stack.enter_context(_worker(name, path, workload, len(group) > 1)))
                workers[-1].ask("warm up")
                done += 1
                progress(f"measuring {name}", done, total)
            for k in range(workload.repetitions):
                for worker in workers[:: 1 if k % 2 == 0 else -1]:
                    worker.ask("repeat")
                    done += 1
                    progress("measuring, interleaved" if together else worker.doing, done, total)
            for (name, _), worker in zip(group, workers, strict=True):
                found[name] = Measurement.model_validate(worker.ask("finish")["measurement"])
    return [found[name] for name in artifacts]


def fits_together(paths: Iterable[Path]) -> bool:
    """Whether all models can be open at once in half of the memory there is: twice a file's bytes covers its buffers."""
    import psutil

    return 2 * sum(tree_bytes(p) for p in paths) < psutil.virtual_memory().available / 2


def _worker(name: str, path: Path, workload: Workload, interleaved: bool) -> Child:
    request = {"path": str(path), "name": name, "runtime": runtime_for(path), "interleaved": interleaved}
    request["workload"] = workload.model_dump()
    return Child("edgeprune.bench", request, request["runtime"], f"measuring {name}", "; ask for fewer tokens")


class Protocol:
    """The protocol's steps on an open runtime Session; samples in ns."""

    def __init__(self, session: Any, workload: Workload):
        import numpy as np

        self.session, self.workload = session, workload
        self._rng = np.random.default_rng(workload.seed)
        self.prefill: list[int] = []
        self.decode: list[int] = []
        self.single: list[int] = []

    def warm_up(self) -> None:
        """From an empty cache, as llama-bench does: the depth's own prefill comes before every timing."""
        self.session.reset()
        self.session.prefill(self._tokens(max(self.workload.n_prompt, 1)))
        self.session.reset()
        self.session.decode(self._tokens(1)[0])

    def repeat(self) -> None:
        now = time.perf_counter_ns
        if self.workload.n_prompt:
            self._at_depth()
            prompt = self._tokens(self.workload.n_prompt)
            start = now()
            self.session.prefill(prompt)
            self.prefill.append(now() - start)
        if self.workload.n_gen:
            self._at_depth()
            each = decode_ns(self.session, self._tokens(self.workload.n_gen))
            self.single += each
            self.decode.append(sum(each))

    def _at_depth(self) -> None:
        self.session.reset()
        if self.workload.n_depth:
            self.session.prefill(self._tokens(self.workload.n_depth))

    def _tokens(self, n: int) -> list[int]:
        """Random tokens, the first a BOS where the model wants one."""
        out = self._rng.integers(0, self.session.n_vocab, n).tolist()
        if out and self.session.bos_token is not None:
            out[0] = self.session.bos_token
        return out


def decode_ns(session: Any, tokens: Iterable[int]) -> list[int]:
    """ns of each token, from the end of the one before it."""
    now = time.perf_counter_ns
    found, previous = [], now()
    for token in tokens:
        session.decode(token)
        done = now()
        found.append(done - previous)
        previous = done
    return found


def context_tokens(workload: Workload) -> int:
    """Cache to reserve. Raises UsageError when the tests need more than was asked for."""
    need = workload.n_depth + max(workload.n_prompt, workload.n_gen, 1)
    if workload.context_tokens is not None and workload.context_tokens < need:
        raise UsageError(
            f"the tests need {need} tokens of context, {workload.context_tokens} are reserved; ask for fewer tokens"
        )
    return workload.context_tokens or need


def memory_now() -> dict[str, int]:
    """rss, peak (high-water mark) and, on Linux, PSS split into anonymous and file pages, in bytes."""
    import psutil

    out = {"rss": psutil.Process().memory_info().rss}
    try:
        status = Path("/proc/self/status").read_text()
        out["peak"] = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_File:")):
                out[line.split(":")[0].lower()] = int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        out.setdefault("peak", peak if sys.platform == "darwin" else peak * 1024)
    return out


def _work(request: dict[str, Any], steps: Iterator[str], answer: Answer) -> None:
    """In the fresh process: warms up, repeats, and answers with the measurement when asked to finish."""
    import numpy as np

    from edgeprune._host import read_facts

    path, workload = Path(request["path"]), Workload.model_validate(request["workload"])
    module = catalog.load("edgeprune.runtimes", request["runtime"])
    threads = workload.n_threads or physical_cores()
    build = module.version()
    np.random.default_rng(0).integers(0, 2, 2)  # loaded before the baseline: it is ours, not the model's
    baseline = memory_now()["rss"]
    cache = cache_option(module, workload.kv_type)
    workload = workload.model_copy(update={"kv_type": cache.get("kv_type")})
    session = module.open_session(path, n_ctx=context_tokens(workload), n_threads=threads, **cache)
    loaded = memory_now()["rss"]
    protocol = Protocol(session, workload)
    for step in steps:
        if step == "finish":
            break
        protocol.warm_up() if step == "warm up" else protocol.repeat()
        answer(done=step)
    memory = memory_now()
    result = Measurement(
        artifact=request["name"],
        artifact_sha256=sha256_tree(path),
        runtime=request["runtime"],
        backend=session.backend,
        build=build,
        n_threads=threads,
        interleaved=request["interleaved"],
        workload=workload,
        prefill_samples_ns=tuple(protocol.prefill),
        decode_samples_ns=tuple(protocol.decode),
        token_samples_ns=tuple(protocol.single),
        baseline_rss_bytes=baseline,
        loaded_rss_bytes=loaded,
        peak_rss_bytes=memory["peak"],
        peak_anon_bytes=memory.get("pss_anon"),
        peak_file_bytes=memory.get("pss_file"),
        model_bytes=tree_bytes(path),
        host={**read_facts(), "os": platform.platform()},
        test_time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    answer(measurement=result.model_dump(mode="json"))


if __name__ == "__main__":
    serve(_work)
