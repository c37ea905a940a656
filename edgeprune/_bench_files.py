"""Benchmark files that people have, as rows: llama-bench's JSON, JSON lines and CSV, onnxruntime-genai's CSV and JSON.

llama-bench: tools/llama-bench/llama-bench.cpp (`-o json|jsonl|csv`); n_depth, n_cpu_moe and others came with later
versions and are optional. onnxruntime-genai: benchmark/python/benchmark_e2e.py, whose CSV has had two forms, plain column
titles and, since 2024, the flattened records of metrics.py; latencies are of one token.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune.errors import InputRejected

MAX_BYTES = 64 << 20
# What a file must have to be taken for llama-bench's; further keys are used where they are there.
_LLAMA = ("n_prompt", "n_gen", "model_size", "model_n_params", "model_type")
_GENAI = {  # metrics.py's flattened names -> benchmark_e2e.py's plain ones
    "config.prompt_length": "Prompt Length",
    "config.tokens_generated": "Tokens Generated",
    "config.batch_size": "Batch Size",
    "metrics.prompt_processing_latency_ms": "Prompt Processing Latency (ms)",
    "metrics.token_generation_latency_ms": "Token Generation Latency (ms)",
}
# llama_model_ftype_name in llama.cpp's src/llama-model-loader.cpp -> the quantiser's names
_FTYPE = {"all F32": "F32", "Q2_K - Medium": "Q2_K", "Q2_K - Small": "Q2_K_S", "IQ1_S - 1.5625 bpw": "IQ1_S"}
_SIZES = {"Small": "S", "Medium": "M", "Large": "L"}
_BACKENDS = {"blas": "cpu", "cpu": "cpu", "cuda": "cuda", "metal": "metal", "mtl": "metal", "vulkan": "vulkan"}
_BACKENDS |= {"opencl": "opencl", "hip": "hip", "rocm": "hip", "sycl": "sycl", "hexagon": "hexagon"}
_PROVIDERS = {"cpu": "cpu", "cuda": "cuda", "dml": "directml", "webgpu": "webgpu"}


class BenchRow(NamedTuple):
    """One test of one model; the place where it stands, for messages."""

    where: str  # "bench.json, test 3"
    runtime: str
    backend: str
    build: str
    model: str
    quant: str
    n_params: int | None
    model_bytes: int | None
    n_prompt: int
    n_gen: int
    n_depth: int
    prompt_s: float | None  # of the whole prompt
    token_s: float | None  # of one generated token
    file: str | None  # where the model lay on that machine


def read(path: Path) -> list[BenchRow]:
    """Rows with a prompt or with generation, batch 1. Raises InputRejected naming the file, the place and the field."""
    records = _records(path)
    if not records:
        raise InputRejected(f"{path}: holds no test; was the benchmark stopped before its first one ended?")
    first = records[0][1]
    if "n_prompt" in first or "model_size" in first:
        return [_llama_row(where, r) for where, r in records]
    flat = [(where, _flat(r)) for where, r in records]
    if _GENAI.keys() & flat[0][1].keys() or set(_GENAI.values()) & flat[0][1].keys():
        return [row for where, r in flat for row in _genai_rows(where, r)]
    raise InputRejected(
        f"{path}: neither llama-bench's output (-o json, jsonl or csv) nor onnxruntime-genai's benchmark_e2e.py's; its "
        f"first test has {', '.join(sorted(map(str, first))[:6]) or 'no fields'}"
    )


def _records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(place, fields) of every test, whatever the format."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputRejected(f"{path}: {path.stat().st_size} bytes are no benchmark's output")
        text = path.read_text(encoding="utf-8-sig").strip()
    except OSError as e:
        raise InputRejected(f"{path}: can't be read: {e.strerror}") from None
    except UnicodeDecodeError:
        raise InputRejected(f"{path}: not text; give llama-bench's -o json, jsonl or csv output") from None
    if not text:
        raise InputRejected(f"{path}: empty; was the benchmark stopped before it wrote?")
    if text[0] == "[":
        found, start = _json(path, text, 1), "test"
    elif text[0] == "{":
        lines = text.splitlines()
        # a JSON object over several lines is one record, one per line are JSON lines
        whole = len(lines) > 1 and lines[0].strip() == "{"
        found = [_json(path, text, 1)] if whole else [_json(path, line, n) for n, line in enumerate(lines, 1) if line]
        start = "line"
    else:
        found, start = _csv(path, text), "line"
    if not isinstance(found, list) or not all(isinstance(r, dict) for r in found):
        raise InputRejected(f"{path}: not a list of tests")
    shift = 2 if text[0] not in "[{" else 1
    return [(f"{path}, {start} {n + shift}", r) for n, r in enumerate(found)]


def _json(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        at, told = line + getattr(e, "lineno", 1) - 1, str(getattr(e, "msg", e))
        ended = text[-1] not in "]}" and told != "Extra data"
        why = "ends in the middle; was the benchmark stopped?" if ended else f"not JSON ({told})"
        raise InputRejected(f"{path}, line {at}: {why}") from None


def _csv(path: Path, text: str) -> list[dict[str, Any]]:
    rows = list(csv.reader(io.StringIO(text)))
    header = rows[0]
    if len(header) < 4:
        raise InputRejected(
            f"{path}, line 1: not JSON and not a CSV header; give llama-bench's -o json, jsonl or csv output"
        )
    out = []
    for n, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise InputRejected(
                f"{path}, line {n}: {len(row)} fields, the header has {len(header)}; is the file cut off?"
            )
        out.append(dict(zip(header, row, strict=True)))
    return out


def _llama_row(where: str, r: dict[str, Any]) -> BenchRow:
    for key in _LLAMA:
        if key not in r:
            raise InputRejected(f"{where}: {key} is missing; this llama-bench is of another version")
    n_prompt, n_gen, depth = (_whole(where, r, k) for k in ("n_prompt", "n_gen", "n_depth"))
    n = n_prompt + n_gen
    if not n:
        raise InputRejected(f"{where}: n_prompt and n_gen are both 0")
    seconds = _median_ns(where, r) / 1e9
    both = n_prompt and n_gen  # -pg: prompt and generation in one time, which says neither
    gpu = _whole(where, r, "n_gpu_layers", -1) != 0
    names = [p.strip().lower() for p in re.split(r"[,+]", str(r.get("backends") or "cpu"))]
    named = [_BACKENDS[re.sub(r"\d+$", "", x)] for x in names if re.sub(r"\d+$", "", x) in _BACKENDS]
    accelerated = [b for b in named if b != "cpu"]
    return BenchRow(
        where=where,
        runtime="llamacpp",
        backend=accelerated[0] if accelerated and gpu else "cpu",
        build=str(r.get("build_commit") or "unknown"),
        model=str(r["model_type"]),
        quant=_quant(where, str(r["model_type"])),
        n_params=_whole(where, r, "model_n_params"),
        model_bytes=_whole(where, r, "model_size"),
        n_prompt=n_prompt,
        n_gen=n_gen,
        n_depth=depth,
        prompt_s=seconds if n_prompt and not both else None,
        token_s=seconds / n_gen if n_gen and not both else None,
        file=str(r.get("model_filename") or "") or None,
    )


def _median_ns(where: str, r: dict[str, Any]) -> float:
    """Of the samples where the file has them, else the mean."""
    samples = r.get("samples_ns")
    if isinstance(samples, list) and samples:
        values = sorted(_number(where, {"samples_ns": s}, "samples_ns") for s in samples)
        middle = len(values) // 2
        return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
    if "avg_ns" not in r:
        raise InputRejected(f"{where}: neither samples_ns nor avg_ns is there")
    return _number(where, r, "avg_ns")


def _quant(where: str, model_type: str) -> str:
    """ "llama 1B Q4_K - Medium" -> "Q4_K_M"."""
    text = model_type.replace("(guessed)", "").strip()
    for theirs, ours in _FTYPE.items():
        if text.endswith(theirs):
            return ours
    found = re.search(
        r"\b(I?Q\d\w*|TQ\d_\d|F16|BF16|F32)(?: - (Small|Medium|Large))?(?: mix)?(?: - [\d.]+ bpw)?$", text
    )
    if not found:
        raise InputRejected(f"{where}: model_type {model_type!r} names no quantisation")
    return found[1] + (f"_{_SIZES[found[2]]}" if found[2] else "")


def _flat(r: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested records as metrics.py's CSV flattens them."""
    out: dict[str, Any] = {}
    for k, v in r.items():
        out |= _flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v}
    return out


