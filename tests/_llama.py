"""llama.cpp's quantiser called plainly, as an oracle, and little GGUF files to give it."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest

CHOSEN = re.compile(
    r"\] +(\S+) +- \[.*size = [^(\n]*\((\w+)\)"
)  # "[ 1/ 20] blk.0.… - [256, …], type = f32, size = a -> b (q4_K)"


@pytest.fixture(scope="session")
def llama():
    """(bindings, lines logged)"""
    from llama_cpp import llama_cpp as lib

    lines: list[str] = []
    hook = lib.llama_log_callback(lambda level, text, _: lines.append(text.decode(errors="replace")))
    lib.llama_log_set(hook, None)
    yield lib, lines
    lib.llama_log_set(ctypes.cast(None, type(hook)), None)


def file_type(lib, quant: str) -> int:
    """enum llama_ftype, from the bindings."""
    return getattr(lib, f"LLAMA_FTYPE_{'ALL' if quant == 'F32' else 'MOSTLY'}_{quant}")


def quantise(lib, source: Path, out: Path, quant: str, weights: dict[str, np.ndarray] | None = None, **options) -> bool:
    """Whether it worked. `weights`: an importance matrix."""
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = file_type(lib, quant), True, 1
    for name, value in options.items():
        setattr(params, name, value)
    if weights:
        array = (lib.llama_model_imatrix_data * (len(weights) + 1))()
        for slot, (name, v) in zip(array, weights.items(), strict=False):
            slot.name, slot.size = name.encode(), v.size
            slot.data = v.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = array
    return lib.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)) == 0


def chosen_types(
    llama, source: Path, quant: str, weights: dict[str, np.ndarray] | None = None
) -> dict[str, str] | None:
    """Type of each tensor that a dry run would convert; None when llama.cpp refuses."""
    lib, lines = llama
    lines.clear()
    worked = quantise(lib, source, source.with_suffix(".none"), quant, weights, dry_run=True)
    return {name: kind.upper() for name, kind in CHOSEN.findall("".join(lines))} if worked else None


def tensors(spec) -> dict[str, tuple[int, ...]]:
    named = dict(spec.globals)
    for i, b in enumerate(spec.blocks):
        named |= {f"blk.{i}.{role}": shape for role, shape in {**b.attn.tensors, **b.ffn.tensors}.items()}
    return named


def write_gguf(path: Path, spec) -> None:
    """Random float32 weights of a spec's shape, no vocabulary."""
    import gguf

    rng = np.random.default_rng(0)
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_context_length(spec.context_length_tokens)
    w.add_embedding_length(spec.hidden_size)
    w.add_block_count(spec.n_blocks)
    w.add_feed_forward_length(spec.intermediate_size)
    w.add_head_count(spec.n_heads)
    w.add_head_count_kv(spec.n_kv_heads)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(spec.head_dim)
    w.add_vocab_size(spec.vocab_size)
    w.add_tokenizer_model("no_vocab")
    for name, shape in tensors(spec).items():
        w.add_tensor(name, rng.standard_normal(shape, dtype=np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def contents(path: Path) -> dict[str, tuple[str, bytes]]:
    """Tensor name -> type and bytes."""
    from edgeprune.gguf_file import read_header

    out = {}
    for name, t in read_header(path).tensors.items():
        out[name] = t.type, np.fromfile(path, np.uint8, t.n_bytes, offset=t.offset).tobytes()
    return out
