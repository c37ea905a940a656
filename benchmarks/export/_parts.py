"""The comparisons: what is run, and what its results say."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _spawn import interleave, ratio, spawn

Say = Callable[[str], None]


def edgeprune(source: Path, fmt: str, quant: str, out: Path, *more: str) -> list[str | Path]:
    """The verb as a person calls it; comparing with torch is left out, as the other tools compare with nothing."""
    return [
        sys.executable, "-m", "edgeprune.cli", "export", source, "--format", fmt, "--quant", quant, "-o", out, "--force",
        "--no-verify", *more,
    ]  # fmt: skip


def gguf(model: Path, work: Path, llama_cpp: Path | None, rounds: int, say: Say) -> dict[str, Any]:
    """Folder to GGUF F16, ours and llama.cpp's converter."""
    ours, theirs = work / "ours.gguf", work / "theirs.gguf"
    jobs = {"edgeprune": lambda: spawn(edgeprune(model, "gguf", "F16", ours))}
    if llama_cpp:
        script = llama_cpp / "convert_hf_to_gguf.py"
        command = [sys.executable, script, model, "--outtype", "f16", "--outfile", theirs]
        jobs["llama.cpp"] = lambda: spawn(command)
    found = interleave(jobs, rounds, say)
    out: dict[str, Any] = {"runs": found, "file_bytes": ours.stat().st_size}
    if llama_cpp:
        out["time_ratio"] = ratio(found, "edgeprune", "llama.cpp", "s")
        out["peak_ratio"] = ratio(found, "edgeprune", "llama.cpp", "peak_rss_bytes")
        out["tensors_equal"] = same_tensors(ours, theirs)
    for path in (ours, theirs):
        path.unlink(missing_ok=True)
    return out


BUILDER = "genai builder int4"


def onnx(model: Path, work: Path, rounds: int, say: Say) -> dict[str, Any] | str:
    """Folder to ONNX int4, ours and onnxruntime-genai's builder, then decoding with both in the same plain session."""
    from edgeprune.types import Workload

    if importlib.util.find_spec("onnx_ir") is None:
        return "not measured: the builder needs onnx-ir; pip install onnx-ir"
    names = {"edgeprune int4": "int4", "edgeprune int4-mixed": "int4-mixed", BUILDER: "genai"}
    folders = {name: work / f"onnx-{folder}" for name, folder in names.items()}

    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", model, "-o", folders[BUILDER]]
    builder += ["-p", "int4", "-e", "cpu", "-c", work / "cache", "--extra_options", "hf_token=false"]
    jobs = {
        "edgeprune int4": lambda: spawn(edgeprune(model, "onnx", "int4", folders["edgeprune int4"])),
        "edgeprune int4-mixed": lambda: spawn(edgeprune(model, "onnx", "int4-mixed", folders["edgeprune int4-mixed"])),
        BUILDER: lambda: spawn(builder),
    }
    found = interleave(jobs, rounds, say)
    speed = measure(folders, Workload(n_prompt=0, n_gen=128, repetitions=max(rounds, 7)), say)
    ours = [name for name in names if name.startswith("edgeprune")]
    return {
        "runs": found,
        "time_ratio": ratio(found, "edgeprune int4", BUILDER, "s"),
        "peak_ratio": ratio(found, "edgeprune int4", BUILDER, "peak_rss_bytes"),
        "graphs": {name: graph_facts(folder) for name, folder in folders.items()},
        "decode": speed,
        "decode_ratio": {name: decode_ratio(speed, name, BUILDER) for name in ours},
    }


def decode(model: Path, work: Path, tools: Path | None, say: Say) -> dict[str, Any] | str:
    """Q4_K_M from the same F16, ours and llama-quantize's: the tensors' bytes, and their speed in llama.cpp."""
    from edgeprune.types import Workload

    if tools is None:
        return "not measured: no --tools"
    f16, ours, theirs = work / "f16.gguf", work / "ours-Q4_K_M.gguf", work / "theirs-Q4_K_M.gguf"
    spawn(edgeprune(model, "gguf", "F16", f16))
    spawn(edgeprune(f16, "gguf", "Q4_K_M", ours))
    spawn([tools / "llama-quantize", f16, theirs, "Q4_K_M"])
    names = {"edgeprune Q4_K_M": ours, "llama-quantize Q4_K_M": theirs}
    speed = measure(names, Workload(n_prompt=0, n_gen=128, repetitions=7), say)
    return {
        "tensors_equal": same_tensors(ours, theirs),
        "file_bytes": {name: path.stat().st_size for name, path in names.items()},
        "decode": speed,
        "decode_ratio": decode_ratio(speed, *names),
    }


def measure(artifacts: dict[str, Path], workload: Any, say: Say) -> dict[str, Any]:
    """edgeprune.bench's protocol: each in a fresh process, repetitions taking turns; tokens/s of every repetition."""
    from edgeprune import bench

    found = bench.measure(artifacts, workload, progress=lambda what, done, total: say(f"{what} {done}/{total}"))
    out = {}
    for m in found:
        rates = [workload.n_gen / (ns / 1e9) for ns in m.decode_samples_ns]
        out[m.artifact] = {"median_tok_per_s": statistics.median(rates), "tok_per_s": rates, "n_threads": m.n_threads}
        out[m.artifact] |= {"memory_bytes": m.memory_bytes, "build": m.build}
    return out


def decode_ratio(speed: dict[str, Any], ours: str, theirs: str) -> float:
    pairs = zip(speed[ours]["tok_per_s"], speed[theirs]["tok_per_s"], strict=True)
    return statistics.median(a / b for a, b in pairs)


def same_tensors(a: Path, b: Path) -> bool:
    import gguf

    ours, theirs = ({t.name: t for t in gguf.GGUFReader(p).tensors} for p in (a, b))
    return set(ours) == set(theirs) and all(
        t.tensor_type == theirs[name].tensor_type and t.data.tobytes() == theirs[name].data.tobytes()
        for name, t in ours.items()
    )


def graph_facts(folder: Path) -> dict[str, Any]:
    """What makes two graphs comparable: bytes, bits of the matrices and of the output head, how embeddings are held."""
    import onnx

    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    bits = {
        n.name: next(a.i for a in n.attribute if a.name == "bits") for n in graph.node if n.op_type == "MatMulNBits"
    }
    makers = {o: n for n in graph.node for o in n.output}
    head = makers["logits"]
    while head.op_type not in ("MatMulNBits", "MatMul", "Gemm"):
        head = makers[head.input[0]]
    gathers = [n.op_type for n in graph.node if n.op_type in ("GatherBlockQuantized", "Gather") and "embed" in n.name]
    return {
        "bytes": sum(p.stat().st_size for p in folder.glob("model.onnx*")),
        "nodes": len(graph.node),
        "matrix_bits": {str(b): list(bits.values()).count(b) for b in sorted(set(bits.values()))},
        "head_bits": bits.get(head.name, 32),
        "embedding": gathers[0] if gathers else None,
    }
