"""ONNX folders against torch's logits, onnxruntime's own quantiser and onnxruntime-genai."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from _exported import cut
from _onnx import exported, genai_greedy, greedy, kl, open_onnx, open_torch, prompt

from edgeprune.errors import InputRejected, UsageError
from exporters import _onnx_quant, onnx

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
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.5,
    "short_factor": [1 + i / 10 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}
PHI4 = {"rope_parameters": LONGROPE, "hidden_size": 128, "head_dim": 32, "original_max_position_embeddings": 64}
GEMMA_27B = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
}
VARIANTS = {
    "untied, wide heads": ("llama", {"tie_word_embeddings": False, "head_dim": 32}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3}),
    "llama3": ("llama", {"num_key_value_heads": 4, "rope_parameters": LLAMA3}),
    "yarn": ("llama", {"rope_parameters": YARN}),
    "linear": ("mistral", {"rope_parameters": LINEAR}),
    "window": ("mistral", {"sliding_window": 16}),
    "windows by layer": ("qwen2", QWEN_WINDOWS),
    "windows, odd heads": ("qwen3", {**QWEN_WINDOWS, "head_dim": 48}),
    "rope by layer": ("gemma3", {"rope_parameters": GEMMA_27B, "final_logit_softcapping": 20.0}),
    "no caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "longrope": ("phi3", PHI4),
    "NoPE with windows": ("smollm3", {"use_sliding_window": True, "sliding_window": 16}),
    "untied, scaled": ("granite", {"tie_word_embeddings": False, "attention_bias": True}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_fp32_equals_torch_with_and_without_cache(variant, tiny_folder, tmp_path):
    """Longrope's factors change at 64 tokens: logits and cache follow torch across it."""
    family, overrides = VARIANTS[variant]
    folder = tiny_folder(family, **overrides)
    reference, tokens = open_torch(folder), prompt()
    want = reference.logits(tokens)
    session = open_onnx(exported(folder, tmp_path / "onnx"))
    assert np.abs(session.logits(tokens) - want).max() < 1e-5 * max(np.abs(want).max(), 1)
    for s in (session, reference):
        s.reset()
    for part in (tokens[:40], tokens[40:60], *([t] for t in tokens[60:80])):
        assert np.abs(session.prefill(part) - reference.prefill(part)).max() < 1e-5 * max(np.abs(want).max(), 1)


def test_long_positions_rotate_as_in_torch(tiny_folder, tmp_path):
    """The tables reach the end of the context, where float32 angles round hardest."""
    folder = tiny_folder("llama", n_blocks=2, max_position_embeddings=2048)
    tokens = prompt(2048)
    want = open_torch(folder, n_ctx=2048).logits(tokens)
    got = open_onnx(exported(folder, tmp_path / "onnx"), n_ctx=2048).logits(tokens)
    assert np.abs(got - want)[-64:].max() < 1e-4


def test_files_provenance_and_no_links(tiny_folder, tmp_path):
    import onnx as onnx_library

    folder = shutil.copytree(tiny_folder("qwen2"), tmp_path / "copy")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0], "temperature": 0.5}')
    out = exported(folder, tmp_path / "onnx", "int8", source="a/b", plan="0123")
    model = onnx_library.load(str(out / "model.onnx"), load_external_data=False)
    props = {p.key: p.value for p in model.metadata_props}
    assert props == {
        f"edgeprune.{k}": v for k, v in (("source", "a/b"), ("plan", "0123"), ("blocks", "5"), ("quant", "int8"))
    }
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


@pytest.mark.parametrize(
    ("quant", "bytes_per_32"), [("fp32", 128), ("fp16", 64), ("int8", 36), ("int4-mixed", 36), ("int4", 20.5)]
)
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
    matrix = 4096 * 64 / 32 * bytes_per_32
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


def test_mixed_keeps_eight_bits_where_llama_cpp_would_and_for_queries_keys_and_values(tiny_folder, tmp_path):
    """use_more_bits of llama.cpp's quantiser says of 16 blocks: 0, 1, 4, 7, 10, 13, 14, 15."""
    import onnx as onnx_library

    folder = tiny_folder("llama", n_blocks=16, tie_word_embeddings=False)
    out = exported(folder, tmp_path / "onnx", "int4-mixed")
    model = onnx_library.load(str(out / "model.onnx"), load_external_data=False)
    bits = {n.name: a.i for n in model.graph.node for a in n.attribute if a.name == "bits"}
    eight = {f"/layers.{i}/ffn_down" for i in (0, 1, 4, 7, 10, 13, 14, 15)} | {"/embed", "logits"}
    eight |= {f"/layers.{i}/attn_qkv" for i in range(16)}
    assert {name for name, b in bits.items() if b == 8} == eight
    assert set(bits.values()) == {4, 8} and len(bits) == 5 * 16 + 2


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "overrides", "quant", "words"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "fp32", "dynamic"),
        ("llama", {"hidden_act": "gelu"}, "fp32", "gelu"),
        ("llama", {"head_dim": 24}, "fp32", "multiples of 16"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "fp32",
            "8 of each head",
        ),
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


@pytest.mark.parametrize(
    ("name", "value", "quant", "words"),
    [
        ("model.norm.weight", 1e6, "fp16", "beyond float16"),
        ("model.norm.weight", np.nan, "fp32", "NaN"),
        ("model.layers.1.mlp.up_proj.weight", np.nan, "int4", "layers.1/ffn_up.weight holds NaN"),
        ("model.layers.1.mlp.up_proj.weight", np.inf, "int8", "infinite"),
        ("model.embed_tokens.weight", -np.inf, "int4", "embed holds NaN"),
    ],
)
def test_refuses_values_that_no_number_holds(name, value, quant, words, tiny_folder, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    weights[name].flat[5] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputRejected, match=words):
        exported(folder, tmp_path / "onnx", quant)


def test_refuses_a_plan_without_any_attention(tiny_folder, tmp_path):
    folder = cut(tiny_folder("llama", n_blocks=2), tmp_path / "cut", "-:0 -:1")
    with pytest.raises(InputRejected, match="no block has attention"):
        onnx.check(folder, "fp32")


# --- the real model -----------------------------------------------------------------------------


def english(session, n: int) -> list[int]:
    from pydoc_data.topics import topics

    return session.tokenize(topics["assert"] + topics["class"] + topics["compound"])[:n]


@pytest.mark.slow
def test_smollm2(smollm2_folder, tmp_path):
    reference = open_torch(smollm2_folder, n_ctx=512)
    tokens = english(reference, 300)
    want = reference.logits(tokens)
    folders = {q: exported(smollm2_folder, tmp_path / q, q) for q in onnx.QUANTS if q != "fp16"}
    ours = open_onnx(folders["fp32"], n_ctx=512)
    assert np.abs(ours.prefill(tokens[:64]) - want[63]).max() < 1e-4
    text = greedy(ours, tokens[:64], 64)
    assert genai_greedy(folders["fp32"], tokens[:64], 64) == text
    steps = reference.logits(tokens[:64] + text)[63:-1]  # what torch would have said at each step
    assert steps.argmax(axis=-1).tolist() == text
    assert kl(want, ours.logits(tokens)) < 1e-7
    assert kl(want, open_onnx(folders["int8"], n_ctx=512).logits(tokens)) < 0.01
    mixed, four = (kl(want, open_onnx(folders[q], n_ctx=512).logits(tokens)) for q in ("int4-mixed", "int4"))
    assert mixed < 0.1 and 3 * mixed < four < 0.5
