"""A transformers folder to ONNX that plain onnxruntime and onnxruntime-genai both open.

The graph is written operator by operator (no tracing), one tensor in memory at a time:
GroupQueryAttention with rotation and KV cache inside, (Skip)SimplifiedLayerNormalization, MatMulNBits.

Inputs input_ids, attention_mask, past_key_values.N.key/value; outputs logits, present.N.key/value,
caches [batch, kv_heads, tokens, head_dim]. Logits are of the last position only, as llama.cpp computes them in
a prompt: the node LAST picks it, and a reader that wants every position takes that node out (the onnxruntime
runtime does, for perplexity).

Quants: fp32; fp16 (logits and cache too); int8 and int4: blocks of 32 with float32 scales, int4 with zero points,
float32 cache. Below 0.5 G parameters int4 keeps embedding and output head at 8 bits: there they are a large part
of the model and 4 bits hurt them most.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.checkpoint import Checkpoint, open_checkpoint, read_tensor
from edgeprune.errors import InputRejected, UsageError
from edgeprune.families import for_model_type
from exporters import PLAIN, Options
from exporters._onnx_config import carry, genai_config, read_generation
from exporters._onnx_graph import GraphWriter
from exporters._onnx_quant import BLOCK
from exporters._onnx_rope import check_rope, rope_tables

SUFFIX = ""
RUNTIME = "onnxruntime"
QUANTS = ("fp32", "fp16", "int8", "int4")
_BITS = {"fp32": None, "fp16": None, "int8": 8, "int4": 4}
_SMALL_PARAMS = 500_000_000
LAST = "/lm_head/last"


def check(folder: Path, quant: str, options: Options = PLAIN) -> None:
    """Can this folder be exported? Reads headers only.

    Raises UsageError for an unknown quant, InputRejected for a model that the graph can't hold.
    """
    _refuse(options)
    _open(Path(folder), quant)


def export(
    folder: Path, out: Path, quant: str, provenance: dict[str, str], progress: Callable[[str, float], None],
    options: Options = PLAIN,
) -> None:  # fmt: skip
    """Write the ONNX folder `out` (created here). `provenance` goes to the model's metadata as edgeprune.<key>.

    `progress` gets a label and the fraction done. Raises as `check`, and InputRejected for weights that overflow.
    """
    folder, out = Path(folder), Path(out)
    _refuse(options)
    checkpoint, config = _open(folder, quant)
    out.mkdir()
    graph = GraphWriter(out, np.float16 if quant == "fp16" else np.float32)
    try:
        _decoder(graph, checkpoint, config, quant, progress)
    finally:
        graph.close()
    metadata = {f"edgeprune.{k}": v for k, v in {**provenance, "quant": quant}.items()}
    _save(graph, config, out / "model.onnx", metadata)
    carry(folder, out)
    text = json.dumps(genai_config(config, read_generation(folder), _head_dim(config)), indent=4)
    (out / "genai_config.json").write_text(text + "\n", encoding="utf-8")
    progress("written", 1.0)


def _refuse(options: Options) -> None:
    for flag, value in (("--imatrix", options.imatrix), ("--tokenizer-pre", options.tokenizer_pre)):
        if value is not None:
            raise UsageError(f"{flag} is for GGUF; ONNX exports have no use for it")


def _open(folder: Path, quant: str) -> tuple[Checkpoint, Any]:
    """Headers and the config with transformers' defaults filled in; raises for what can't be exported."""
    if quant not in QUANTS:
        raise UsageError(f"onnx has no quant {quant!r}; choose one of {', '.join(QUANTS)}")
    checkpoint = open_checkpoint(folder)
    for_model_type(checkpoint.config["model_type"])
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as e:
        raise InputRejected(f"{folder}/config.json is not usable: {str(e).splitlines()[0]}") from None
    check_rope(config.rope_parameters)
    if config.hidden_act != "silu":
        raise InputRejected(f"{folder}: activation {config.hidden_act!r} can't be written to ONNX; only silu is known")
    if _head_dim(config) % 16:  # GroupQueryAttention refuses other head sizes, but only when it runs
        raise InputRejected(
            f"{folder}: heads of {_head_dim(config)} do not suit onnxruntime (multiples of 16 do); use GGUF"
        )
    sizes = {config.hidden_size, config.intermediate_size, config.num_attention_heads * _head_dim(config)}
    if _BITS[quant] and any(s % BLOCK for s in sizes):
        raise InputRejected(f"{folder}: {quant} needs widths divisible by {BLOCK}, found {sorted(sizes)}; use fp32")
    _check_tensors(checkpoint, config)
    return checkpoint, config


def _check_tensors(checkpoint: Checkpoint, config: Any) -> None:
    """Every weight the graph needs is there in the config's shape, and nothing is there that it would leave out."""
    h, f, d = config.hidden_size, config.intermediate_size, _head_dim(config)
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    rows = {"q_proj": (q, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, q)}
    shapes = {f"self_attn.{k}.weight": v for k, v in rows.items()}
    shapes |= {"mlp.gate_proj.weight": (f, h), "mlp.up_proj.weight": (f, h), "mlp.down_proj.weight": (h, f)}
    optional = {k.replace(".weight", ".bias"): v[:1] for k, v in shapes.items()}
    optional |= {"self_attn.q_norm.weight": (d,), "self_attn.k_norm.weight": (d,)}
    shapes |= {"input_layernorm.weight": (h,), "post_attention_layernorm.weight": (h,)}
    want = {_layer(i) + k: v for i in range(config.num_hidden_layers) for k, v in shapes.items()}
    want |= {"model.embed_tokens.weight": (config.vocab_size, h), "model.norm.weight": (h,)}
    may = {_layer(i) + k: v for i in range(config.num_hidden_layers) for k, v in optional.items()}
    (may if config.tie_word_embeddings else want)["lm_head.weight"] = (config.vocab_size, h)
    for name, shape in want.items():
        if name not in checkpoint.tensors:
            raise InputRejected(f"{checkpoint.folder}: tensor {name!r} is missing; is config.json of another model?")
        if checkpoint.tensors[name].shape != shape:
            found = checkpoint.tensors[name].shape
            raise InputRejected(f"{checkpoint.folder}: {name!r} is {list(found)}, config.json says {list(shape)}")
    for name, entry in checkpoint.tensors.items():
        if name not in want and may.get(name) != entry.shape and not name.endswith("rotary_emb.inv_freq"):
            raise InputRejected(f"{checkpoint.folder}: tensor {name!r} has no place in the ONNX graph of this family")


