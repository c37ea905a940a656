"""What a default session takes, from a simulated load: allocations are computed, no weight is read.

Run in a child process, so that what the vocabulary and the graphs really take can be measured and not guessed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

from edgeprune.errors import InputRejected
from edgeprune.gguf_file import GGUFHeader, read_header

_MIB = 1 << 20
_KV = re.compile(r"llama_kv_cache.*: size = +([\d.]+) MiB \( *(\d+) cells")
_COMPUTE = re.compile(r"sched_reserve: +\S+ compute buffer size = +([\d.]+) MiB")
_OUTPUT = re.compile(r"output buffer size = +([\d.]+) MiB")
_MODEL = re.compile(r"load_tensors: +(\S+) model buffer size")
_LEFT_OUT = re.compile(
    r"tensor '.*?' \(\S+\)(?: \(and (\d+) others\))? cannot be used with preferred buffer type CPU_REPACK"
)
# Types that ggml-cpu/repack.cpp has a second layout for, on one processor or another.
_REPACKABLE = ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q2_K", "IQ4_NL", "MXFP4", "Q8_0", "Q1_0")


def predict(path: Path, n_ctx: int, n_threads: int) -> dict[str, int | None]:
    """Bytes, by what they are for:

    weights_bytes    tensors as stored; resident once read, also when mapped
    repack_bytes     the second copy some CPU kernels want; None when it cannot be known without loading
    kv_bytes         the cache for `n_ctx` tokens; all of it resident at once
    compute_bytes    activations of a 512-token step with logits for one position: what becomes resident
    compute_committed_bytes   what is reserved, with logits for every position: budget this on an accelerator
    output_bytes     logits handed out
    other_bytes      vocabulary, graphs and tables, measured in the child as it simulates the load
    Raises InputRejected with llama.cpp's reason when the file does not load.
    """
    header = read_header(path)
    found = _child(header.paths[0], n_ctx, n_threads)
    return {
        "weights_bytes": header.weight_bytes,
        "repack_bytes": repacked_bytes(header, found["buffers"], found["left_out"]),
        **{k: int(v) for k, v in found["bytes"].items()},
    }


def repacked_bytes(header: GGUFHeader, buffers: list[str], left_out: int | None) -> int | None:
    """llama.cpp says how many tensors it left out of repacking; the types it took are those whose tensors are the rest.

    None when several choices of types would fit, or another kind of buffer is in use.
    """
    if all(b in ("CPU", "CPU_Mapped") for b in buffers):
        return 0
    if left_out is None or not set(buffers) <= {"CPU", "CPU_Mapped", "CPU_REPACK"}:
        return None
    tied = "output.weight" not in header.tensors  # the embedding is then loaded twice: to look up and to multiply
    n_repacked = len(header.tensors) + tied - left_out
    groups: dict[str, list[int]] = {}
    for name, t in header.tensors.items():
        if len(t.shape) == 2 and t.type in _REPACKABLE and (tied or name != "token_embd.weight"):
            groups.setdefault(t.type, []).append(t.n_bytes)
    fits = [
        sum(map(sum, chosen))
        for n in range(len(groups) + 1)
        for chosen in combinations(groups.values(), n)
        if sum(map(len, chosen)) == n_repacked
    ]
    return fits[0] if len(fits) == 1 else None


def _child(path: Path, n_ctx: int, n_threads: int) -> dict:
    command = [sys.executable, "-m", "edgeprune.runtimes._llama_memory", str(path), str(n_ctx), str(n_threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise InputRejected(f"llama.cpp does not load {path}: {lines[-1]}")
    return json.loads(done.stdout)


def _simulate(path: str, n_ctx: int, n_threads: int) -> dict:
    import psutil

    from edgeprune.runtimes import _llama_log
    from edgeprune.runtimes.llamacpp import context_params, model_params

    lib = _llama_log.library()
    me = psutil.Process()
    before = me.memory_info().rss
    params = model_params(lib)
    params.no_alloc, params.load_mode = True, lib.LLAMA_LOAD_MODE_NONE
    model = lib.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise SystemExit(_llama_log.reason())
    out: dict[str, float] = {}
    for n_outputs, key in ((1, "compute_bytes"), (0, "compute_committed_bytes")):
        if not n_outputs:
            _llama_log.clear()  # the model's lines have been read
        settings = context_params(lib, n_ctx, n_threads)
        settings.n_outputs_max = n_outputs
        context = lib.llama_init_from_model(model, settings)
        if not context:
            raise SystemExit(_llama_log.reason())
        if n_outputs:
            out["other_bytes"] = me.memory_info().rss - before
            buffers = [m[1] for line in _llama_log.lines() if (m := _MODEL.search(line))]
            left = [int(m[1] or 0) + 1 for line in _llama_log.lines() if (m := _LEFT_OUT.search(line))]
        found = _llama_log.lines()
        out[key] = _sum(_COMPUTE, found)
        out["kv_bytes"] = _sum(_KV, found)
        out["output_bytes"] = _sum(_OUTPUT, found)
        lib.llama_free(context)
    return {"bytes": out, "buffers": buffers, "left_out": left[0] if left else None}


def _sum(pattern: re.Pattern[str], lines: list[str]) -> float:
    return sum(float(m[1]) * _MIB for line in lines if (m := pattern.search(line)))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_simulate(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
