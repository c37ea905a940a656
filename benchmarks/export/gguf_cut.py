"""GGUF to GGUF cut against `cp` of the bytes it writes, interleaved.

    python benchmarks/export/gguf_cut.py [--gib 1.5] [--rounds 7] [--cold] [--folder DIR]

One JSON object on stdout. The model is random bytes in the shape of a llama, made in a temporary folder of --folder and
removed. The model is in the page cache before each measurement, or, with --cold, put out of it. Neither side
waits for the disk; both outputs are flushed between measurements.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HIDDEN, FFN, VOCAB = 2048, 8192, 32_000
GONE = 4  # blocks, from the middle


def make(path: Path, gib: float) -> int:
    """A Q8_0 llama of about `gib` GiB: random scales and weights, no vocabulary. Returns its blocks."""
    import gguf
    import numpy as np

    matrices = {
        "attn_q": (HIDDEN, HIDDEN), "attn_k": (512, HIDDEN), "attn_v": (512, HIDDEN), "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN),
    }  # fmt: skip
    block = sum(a * b for a, b in matrices.values()) * 34 // 32
    n = max(2 * GONE, round(gib * 2**30 / block))
    random = np.random.default_rng(0)
    pool = {
        s: random.integers(0, 256, (s[0], s[1] // 32 * 34), np.uint8) for s in {*matrices.values(), (VOCAB, HIDDEN)}
    }
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", "Random")
    counts = {"block_count": n, "context_length": 4096, "embedding_length": HIDDEN, "feed_forward_length": FFN}
    counts |= {"attention.head_count": 32, "attention.head_count_kv": 8, "vocab_size": VOCAB}
    for key, value in counts.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_string("tokenizer.ggml.model", "none")
    norm, kind = np.ones(HIDDEN, np.float32), gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("token_embd.weight", pool[VOCAB, HIDDEN], raw_dtype=kind)
    writer.add_tensor("output_norm.weight", norm)
    for i in range(n):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", norm)
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", norm)
        for role, shape in matrices.items():
            writer.add_tensor(f"blk.{i}.{role}.weight", pool[shape], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return n


def cut(source: Path, out: Path, n: int) -> None:
    """What `edgeprune prune` does once it has read its plan."""
    from edgeprune import gguf_prune, model
    from edgeprune.blocks import whole
    from edgeprune.types import Budget, Plan, Prediction

    spec = model.inspect(source)
    first = (n - GONE) // 2
    blocks = tuple(b for b in whole(n) if not first <= b.attn < first + GONE)
    zero = dict.fromkeys(("file_bytes", "weights_bytes", "kv_bytes", "compute_bytes", "runtime_bytes"), 0)
    nothing = Prediction(
        **zero, memory_bytes=0, streamed_bytes=0, decode_tok_per_s=None, decode_low_tok_per_s=None,
        decode_high_tok_per_s=None, ttft_s=None, basis="none",
    )  # fmt: skip
    plan = Plan(
        model=spec.name, family=spec.family, fingerprint=spec.fingerprint, n_blocks_whole=n, device="none", mode=None,
        runtime="llamacpp", backend="cpu", quant="Q8_0", budget=Budget(), memory_limit_bytes=None, memory_limit_from="device",
        blocks=blocks, removed=f"layers {first}-{first + GONE - 1}", damage_kl=None, damage_perplexity=None,
        whole_perplexity=None, quant_kl=None, prediction=nothing, prediction_whole=nothing, alternatives=(),
        scores_sha256=None, metric=None,
    )  # fmt: skip
    gguf_prune.prune_gguf(source, spec, plan, out, base_model="random")


def flushed(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def prepare(path: Path, cold: bool) -> None:
    """The file into the page cache, or out of it."""
    if not cold:
        subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)
        return
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def measure(folder: Path, gib: float, rounds: int, cold: bool) -> dict:
    source, ours, like, theirs = (folder / f"{k}.gguf" for k in ("whole", "ours", "like", "cp"))
    n = make(source, gib)
    cut(source, like, n)  # the bytes cp has to write
    for path in (source, like):
        flushed(path)
    seconds: dict[str, list[float]] = {"cut": [], "cp": []}
    for k in range(rounds):
        for what in list(seconds)[:: 1 if k % 2 == 0 else -1]:
            for path in (source, like):
                prepare(path, cold)
            out = ours if what == "cut" else theirs
            start = time.perf_counter()
            if what == "cut":
                cut(source, out, n)
            else:
                subprocess.run(["cp", "--reflink=never", like, out], check=True)
            seconds[what].append(time.perf_counter() - start)
            flushed(out)
            out.unlink()
    middle = {what: statistics.median(s) for what, s in seconds.items()}
    return {
        "what": f"GGUF to GGUF cut against cp of the same bytes, page cache {'cold' if cold else 'warm'}, interleaved",
        "bytes_whole": source.stat().st_size,
        "bytes_written": like.stat().st_size,
        "blocks": [n, n - GONE],
        "rounds": rounds,
        "median_s": middle,
        "samples_s": seconds,
        "cut_over_cp": middle["cut"] / middle["cp"],
        "python": sys.version.split()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold", action="store_true", help="read from disk, not from the page cache")
    parser.add_argument("--folder", type=Path, help="where to work; needs four times --gib")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="gguf-cut-") as folder:
        sys.stdout.write(json.dumps(measure(Path(folder), args.gib, args.rounds, args.cold), indent=1) + "\n")


if __name__ == "__main__":
    main()
