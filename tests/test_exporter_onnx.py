"""ONNX folders against torch's logits, onnxruntime's own quantiser and onnxruntime-genai."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgeprune.errors import InputRejected, UsageError
from edgeprune.runtimes import onnxruntime as ort_runtime
from edgeprune.runtimes import transformers as torch_runtime
from exporters import _onnx_quant, onnx

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
QWEN_WINDOWS = {
    "use_sliding_window": True,
    "sliding_window": 24,
    "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
}
VARIANTS = [
    *[(f, {}) for f in FAMILIES],
    ("llama", {"tie_word_embeddings": False, "head_dim": 32}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3}),
    ("llama", {"num_key_value_heads": 4, "rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": YARN}),
    ("mistral", {"rope_parameters": LINEAR}),
    ("mistral", {"sliding_window": 16}),
    ("qwen2", QWEN_WINDOWS),
    ("qwen3", {**QWEN_WINDOWS, "head_dim": 48}),
]


def exported(folder: Path, out: Path, quant: str = "fp32", **provenance: str) -> Path:
    onnx.export(folder, out, quant, provenance, lambda label, fraction: None)
    return out


def open_onnx(path: Path, n_ctx: int = 256):
    return ort_runtime.open_session(path, n_ctx=n_ctx, n_threads=1)


def torch_logits(folder: Path, tokens: list[int]) -> np.ndarray:
    """One pass without a cache."""
    session = torch_runtime.open_session(folder, n_ctx=len(tokens), n_threads=1)
    try:
        return session.logits(tokens)
    finally:
        session.close()


def prompt(n: int = 100, vocab: int = 256) -> list[int]:
    return np.random.default_rng(5).integers(0, vocab, n).tolist()


def greedy(session, tokens: list[int], n: int) -> list[int]:
    session.reset()
    logits, out = session.prefill(tokens), []
    for _ in range(n):
        out.append(int(np.argmax(logits)))
        logits = session.decode(out[-1])
    return out


def kl(reference: np.ndarray, other: np.ndarray) -> float:
    """Mean KL(reference || other) in nats per token."""

    def log_probs(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

    p, q = log_probs(reference), log_probs(other)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


@pytest.mark.parametrize(("family", "overrides"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_fp32_equals_torch_with_and_without_cache(family, overrides, tiny_folder, tmp_path):
    folder = tiny_folder(family, **overrides)
    tokens = prompt()
    want = torch_logits(folder, tokens)
    session = open_onnx(exported(folder, tmp_path / "onnx"))
    scale = np.abs(want).max()
    assert np.abs(session.logits(tokens) - want).max() < 1e-5 * max(scale, 1)
    session.reset()
    assert np.abs(session.prefill(tokens[:40]) - want[39]).max() < 1e-5 * max(scale, 1)
    assert np.abs(session.prefill(tokens[40:70]) - want[69]).max() < 1e-5 * max(scale, 1)
    for i in range(70, 100):
        assert np.abs(session.decode(tokens[i]) - want[i]).max() < 1e-5 * max(scale, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_equals_torch(family, tiny_folder, tmp_path):
    folder = tiny_folder(family)
    reference = torch_runtime.open_session(folder, n_ctx=128, n_threads=1)
    ours = open_onnx(exported(folder, tmp_path / "onnx"), n_ctx=128)
    assert greedy(ours, prompt(20), 64) == greedy(reference, prompt(20), 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_with_fewer_layers(family, tiny_folder, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_folder(family), dtype=torch.float32)
    model.model.layers = torch.nn.ModuleList([model.model.layers[i] for i in (0, 3)])
    model.config.num_hidden_layers = 2
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:2]
    pruned = tmp_path / "pruned"
    model.save_pretrained(pruned)
    session = open_onnx(exported(pruned, tmp_path / "onnx"))
    assert session.n_blocks == 2
    assert json.loads((tmp_path / "onnx/genai_config.json").read_text())["model"]["decoder"]["num_hidden_layers"] == 2
    want = torch_logits(pruned, prompt(30))
    assert np.abs(session.logits(prompt(30)) - want).max() < 1e-5 * max(np.abs(want).max(), 1)


def test_long_positions_rotate_as_in_torch(tiny_folder, tmp_path):
    """The tables reach the end of the context, where float32 angles round hardest."""
    folder = tiny_folder("llama", n_blocks=2, max_position_embeddings=2048)
    tokens = prompt(2048)
    want = torch_logits(folder, tokens)
    got = open_onnx(exported(folder, tmp_path / "onnx"), n_ctx=2048).logits(tokens)
    assert np.abs(got - want)[-64:].max() < 1e-4


def test_files_provenance_and_no_links(tiny_folder, tmp_path):
    import onnx as onnx_library

    folder = tiny_folder("qwen2")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0], "temperature": 0.5}')
    out = exported(folder, tmp_path / "onnx", "int8", source="a/b", plan="0123")
    model = onnx_library.load(str(out / "model.onnx"), load_external_data=False)
    props = {p.key: p.value for p in model.metadata_props}
    assert props == {"edgeprune.source": "a/b", "edgeprune.plan": "0123", "edgeprune.quant": "int8"}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    written = list(out.iterdir())
    assert not any(p.is_symlink() or os.stat(p).st_nlink > 1 for p in written)
    assert not any(p.suffix == ".safetensors" for p in written)
    genai = json.loads((out / "genai_config.json").read_text())
    assert genai["model"]["eos_token_id"] == [2, 0] and genai["model"]["bos_token_id"] == 1
    assert genai["search"]["temperature"] == 0.5


def test_same_input_same_bytes(tiny_folder, tmp_path):
    folder = tiny_folder("qwen3")
    a, b = (exported(folder, tmp_path / n, "int4", k="v") for n in "ab")
    for p in a.iterdir():
        assert p.read_bytes() == (b / p.name).read_bytes(), p.name


@pytest.mark.parametrize(("quant", "bytes_per_32"), [("fp32", 128), ("fp16", 64), ("int8", 36), ("int4", 36)])
def test_a_tied_embedding_is_stored_once(quant, bytes_per_32, tiny_folder, tmp_path):
    """Untying adds one more matrix; tied and untied differ by exactly that. Small models keep 8 bits there."""
    sizes = [
        (
            exported(tiny_folder("llama", vocab_size=4096, tie_word_embeddings=t), tmp_path / str(t), quant)
            / "model.onnx.data"
        )
        .stat()
        .st_size
        for t in (True, False)
    ]
    matrix = 4096 * 64 // 32 * bytes_per_32
    assert matrix <= sizes[1] - sizes[0] <= matrix + 2 * 4096


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_laid_out_as_onnxruntime_reads_it(bits):
    """MatMulNBits and GatherBlockQuantized, given our bytes, see the matrix that `dequantise` computes."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(1).standard_normal((40, 96)).astype(np.float32)
    weight[0], weight[1, :32], weight[2, :32], weight[3, :32] = 0, 0.7, -0.7, np.arange(32)
    (rows,) = _onnx_quant.quantise(weight, bits)
    parts = {"packed": rows.packed, "scales": rows.scales} | ({} if rows.zeros is None else {"zeros": rows.zeros})
    flat = {**parts, "packed": rows.packed.reshape(40, -1)}
    attributes = dict(domain="com.microsoft", bits=bits, block_size=32)
    nodes = [
        helper.make_node("MatMulNBits", ["x", *parts], ["product"], N=40, K=96, **attributes),
        helper.make_node(
            "GatherBlockQuantized",
            ["f_packed", "ids", *[f"f_{k}" for k in list(flat)[1:]]],
            ["rows"],
            gather_axis=0,
            quantize_axis=1,
            **attributes,
        ),
    ]
    tensors = [numpy_helper.from_array(v, k) for k, v in parts.items()]
    tensors += [numpy_helper.from_array(v, f"f_{k}") for k, v in flat.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [96, 96])
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [40])
    outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("product", "rows")]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x, ids], outs, tensors), opset_imports=opsets, ir_version=10
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    product, gathered = session.run(None, {"x": np.eye(96, dtype=np.float32), "ids": np.arange(40)})
    mine = _onnx_quant.dequantise(rows)
    np.testing.assert_allclose(product.T, mine, atol=1e-6)
    np.testing.assert_allclose(gathered, mine, atol=1e-6)
    assert np.array_equal(mine[0], np.zeros(96)) and np.allclose(mine[1:3, :32], weight[1:3, :32])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["normal", "heavy", "shifted"])
