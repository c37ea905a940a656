"""A transformers folder to ONNX that plain onnxruntime and onnxruntime-genai both open.

The graph is written operator by operator (no tracing), one tensor in memory at a time:
GroupQueryAttention with rotation and KV cache inside, (Skip)SimplifiedLayerNormalization, MatMulNBits.

Inputs input_ids, attention_mask, past_key_values.N.key/value; outputs logits, present.N.key/value,
caches [batch, kv_heads, tokens, head_dim]. N counts attentions: a block without attention has no cache, and the
numbers have no gaps, so that every reader finds them. Logits are of the last position only, as llama.cpp computes
them in a prompt: the node LAST picks it, and a reader that wants every position takes that node out (the onnxruntime
runtime does, for perplexity).

Quants: fp32; fp16 (logits and cache too); int8, int4-mixed and int4 in blocks of 32 with float32 scales (and 4-bit
zero points where 4 bits), float32 cache. SmolLM2-135M against torch, 2048 tokens: KL 0.004 int8 (157 MB), 0.07
int4-mixed (120 MB), 0.31 int4 (93 MB).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.checkpoint import halves, open_checkpoint
from edgeprune.errors import InputRejected, UsageError
from edgeprune.families import Decoder, for_model_type, place
from exporters import PLAIN, Options
from exporters._onnx_block import Context, Rope, Source, Stream, block, norm
from exporters._onnx_config import carry, genai_config, read_generation
from exporters._onnx_graph import GraphWriter
from exporters._onnx_quant import BLOCK
from exporters._onnx_rope import check_rope, rope_tables, switch_tokens

SUFFIX = ""
RUNTIME = "onnxruntime"
QUANTS = ("fp32", "fp16", "int8", "int4-mixed", "int4")
SENSITIVE = ("token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_qkv")
LAST = "/lm_head/last"


def matrix_bits(quant: str, role: str, block: int, n_blocks: int) -> int | None:
    """Bits of a matrix by its role and block; None: a float.

    int4-mixed keeps 8 bits where 4 hurt most for their size: embedding and output head, queries, keys and values, and
    ffn_down in the first and last eighth of the blocks and every third between (llama.cpp's use_more_bits).
    """
    if quant in ("fp32", "fp16"):
        return None
    if quant == "int4-mixed":
        eighth = n_blocks // 8
        more = block < eighth or block >= 7 * n_blocks // 8 or (block - eighth) % 3 == 2
        return 8 if role in SENSITIVE or (role == "ffn_down" and more) else 4
    return {"int8": 8, "int4": 4}[quant]


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
    source = _open(folder, quant)
    d = source.decoder
    out.mkdir()
    graph = GraphWriter(out, np.float16 if quant == "fp16" else np.float32)
    try:
        _decoder(graph, source, quant, progress)
    finally:
        graph.close()
    said = {**provenance, "blocks": str(d.n_blocks), "quant": quant}
    _save(graph, source, out / "model.onnx", {f"edgeprune.{k}": v for k, v in said.items()})
    carry(folder, out)
    genai = genai_config(d, _n_caches(source), source.checkpoint.config, read_generation(folder))
    (out / "genai_config.json").write_text(json.dumps(genai, indent=4) + "\n", encoding="utf-8")
    progress("written", 1.0)


def _refuse(options: Options) -> None:
    for flag, value in (("--imatrix", options.imatrix), ("--tokenizer-pre", options.tokenizer_pre)):
        if value is not None:
            raise UsageError(f"{flag} is for GGUF; ONNX exports have no use for it")


def _open(folder: Path, quant: str) -> Source:
    """The checkpoint by place; raises for what can't be exported."""
    if quant not in QUANTS:
        raise UsageError(f"onnx has no quant {quant!r}; choose one of {', '.join(QUANTS)}")
    checkpoint = open_checkpoint(folder)
    family = for_model_type(checkpoint.config["model_type"])
    d = family.decoder(checkpoint.config)
    if d.head_dim % 16:  # GroupQueryAttention refuses other head sizes, but only when it runs
        raise InputRejected(f"{folder}: heads of {d.head_dim} do not suit onnxruntime (multiples of 16 do); use GGUF")
    for rope in d.ropes:
        if rope is not None:
            check_rope(rope, d.head_dim)
    for w in d.widths:
        if w.n_heads % w.n_kv_heads:
            raise InputRejected(
                f"{folder}/config.json: {w.n_heads} heads can't share {w.n_kv_heads} key-value heads evenly"
            )
    widths = {d.hidden, *(n for w in d.widths for n in (w.ffn, w.n_heads * d.head_dim))}
    if quant.startswith("int") and any(w % BLOCK for w in widths):
        raise InputRejected(
            f"{folder}: {quant} needs widths divisible by {BLOCK}, found {sorted(widths)}; use fp32, or prune with --round {BLOCK}"
        )
    places = place(family, d, {name: e.shape for name, e in checkpoint.tensors.items()}, folder)
    source = Source(checkpoint, d, halves(checkpoint), {where: name for name, where in places.items()})
    if not _n_caches(source):
        raise InputRejected(f"{folder}: no block has attention; such a model can't read its prompt")
    return source


def _n_caches(source: Source) -> int:
    return sum(attention for attention, _ in source.halves)


def _decoder(graph: GraphWriter, source: Source, quant: str, progress: Callable[[str, float], None]) -> None:
    d = source.decoder

    def bits(role: str, i: int = 0) -> int | None:
        return matrix_bits(quant, role, i, d.n_blocks)

    progress("embedding", 0.0)
    x = graph.embedding("input_ids", "embed", source.read(None, "token_embd"), "/embed", bits("token_embd"))
    if d.embedding_scale != 1:  # not folded: the head may share the matrix
        x = graph.node("Mul", [x, graph.scalar("embedding_scale", d.embedding_scale)], "/embed_scaled", domain="")
    _lengths(graph)
    context, stream, cache = Context(graph, source, _ropes(graph, d), bits), Stream(x), 0
    for i, (has_attention, _) in enumerate(source.halves):
        progress(f"block {i + 1}/{d.n_blocks}", (i + 1) / (d.n_blocks + 2))
        stream = block(context, i, cache, stream)
        cache += has_attention
    cap = d.logit_softcap
    _, normed = norm(context, None, "output_norm", stream, d.logit_scale / (cap or 1))
    last = graph.node("Gather", [normed, graph.constant("last_position", [-1])], LAST, domain="", axis=1)
    out = "/lm_head/capped" if cap else "logits"
    if source.has(None, "output"):
        graph.linear(last, "lm_head", [source.read(None, "output")], out, bits("output"))
    elif bits("token_embd"):
        graph.matmul_nbits(last, "embed", d.vocab, d.hidden, out, bits("token_embd"))
    else:  # transB reads the embedding as stored, so the file holds it once
        graph.node("FusedMatMul", [last, "embed"], out, transB=1)
    if cap:
        graph.node("Tanh", [out], "/lm_head/tanh", domain="")
        graph.node("Mul", ["/lm_head/tanh", graph.scalar("logit_softcap", cap)], "logits", domain="")


def _lengths(graph: GraphWriter) -> None:
    """From the mask: each sequence's last position and the total length, int32."""
    from onnx import TensorProto

    mask, one = "attention_mask", graph.constant("one", [1])
    length = graph.node("ReduceSum", [mask, one], "/mask/length", domain="", keepdims=0)
    last = graph.node("Sub", [length, one], "/mask/last", domain="")
    graph.node("Cast", [last], "seqlens_k", domain="", to=TensorProto.INT32)
    shape = graph.node("Shape", [mask], "/mask/shape", domain="")
    total = graph.node("Gather", [shape, graph.constant("axis_one", 1)], "/mask/total", domain="", axis=0)
    graph.node("Cast", [total], "total_sequence_length", domain="", to=TensorProto.INT32)


def _ropes(graph: GraphWriter, d: Decoder) -> tuple[Rope | None, ...]:
    """Per block its rotation; equal ones share their tables."""
    made: dict[str, Rope | None] = {json.dumps(None): None}
    for rope in d.ropes:
        key = json.dumps(rope, sort_keys=True)
        if key not in made:
            names = [f"{part}_cache" + (f"_{len(made)}" if len(made) > 1 else "") for part in ("cos", "sin")]
            for name, table in zip(names, rope_tables(rope, d.head_dim, d.context_tokens), strict=True):
                graph.tensor(name, table.shape, [table])
            switch = switch_tokens(rope)
            made[key] = Rope(*names, "" if switch is None else _switched_positions(graph, switch))
    return tuple(made[json.dumps(rope, sort_keys=True)] for rope in d.ropes)


def _switched_positions(graph: GraphWriter, switch: int) -> str:
    """Each token's row of longrope's tables: its position, `switch` rows further on in texts longer than `switch`.

    As in transformers, the length of the whole text decides for the tokens of this run; keys cached before stay.
    """
    from onnx import TensorProto

    def node(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        return graph.node(op, inputs, f"/rope/{name}", domain="", **attributes)

    zero, one = graph.constant("zero", 0), graph.constant("axis_one", 1)
    n_new = node("Gather", [node("Shape", ["input_ids"], "shape"), one], "new", axis=0)
    past = node("Max", [node("Sub", ["/mask/length", n_new], "before"), zero], "past")
    column = node("Unsqueeze", [past, graph.constant("one", [1])], "column")
    positions = node("Add", [column, node("Range", [zero, n_new, one], "range")], "positions")
    longer = node("Greater", ["/mask/total", graph.constant("rope_switch", switch)], "longer")
    rows = node("Mul", [node("Cast", [longer], "flag", to=TensorProto.INT64), "rope_switch"], "rows")
    return node("Add", [positions, rows], "row")


def _save(graph: GraphWriter, source: Source, path: Path, metadata: dict[str, str]) -> None:
    from onnx import TensorProto, helper

    d = source.decoder
    f = helper.np_dtype_to_tensor_dtype(graph.float_type)

    def value(name: str, kind: int, *dims: int | str) -> Any:
        return helper.make_tensor_value_info(name, kind, dims)

    inputs = [value("input_ids", TensorProto.INT64, "batch_size", "sequence_length")]
    inputs.append(value("attention_mask", TensorProto.INT64, "batch_size", "total_sequence_length"))
    outputs = [value("logits", f, "batch_size", 1, d.vocab)]
    caches = [w.n_kv_heads for w, (attention, _) in zip(d.widths, source.halves, strict=True) if attention]
    for i, n_kv_heads in enumerate(caches):
        for part in ("key", "value"):
            cache = (f, "batch_size", n_kv_heads)
            inputs.append(value(f"past_key_values.{i}.{part}", *cache, "past_sequence_length", d.head_dim))
            outputs.append(value(f"present.{i}.{part}", *cache, "total_sequence_length", d.head_dim))
    made = helper.make_graph(graph.nodes, "decoder", inputs, outputs, graph.initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=10, producer_name="edgeprune")
    helper.set_model_props(model, dict(sorted(metadata.items())))
    path.write_bytes(model.SerializeToString(deterministic=True))
