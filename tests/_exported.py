"""What the tests of exported files share: llama.cpp's converter, both runtimes' logits, a folder cut to a block list."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeprune.blocks import from_text
from edgeprune.checkpoint import copy_tensors, open_checkpoint
from edgeprune.prune import kept_tensors
from edgeprune.runtimes import llamacpp
from edgeprune.torch_model import pruned_config
from exporters import gguf as exporter
from exporters import onnx

LLAMA_CPP = Path(os.environ.get("EDGEPRUNE_LLAMA_CPP") or Path(__file__).parents[1] / ".venv" / "llama.cpp")
needs_converter = pytest.mark.skipif(
    not (LLAMA_CPP / "convert_hf_to_gguf.py").is_file(),
    reason="llama.cpp's converter is not there: set EDGEPRUNE_LLAMA_CPP to a llama.cpp source tree",
)
# Converts every (folder, out, type) of a JSON list. The tokenizers of the tiny models are in no table of hashes, so
# their pre-tokenizer's name is given.
DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import convert_hf_to_gguf, conversion.base
for folder, out, kind, pre in json.loads(sys.argv[2]):
    if pre:
        conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer, pre=pre: pre
    sys.argv = ["convert", folder, "--outfile", out, "--outtype", kind]
    convert_hf_to_gguf.main()
"""


def convert(jobs: list[tuple[Path, Path, str, str | None]]) -> None:
    jobs_text = json.dumps([[str(a), str(b), kind.lower(), pre] for a, b, kind, pre in jobs])
    done = subprocess.run([sys.executable, "-c", DRIVER, LLAMA_CPP, jobs_text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def export(folder: Path, out: Path, quant: str = "F32", **options) -> Path:
    exporter.check(folder, quant, **options)
    exporter.export(folder, out, quant, {"plan": "none", "tool": "test"}, lambda stage, x: None, **options)
    return out


def in_every_runtime(folder: Path, out: Path) -> dict[str, Path]:
    """Runtime -> the model of a folder as it reads it, in float32."""
    exporter.export(folder, out / "m.gguf", "F32", {}, lambda stage, x: None)
    onnx.export(folder, out / "onnx", "fp32", {}, lambda stage, x: None)
    return {"transformers": folder, "llamacpp": out / "m.gguf", "onnxruntime": out / "onnx"}


def contents(path: Path):
    """({key: (types, value)}, {tensor: (type, shape, bytes)}) as gguf-py reads them."""
    import gguf

    reader = gguf.GGUFReader(path)
    keys = {k: (f.types, f.contents()) for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    return keys, {t.name: (t.tensor_type.name, t.shape.tolist(), t.data.tobytes()) for t in reader.tensors}


def assert_same(ours: Path, theirs: Path) -> None:
    """But for provenance, and for two keys that say what llama.cpp would take for granted."""
    (keys, tensors), (want_keys, want_tensors) = contents(ours), contents(theirs)
    assert keys.pop("edgeprune.plan")[1] == "none" and keys.pop("edgeprune.tool")[1] == "test"
    if "tokenizer.ggml.add_bos_token" not in want_keys:
        default = want_keys["tokenizer.ggml.model"][1] == "llama"
        assert keys.pop("tokenizer.ggml.add_bos_token")[1] is default
    for arch in ("gemma2", "gemma3"):  # which blocks have windows: by position unless said
        keys.pop(f"{arch}.attention.sliding_window_pattern", None)
    assert keys == want_keys
    assert sorted(tensors) == sorted(want_tensors)
    for name, value in want_tensors.items():
        assert tensors[name] == value, name


def torch_model(folder: Path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def torch_logits(folder: Path, ids: list[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return torch_model(folder)(torch.tensor([ids])).logits[0].numpy()


def llama_logits(path: Path, ids: list[int], precise: bool = True) -> np.ndarray:
    session = llamacpp.open_session(path, n_ctx=512, n_threads=1, precise=precise)
    try:
        return session.logits(ids)
    finally:
        session.close()


def difference(path: Path, folder: Path, ids: list[int]) -> float:
    """Largest |logit of llama.cpp − logit of torch|, of a model that says something."""
    want = torch_logits(folder, ids)
    assert np.abs(want).max() > 0.5
    return float(np.abs(llama_logits(path, ids) - want).max())


def some_ids(n: int = 96, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, 300, n).tolist()


def edit_json(path: Path, **values) -> None:
    data = json.loads(path.read_text())
    data.update(values)
    path.write_text(json.dumps(data))


def edit_weights(folder: Path, change) -> None:
    """`change`: (name, float32 array) -> array."""
    from safetensors.numpy import load_file, save_file

    tensors = {k: np.ascontiguousarray(change(k, v)) for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def copy_of(folder: Path, out: Path, **config) -> Path:
    shutil.copytree(folder, out)
    if config:
        edit_json(out / "config.json", **config)
    return out


def cut(folder: Path, out: Path, blocks: str) -> Path:
    """The folder pruned to a block list such as "0 1:3 -:4"."""
    ck, kept = open_checkpoint(folder), from_text(blocks)
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"))
    (out / "config.json").write_text(json.dumps(pruned_config(ck.config, kept)))
    copy_tensors(out / "model.safetensors", kept_tensors(ck, kept).items())
    (out / "edgeprune.json").write_text(json.dumps({"kept": blocks}))
    return out


def bfloat16(folder: Path, out: Path) -> Path:
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, out)
    tensors = {k: v.to(torch.bfloat16) for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out