def test_rounding_is_no_worse_than_onnxruntimes(bits, kind):
    from onnxruntime.capi import _pybind_state

    rng = np.random.default_rng(2)
    weight = {
        "normal": rng.standard_normal((64, 640)),
        "heavy": rng.standard_t(4, (64, 640)),
        "shifted": rng.standard_normal((64, 640)) + 2,
    }[kind].astype(np.float32)
    mine = np.concatenate([_onnx_quant.dequantise(r) for r in _onnx_quant.quantise(weight, bits)])
    theirs = {}
    for symmetric in (True, False):
        packed = np.zeros((64, 20, 4 * bits), np.uint8)
        scales, zeros = np.zeros((64, 20), np.float32), np.zeros((64, 20 * bits // 8), np.uint8)
        function = getattr(_pybind_state, f"quantize_matmul_{bits}bits")
        function(packed, np.ascontiguousarray(weight.T), scales, zeros, 32, 64, 640, symmetric)
        q = packed if bits == 8 else _onnx_quant._unpack(packed)
        if symmetric:
            z = np.full((64, 20), 2 ** (bits - 1))
        else:
            z = zeros if bits == 8 else _onnx_quant._unpack(zeros)
        theirs[symmetric] = ((q.astype(np.float32) - z[..., None]) * scales[..., None]).reshape(64, 640)
    errors = {k: float(((v - weight) ** 2).mean()) for k, v in {**theirs, "mine": mine}.items()}
    if bits == 8:
        assert (np.abs(mine - theirs[True]) > 1e-6).mean() < 1e-3  # ties may fall either way
        assert errors["mine"] < 1.0001 * errors[True]
    else:
        assert errors["mine"] < 0.98 * min(errors[True], errors[False])


@pytest.mark.parametrize(("quant", "bound"), [("fp16", 1e-3), ("int8", 3e-3), ("int4", 0.2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_stays_near_torch(family, quant, bound, tiny_folder, tmp_path):
    folder = tiny_folder(family)
    session = open_onnx(exported(folder, tmp_path / "onnx", quant))
    want = torch_logits(folder, prompt(60))
    got = session.logits(prompt(60))
    assert got.dtype == np.float32
    assert 0 <= kl(want, got) < bound
    session.reset()
    cached = np.stack([session.prefill(prompt(60)[:50]).copy(), *[session.decode(t).copy() for t in prompt(60)[50:]]])
    assert kl(want[49:], cached) < bound


def test_large_models_keep_four_bits_everywhere(tiny_folder, tmp_path, monkeypatch):
    folder = tiny_folder("llama", vocab_size=4096)
    small = exported(folder, tmp_path / "small", "int4")
    monkeypatch.setattr(onnx, "_SMALL_PARAMS", 0)
    large = exported(folder, tmp_path / "large", "int4")
    saved = (small / "model.onnx.data").stat().st_size - (large / "model.onnx.data").stat().st_size
    assert saved == 4096 * 64 // 32 * 36 - 4096 * (64 // 32 * 20 + 1)
    want = torch_logits(folder, prompt(60))
    assert kl(want, open_onnx(small).logits(prompt(60))) < kl(want, open_onnx(large).logits(prompt(60))) < 0.2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quant", ["fp32", "int4"])
def test_genai_opens_the_folder_and_generates_the_same(family, quant, tiny_folder, tmp_path):
    out = exported(tiny_folder(family, **(QWEN_WINDOWS if family == "qwen2" else {})), tmp_path / "onnx", quant)
    assert genai_greedy(out, prompt(30), 64) == greedy(open_onnx(out), prompt(30), 64)


def genai_greedy(folder: Path, tokens: list[int], n: int) -> list[int]:
    import onnxruntime_genai as genai

    model = genai.Model(str(folder))
    params = genai.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(tokens) + n, min_length=len(tokens) + n)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array([tokens], np.int32))
    out = []
    while len(out) < n:
        generator.generate_next_token()
        out.append(int(generator.get_next_tokens()[0]))
    return out


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "overrides", "quant", "words"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "fp32", "dynamic"),
        ("llama", {"hidden_act": "gelu"}, "fp32", "gelu"),
        ("llama", {"head_dim": 24}, "fp32", "multiples of 16"),
        ("llama", {"intermediate_size": 72}, "int8", "divisible by 32"),
    ],
)
def test_refuses_before_writing(family, overrides, quant, words, tiny_folder, tmp_path):
    folder = tiny_folder(family, n_blocks=1, **overrides)
    with pytest.raises(InputRejected, match=words):
        onnx.check(folder, quant)
    with pytest.raises(InputRejected, match=words):
        exported(folder, tmp_path / "onnx", quant)
    assert not (tmp_path / "onnx").exists()


