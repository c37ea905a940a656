"""Every family, whole and pruned, to ONNX: against torch, in onnxruntime and in onnxruntime-genai."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from _exported import cut
from _onnx import exported, genai_greedy, greedy, kl, open_onnx, open_torch, prompt
from conftest import FAMILIES

from edgeprune import families
from edgeprune.catalog import load
from exporters import _onnx_quant, onnx

PLANS = {"whole": None, "layers": "0-1 4", "seam": "0 1:3 4", "irregular": "-:0 1:- 2 3:- -:4"}
OFTEN = ("whole", "irregular", "int4-mixed")  # in the fast tests
NO_END = 319  # a token that tiny models do not say: genai stops at the end token


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plan", [pytest.param(p, marks=() if p in OFTEN else pytest.mark.slow) for p in PLANS])
def test_logits_and_greedy_text_equal_torch(family, plan, tiny_folder, tmp_path):
    """Prompts are longer than any window; the text is generated with a cache, in both runtimes."""
    folder = tiny_folder(family, eos_token_id=NO_END)
    if PLANS[plan]:
        folder = cut(folder, tmp_path / "cut", PLANS[plan])
    d = families.decoder(json.loads((folder / "config.json").read_text()))
    assert all(w is None or w < 40 for w in d.windows)
    reference, tokens = open_torch(folder), prompt()
    want, text = reference.logits(tokens), greedy(reference, tokens[:40], 64)
    out = exported(folder, tmp_path / "onnx")
    session = open_onnx(out)
    assert np.abs(want).max() > 0.5 and session.n_blocks == d.n_blocks
    assert np.abs(session.logits(tokens) - want).max() < 1e-4
    session.reset()
    assert np.abs(session.prefill(tokens[:40]) - want[39]).max() < 1e-4
    assert np.abs(session.prefill(tokens[40:70]) - want[69]).max() < 1e-4
    for i in range(70, 100):
        assert np.abs(session.decode(tokens[i]) - want[i]).max() < 1e-4
    assert greedy(session, tokens[:40], 64) == text
    assert genai_greedy(out, tokens[:40], 64) == text


def test_a_block_without_attention_has_no_cache(tiny_folder, tmp_path):
    """Caches are numbered without gaps; memory for them and the weights of missing halves are not there."""
    whole = tiny_folder("llama")
    pruned = cut(whole, tmp_path / "cut", PLANS["irregular"])
    sessions = [open_onnx(exported(f, tmp_path / n)) for f, n in ((whole, "whole"), (pruned, "pruned"))]
    names = [[i.name for i in s._ort.get_inputs() if i.name.endswith("key")] for s in sessions]
    assert names[1] == [f"past_key_values.{i}.key" for i in range(3)] and len(names[0]) == 5
    cached = [sum(np.prod(v.shape()) for v in s._cache) for s in sessions]
    assert cached[1] == cached[0] * 3 // 5
    genai = json.loads((tmp_path / "pruned" / "genai_config.json").read_text())
    assert genai["model"]["decoder"]["num_hidden_layers"] == 3
    attn, ffn = 64 * 64 * 2 + 32 * 64 * 2 + 64, 3 * 64 * 96 + 64
    sizes = [(tmp_path / n / "model.onnx.data").stat().st_size for n in ("whole", "pruned")]
    assert 1 <= (sizes[0] - sizes[1]) / (4 * (2 * attn + 2 * ffn)) < 1.08  # matrices start on pages


QUANTS = {"fp16": 1e-4, "int8": 0.02, "int4-mixed": 0.25, "int4": 0.6}  # Gemma's large activations lose most


@pytest.mark.parametrize("quant", [pytest.param(q, marks=() if q in OFTEN else pytest.mark.slow) for q in QUANTS])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_computes_with_the_rounded_weights(family, quant, tiny_folder, tmp_path):
    """Far nearer to torch on the weights as the graph rounds them than to the whole model; what is left between them
    is activations in 8 bits, which is more than weights in 8 bits lose."""
    folder = tiny_folder(family)
    want = open_torch(folder).logits(prompt(60))
    rounded = open_torch(with_rounded_weights(folder, tmp_path / "rounded", quant)).logits(prompt(60))
    session = open_onnx(exported(folder, tmp_path / "onnx", quant))
    got = session.logits(prompt(60))
    assert got.dtype == np.float32
    limit = kl(want, got) * {"fp16": 1.0, "int8": 0.5}.get(quant, 0.1)
    assert 0 <= kl(rounded, got) <= limit < kl(want, got) + 1e-9 < QUANTS[quant]
    session.reset()
    cached = np.stack([session.prefill(prompt(60)[:50]).copy(), *[session.decode(t).copy() for t in prompt(60)[50:]]])
    assert kl(rounded[49:], cached) <= 2 * limit


def with_rounded_weights(folder: Path, out: Path, quant: str) -> Path:
    """The folder with each matrix as the graph holds it."""
    from safetensors.numpy import load_file, save_file

    out.mkdir()
    config = json.loads((folder / "config.json").read_text())
    module = load("edgeprune.families", families.key(families.for_model_type(config["model_type"])))
    weights, d = load_file(folder / "model.safetensors"), families.decoder(config)
    for name, where in families.place(module, d, {n: w.shape for n, w in weights.items()}, folder).items():
        bits = onnx.matrix_bits(quant, where.role, where.layer or 0, d.n_blocks)
        if bits and weights[name].ndim == 2:
            parts = _onnx_quant.quantise(weights[name], bits)
            weights[name] = np.concatenate([_onnx_quant.dequantise(p) for p in parts])
        elif quant == "fp16" and weights[name].ndim == 2:
            weights[name] = weights[name].astype(np.float16).astype(np.float32)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((folder / name).read_bytes())
    return out
