"""Exporting against the tools that exist: time, peak memory, and the speed of what comes out, all in one run.

    python benchmarks/export/run.py --model FOLDER --llama-cpp .venv/llama.cpp [--tools BIN] -o results.json

Fresh processes, taking turns; medians of rounds, ratios within a round. Without --llama-cpp or --tools what they are
compared with is left out and said to be not measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import _big_model  # noqa: E402
import _parts  # noqa: E402
from _table import table  # noqa: E402

PARTS = ("gguf", "big", "cut", "onnx", "decode")


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a transformers folder; default: SmolLM2-135M-Instruct, float32")
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's sources, for its converter")
    parser.add_argument("--tools", type=Path, help="folder with llama-quantize of the same version")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gb", type=float, default=6.0, help="size of the large checkpoint, GB")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--folder", type=Path, help="where to work; needs three times --gb")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    results: dict[str, Any] = json.loads(args.output.read_text()) if args.output.exists() else {}
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="export-") as temporary:
        work = Path(temporary)
        model = args.model or _builtin(work)
        results["machine"], results["model"] = machine(), {"name": model.name, "bytes": weight_bytes(model)}
        run: dict[str, Callable[[], Any]] = {
            "gguf": lambda: _parts.gguf(model, work, args.llama_cpp, args.rounds, say),
            "big": lambda: big(model, work, args.llama_cpp, args.gb),
            "cut": lambda: cut(args.folder),
            "onnx": lambda: _parts.onnx(model, work, args.rounds, say),
            "decode": lambda: _parts.decode(model, work, args.tools, say),
        }
        for part in args.parts.split(","):
            say(f"== {part}")
            results[part] = run[part]()
            args.output.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(table(results))


def big(model: Path, work: Path, llama_cpp: Path | None, gb: float) -> dict[str, Any]:
    folder = work / "big"
    say(f"making a checkpoint of {gb} GB")
    largest = _big_model.make(folder, model, round(gb * 1e9))
    try:
        found = _parts.gguf(folder, work, llama_cpp, 1, say)
    finally:
        shutil.rmtree(folder)
    return {
        "bytes": round(gb * 1e9),
        "largest_tensor_bytes": largest,
        "allowed_bytes": 2 * largest + 400 * 10**6,
    } | found


def cut(folder: Path | None) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).parent / "gguf_cut.py")]
    command += ["--folder", str(folder)] if folder else []
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _builtin(work: Path) -> Path:
    from edgeprune import model
    from edgeprune.materialise import materialise

    folder = work / "SmolLM2-135M-Instruct"
    materialise(model.builtin_gguf(), folder)
    (folder / "SHA256SUMS").unlink()
    return folder


def weight_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def machine() -> dict[str, Any]:
    from edgeprune._host import read_facts
    from edgeprune.run import environment

    return {"host": read_facts(), "os": platform.system(), "versions": environment()}


if __name__ == "__main__":
    main()
