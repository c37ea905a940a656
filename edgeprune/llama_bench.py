"""llama-bench's own records: ours as its JSON rows (a superset), and a real llama-bench run beside ours."""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from edgeprune.errors import InputRejected
from edgeprune.types import Measurement, Workload


def rows(m: Measurement) -> list[dict[str, Any]]:
    """One row for prompt processing and one for generation, with llama-bench's field names and ours besides."""
    cache = m.workload.kv_type or ("f16" if m.runtime == "llamacpp" else None)
    shared = {
        "build_commit": m.build,
        "cpu_info": m.host.get("cpu"),
        "gpu_info": m.host.get("gpu") or "",
        "backends": m.backend.upper(),
        "model_filename": m.artifact,
        "model_size": m.model_bytes,
        "n_threads": m.n_threads,
        "n_depth": m.workload.n_depth,
        **({"type_k": cache, "type_v": cache} if cache else {}),
        "test_time": m.test_time,
        "engine": m.runtime,
        "weights_sha256": m.artifact_sha256,
        "baseline_rss_bytes": m.baseline_rss_bytes,
        "peak_rss_bytes": m.peak_rss_bytes,
        "memory_bytes": m.memory_bytes,
    }
    out = []
    for n_prompt, n_gen, samples in (
        (m.workload.n_prompt, 0, m.prefill_samples_ns),
        (0, m.workload.n_gen, m.decode_samples_ns),
    ):
        if samples:
            out.append(shared | {"n_prompt": n_prompt, "n_gen": n_gen} | _statistics(samples, n_prompt + n_gen))
    return out


def _statistics(samples_ns: tuple[int, ...], n_tokens: int) -> dict[str, Any]:
    """Mean and sample standard deviation as llama-bench reports them, the median and the raw samples besides."""
    rates = [n_tokens * 1e9 / s for s in samples_ns]
    spread = (statistics.stdev(samples_ns), statistics.stdev(rates)) if len(rates) > 1 else (0.0, 0.0)
    return {
        "avg_ns": round(statistics.fmean(samples_ns)),
        "stddev_ns": round(spread[0]),
        "avg_ts": statistics.fmean(rates),
        "stddev_ts": spread[1],
        "median_ts": statistics.median(rates),
        "samples_ns": list(samples_ns),
        "samples_ts": rates,
    }


def run(binary: Path, gguf: Path, workload: Workload, build: str = "") -> list[dict[str, Any]]:
    """Rows of a real llama-bench on the same file and workload, repacking weights or not as our `build` of llama.cpp does.

    Raises InputRejected when it can't run.
    """
    command = [binary, "-m", gguf, "-p", workload.n_prompt, "-n", workload.n_gen, "-d", workload.n_depth]
    command += ["-r", workload.repetitions, "-o", "json"]
    command += ["-ctk", workload.kv_type, "-ctv", workload.kv_type, "-fa", "on"] if workload.kv_type else []
    command += ["-t", workload.n_threads] if workload.n_threads else []
    command += ["--repack", 0] if "no repacked weights" in build else []
    try:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError) as e:
        detail = " ".join((getattr(e, "stderr", None) or str(e)).split())[-200:]
        raise InputRejected(f"{binary} did not run as llama-bench: {detail}") from None