def _decoder(
    graph: GraphWriter, ck: Checkpoint, config: Any, quant: str, progress: Callable[[str, float], None]
) -> None:
    bits = _BITS[quant]
    n_params = sum(int(np.prod(e.shape)) for e in ck.tensors.values())
    head_bits = 8 if bits == 4 and n_params < _SMALL_PARAMS else bits
    n_blocks, tied = config.num_hidden_layers, config.tie_word_embeddings
    progress("embedding", 0.0)
    x = graph.embedding("input_ids", "embed", read_tensor(ck, "model.embed_tokens.weight"), "/embed", head_bits)
    _positions(graph, config)
    added = None
    for i in range(n_blocks):
        progress(f"block {i + 1}/{n_blocks}", (i + 1) / (n_blocks + 2))
        x, added = _block(graph, ck, config, i, x, added, bits)
    _, normed = _norm(graph, ck, config, "model.norm.weight", x, added, "/norm")
    last = graph.node("Gather", [normed, graph.constant("last_position", [-1])], LAST, domain="", axis=1)
    if not tied:
        graph.linear(last, "lm_head", [read_tensor(ck, "lm_head.weight")], "logits", head_bits)
    elif head_bits:
        graph.matmul_nbits(last, "embed", config.vocab_size, config.hidden_size, "logits", head_bits)
    else:  # transB reads the embedding as stored, so the file holds it once
        graph.node("FusedMatMul", [last, "embed"], "logits", transB=1)


