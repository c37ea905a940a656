"""The one timing protocol, llama-bench's, for every runtime: batch 1, no sampling, each artifact in a fresh process.

Warm-up: the whole prompt; one token. Each repetition: empty cache; the depth prefilled untimed; then timed,
prompt processing of n_prompt random tokens with one synchronisation at its end, and generation of n_gen random
tokens with one each. Source of the method: llama.cpp tools/llama-bench/llama-bench.cpp.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeprune import catalog
from edgeprune.errors import EdgepruneError, InputRejected, OutOfResources, UsageError
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


def measure(artifact: Path, workload: Workload, *, name: str | None = None, progress: Progress) -> Measurement:
    """Time one artifact in a fresh process. `name` is how the record calls it (default: the path as given).

    Raises InputRejected when the runtime refuses the file, OutOfResources when the process is killed.
    """
    request = {"path": str(artifact), "name": name or str(artifact), "runtime": runtime_for(artifact)}
    request["workload"] = workload.model_dump()
    child = subprocess.Popen(
        [sys.executable, "-m", "edgeprune.bench"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    errors: list[str] = []
    drain = threading.Thread(target=lambda: errors.extend(child.stderr or ()), daemon=True)
    drain.start()
    try:
        assert child.stdin and child.stdout
        child.stdin.write(json.dumps(request))
        child.stdin.close()
        answer: dict[str, Any] = {}
        for line in child.stdout:
            answer = json.loads(line)
            if "done" in answer:
                progress(f"measuring {request['name']}", answer["done"], answer["total"])
        code = child.wait()
    finally:
        child.kill()
        child.wait()
    drain.join(timeout=5)
    if "measurement" in answer:
        return Measurement.model_validate(answer["measurement"])
    if "error" in answer:
        kind = {4: InputRejected, 6: OutOfResources}.get(answer["exit_code"], EdgepruneError)
        raise kind(answer["error"])
    if code in (-9, 137):
        raise OutOfResources(
            f"measuring {artifact}: the process was killed, most likely out of memory; try a smaller --n-prompt"
        )
    tail = " ".join("".join(errors[-3:]).split())[-300:]
    raise EdgepruneError(f"measuring {artifact}: the {request['runtime']} process ended with code {code}: {tail}")


def run_protocol(session: Any, workload: Workload, tick: Callable[[], None]) -> tuple[list[int], list[int], list[int]]:
    """(prefill, decode, token) samples in ns on an open runtime Session."""
    import numpy as np

    rng = np.random.default_rng(workload.seed)
    now = time.perf_counter_ns

    def tokens(n: int) -> list[int]:
        out = rng.integers(0, session.n_vocab, n).tolist()
        if out and session.bos_token is not None:
            out[0] = session.bos_token
        return out

    def at_depth() -> None:
        session.reset()
        if workload.n_depth:
            session.prefill(tokens(workload.n_depth))

    at_depth()
    session.prefill(tokens(max(workload.n_prompt, 1)))
    at_depth()
    session.decode(tokens(1)[0])
    tick()
    prefill, decode, single = [], [], []
    for _ in range(workload.repetitions):
        if workload.n_prompt:
            at_depth()
            prompt = tokens(workload.n_prompt)
            start = now()
            session.prefill(prompt)
            prefill.append(now() - start)
        if workload.n_gen:
            at_depth()
            generated = tokens(workload.n_gen)
            start = previous = now()
            for token in generated:
                session.decode(token)
                done = now()
                single.append(done - previous)
                previous = done
            decode.append(previous - start)
        tick()
    return prefill, decode, single


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


def _worker(request: dict[str, Any]) -> None:
    """In the fresh process: measure, and answer on stdout in JSON lines."""
    import numpy as np

    from edgeprune._host import read_facts
    from edgeprune.files import sha256_tree, tree_bytes

    def answer(**fields: Any) -> None:
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()

    try:
        path, workload = Path(request["path"]), Workload.model_validate(request["workload"])
        module = catalog.load("edgeprune.runtimes", request["runtime"])
        threads = workload.n_threads or physical_cores()
        build = module.version()
        steps, done = workload.repetitions + 2, 0

        def tick() -> None:
            nonlocal done
            done += 1
            answer(done=done, total=steps)

        np.random.default_rng(0).integers(0, 2, 2)  # loaded before the baseline: it is ours, not the model's
        baseline = memory_now()["rss"]
        session = module.open_session(path, n_ctx=context_tokens(workload), n_threads=threads)
        loaded = memory_now()["rss"]
        tick()
        prefill, decode, single = run_protocol(session, workload, tick)
        memory = memory_now()
        result = Measurement(
            artifact=request["name"],
            artifact_sha256=sha256_tree(path),
            runtime=request["runtime"],
            backend=session.backend,
            build=build,
            n_threads=threads,
            workload=workload,
            prefill_samples_ns=tuple(prefill),
            decode_samples_ns=tuple(decode),
            token_samples_ns=tuple(single),
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
    except EdgepruneError as e:
        answer(error=str(e), exit_code=e.exit_code)
    except MemoryError:
        answer(error=f"measuring {request['path']}: out of memory", exit_code=6)


if __name__ == "__main__":
    try:
        _worker(json.load(sys.stdin))
    except KeyboardInterrupt:
        sys.exit(130)