def test_refuses_unknown_quant_and_foreign_tensors(tiny_folder, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "copy")
    with pytest.raises(UsageError, match="int8"):
        onnx.check(folder, "q4")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.layers.0.mlp.gate.weight": np.zeros(3, np.float32)}, folder / "model.safetensors")
    with pytest.raises(InputRejected, match="mlp.gate.weight"):
        onnx.check(folder, "fp32")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputRejected, match="layers.2.mlp.up_proj"):
        onnx.check(folder, "fp32")


def test_refuses_values_that_overflow(tiny_folder, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * np.float32(1e6)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputRejected, match="float16"):
        exported(folder, tmp_path / "half", "fp16")
    exported(folder, tmp_path / "full", "fp32")


# --- the real model -----------------------------------------------------------------------------


def english(session, n: int) -> list[int]:
    from pydoc_data.topics import topics

    return session.tokenize(topics["assert"] + topics["class"] + topics["compound"])[:n]


@pytest.mark.slow
def test_smollm2(smollm2_folder, tmp_path):
    reference = torch_runtime.open_session(smollm2_folder, n_ctx=512, n_threads=2)
    tokens = english(reference, 300)
    want = reference.logits(tokens)
    folders = {q: exported(smollm2_folder, tmp_path / q, q) for q in ("fp32", "int8", "int4")}
    ours = open_onnx(folders["fp32"], n_ctx=512)
    assert np.abs(ours.prefill(tokens[:64]) - want[63]).max() < 1e-4
    text = greedy(ours, tokens[:64], 64)
    assert genai_greedy(folders["fp32"], tokens[:64], 64) == text
    steps = reference.logits(tokens[:64] + text)[63:-1]  # what torch would have said at each step
    assert steps.argmax(axis=-1).tolist() == text
    assert kl(want, ours.logits(tokens)) < 1e-7
    assert kl(want, open_onnx(folders["int8"]).logits(tokens)) < 0.01
    assert kl(want, open_onnx(folders["int4"]).logits(tokens)) < 0.4