def _genai_rows(where: str, r: dict[str, Any]) -> list[BenchRow]:
    for key, plain in _GENAI.items():
        if key not in r and plain not in r:
            raise InputRejected(
                f"{where}: neither {key} nor {plain!r} is there; this benchmark_e2e.py is of another version"
            )
    r = {**r, **{key: r[key] if key in r else r[plain] for key, plain in _GENAI.items()}}
    if _whole(where, r, "config.batch_size") != 1:
        return []
    prompt, gen = _whole(where, r, "config.prompt_length"), _whole(where, r, "config.tokens_generated")
    row = BenchRow(
        where=where,
        runtime="onnxruntime",
        backend=_PROVIDERS.get(str(r.get("metadata.device") or "cpu").lower(), str(r.get("metadata.device")).lower()),
        build=f"onnxruntime-genai {r.get('metadata.package_version') or 'of unknown version'}",
        model=str(r.get("config.model_info.full_name") or "unnamed"),
        quant=str(r.get("config.precision") or "unknown"),
        n_params=None,
        model_bytes=None,
        n_prompt=prompt,
        n_gen=0,
        n_depth=0,
        prompt_s=_number(where, r, "metrics.prompt_processing_latency_ms") / 1e3 * prompt,
        token_s=None,
        file=None,
    )
    token = _number(where, r, "metrics.token_generation_latency_ms") / 1e3
    return [row, row._replace(n_prompt=0, n_gen=gen, n_depth=prompt, prompt_s=None, token_s=token)]


def _whole(where: str, r: dict[str, Any], key: str, default: int = 0) -> int:
    value = _number(where, r, key, default) if r.get(key) not in (None, "") else default
    if value != int(value):
        raise InputRejected(f"{where}: {key} is {r[key]!r}, not a whole number")
    return int(value)


def _number(where: str, r: dict[str, Any], key: str, least: float = 0) -> float:
    try:
        value = float(r[key])
    except (TypeError, ValueError):
        raise InputRejected(f"{where}: {key} is {str(r[key])[:40]!r}, not a number") from None
    if not math.isfinite(value) or value < min(least, 0) or (key.endswith(("_ns", "_ms")) and value <= 0):
        raise InputRejected(f"{where}: {key} is {value:g}, which can't be")
    return value