def _positions(graph: GraphWriter, config: Any) -> None:
    """From the mask: each sequence's last position and the total length, int32; and the rotation tables."""
    from onnx import TensorProto

    mask, one = "attention_mask", graph.constant("one", [1])
    length = graph.node("ReduceSum", [mask, one], "/mask/length", domain="", keepdims=0)
    last = graph.node("Sub", [length, one], "/mask/last", domain="")
    graph.node("Cast", [last], "seqlens_k", domain="", to=TensorProto.INT32)
    shape = graph.node("Shape", [mask], "/mask/shape", domain="")
    total = graph.node("Gather", [shape, graph.constant("axis_one", 1)], "/mask/total", domain="", axis=0)
    graph.node("Cast", [total], "total_sequence_length", domain="", to=TensorProto.INT32)
    tables = rope_tables(config.rope_parameters, _head_dim(config), config.max_position_embeddings)
    for name, table in zip(("cos_cache", "sin_cache"), tables, strict=True):
        graph.tensor(name, table.shape, [table])


def _block(
    graph: GraphWriter, ck: Checkpoint, config: Any, i: int, x: str, added: str | None, bits: int | None
) -> tuple[str, str]:
    """One block; returns the residual stream before the feed-forward's output, and that output to be added."""
    at, here = f"/layers.{i}", _layer(i)
    x, normed = _norm(graph, ck, config, here + "input_layernorm.weight", x, added, f"{at}/attn_norm")
    attended = _attention(graph, ck, config, i, normed, bits)
    out = _linear(graph, ck, here, ["self_attn.o_proj"], attended, f"{at}/attn_output", bits)
    x, normed = _norm(graph, ck, config, here + "post_attention_layernorm.weight", x, out, f"{at}/ffn_norm")
    gate = _linear(graph, ck, here, ["mlp.gate_proj"], normed, f"{at}/ffn_gate", bits)
    up = _linear(graph, ck, here, ["mlp.up_proj"], normed, f"{at}/ffn_up", bits)
    sigmoid = graph.node("Sigmoid", [gate], f"{at}/ffn_sigmoid", domain="")
    silu = graph.node("Mul", [gate, sigmoid], f"{at}/ffn_silu", domain="")
    gated = graph.node("Mul", [silu, up], f"{at}/ffn_gated", domain="")
    return x, _linear(graph, ck, here, ["mlp.down_proj"], gated, f"{at}/ffn_down", bits)


def _attention(graph: GraphWriter, ck: Checkpoint, config: Any, i: int, x: str, bits: int | None) -> str:
    """GroupQueryAttention on packed queries, keys and values, or on separate ones where heads are normed (Qwen3)."""
    at, here = f"/layers.{i}", _layer(i)
    names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    if here + "self_attn.q_norm.weight" in ck.tensors:
        q, k, v = (_linear(graph, ck, here, [n], x, f"{at}/{n[10]}", bits) for n in names)
        q = _head_norm(graph, ck, config, here + "self_attn.q_norm.weight", q, config.num_attention_heads)
        k = _head_norm(graph, ck, config, here + "self_attn.k_norm.weight", k, config.num_key_value_heads)
    else:
        q, k, v = _linear(graph, ck, here, names, x, f"{at}/qkv", bits), "", ""
    past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
    window = _window(config, i)
    attributes = {} if window is None else {"local_window_size": window}
    graph.node(
        "GroupQueryAttention",
        [q, k, v, *past, "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache"],
        [f"{at}/attn", f"present.{i}.key", f"present.{i}.value"],
        num_heads=config.num_attention_heads,
        kv_num_heads=config.num_key_value_heads,
        do_rotary=1,
        **attributes,
    )
    return f"{at}/attn"


def _linear(graph: GraphWriter, ck: Checkpoint, here: str, names: list[str], x: str, out: str, bits: int | None) -> str:
    """x @ Wᵀ (+ b), several projections stacked into one."""
    weights = [read_tensor(ck, f"{here}{n}.weight") for n in names]
    biased = [f"{here}{n}.bias" in ck.tensors for n in names]
    if not any(biased):
        return graph.linear(x, f"{out}.weight", weights, out, bits)
    product = graph.linear(x, f"{out}.weight", weights, f"{out}_product", bits)
    biases = [
        read_tensor(ck, f"{here}{n}.bias") if b else np.zeros(w.shape[0], np.float32)
        for n, b, w in zip(names, biased, weights, strict=True)
    ]
    graph.tensor(f"{out}.bias", (sum(len(b) for b in biases),), biases)
    return graph.node("Add", [product, f"{out}.bias"], out, domain="")


def _norm(
    graph: GraphWriter, ck: Checkpoint, config: Any, weight: str, x: str, added: str | None, out: str
) -> tuple[str, str]:
    """(stream, RMS norm of it) where stream is x, plus `added` if there is something to add."""
    scale = graph.tensor(f"{out}.weight", (config.hidden_size,), [read_tensor(ck, weight)])
    epsilon = config.rms_norm_eps
    if added is None:
        attributes = dict(epsilon=epsilon, axis=-1, stash_type=1)
        return x, graph.node("SimplifiedLayerNormalization", [x, scale], out, "", **attributes)
    graph.node("SkipSimplifiedLayerNormalization", [x, added, scale], [out, "", "", f"{out}_sum"], epsilon=epsilon)
    return f"{out}_sum", out


def _head_norm(graph: GraphWriter, ck: Checkpoint, config: Any, weight: str, x: str, n_heads: int) -> str:
    """RMS norm over each head of x (batch, tokens, heads·head_dim)."""
    d = _head_dim(config)
    scale = graph.tensor(f"{x}_norm.weight", (d,), [read_tensor(ck, weight)])
    heads = graph.node("Reshape", [x, graph.constant(f"heads_{n_heads}", [0, 0, n_heads, d])], f"{x}_heads", domain="")
    attributes = dict(epsilon=config.rms_norm_eps, axis=-1, stash_type=1)
    normed = graph.node("SimplifiedLayerNormalization", [heads, scale], f"{x}_norm", "", **attributes)
    flat = graph.constant(f"flat_{n_heads}", [0, 0, n_heads * d])
    return graph.node("Reshape", [normed, flat], f"{x}_flat", domain="")


def _save(graph: GraphWriter, config: Any, path: Path, metadata: dict[str, str]) -> None:
    from onnx import TensorProto, helper

    f = helper.np_dtype_to_tensor_dtype(graph.float_type)
    n_kv, d = config.num_key_value_heads, _head_dim(config)

    def value(name: str, kind: int, *dims: int | str) -> Any:
        return helper.make_tensor_value_info(name, kind, dims)

    inputs = [value("input_ids", TensorProto.INT64, "batch_size", "sequence_length")]
    inputs.append(value("attention_mask", TensorProto.INT64, "batch_size", "total_sequence_length"))
    outputs = [value("logits", f, "batch_size", 1, config.vocab_size)]
    for i in range(config.num_hidden_layers):
        for part in ("key", "value"):
            inputs.append(value(f"past_key_values.{i}.{part}", f, "batch_size", n_kv, "past_sequence_length", d))
            outputs.append(value(f"present.{i}.{part}", f, "batch_size", n_kv, "total_sequence_length", d))
    made = helper.make_graph(graph.nodes, "decoder", inputs, outputs, graph.initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=10, producer_name="edgeprune")
    helper.set_model_props(model, dict(sorted(metadata.items())))
    path.write_bytes(model.SerializeToString(deterministic=True))


def _window(config: Any, i: int) -> int | None:
    """Tokens that block i attends to, itself included; None = all. `layer_types` decides where a config has it."""
    if getattr(config, "sliding_window", None) is None:
        return None
    kinds = getattr(config, "layer_types", None)
    return config.sliding_window if kinds is None or kinds[i] == "sliding_attention" else None


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _layer(i: int) -> str:
    return f"model.layers.{i}."
