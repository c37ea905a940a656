"""Decoder blocks of every family as ONNX nodes, one form for all:

    x ← x + residual_scale · post_norm(f(pre_norm(x)))     for attention, then for the feed-forward

Which norms, biases and fused matrices a block has is read off the roles of the checkpoint's tensors; every number
comes from edgeprune.families.Decoder. What is a factor only is multiplied into weights that nothing else reads, in
float32: Gemma's w + 1 into the norms, Granite's residual scale into the output projections.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from edgeprune.checkpoint import Checkpoint, read_tensor
from edgeprune.families import Decoder, Half, Place
from exporters._onnx_graph import GraphWriter


class Source(NamedTuple):
    """A checkpoint, read by place."""

    checkpoint: Checkpoint
    decoder: Decoder
    halves: tuple[Half, ...]
    names: dict[Place, str]

    def has(self, layer: int | None, role: str, kind: str = "weight") -> bool:
        return Place(layer, role, kind) in self.names

    def read(self, layer: int | None, role: str, kind: str = "weight") -> np.ndarray:
        return read_tensor(self.checkpoint, self.names[Place(layer, role, kind)])


class Stream(NamedTuple):
    """The residual stream: x, plus `added` where a sum is still due. The next norm does both in one operator."""

    x: str
    added: str | None = None


class Rope(NamedTuple):
    """Names of a rotation's tables, and of the row that each token reads ("" = its position)."""

    cos: str
    sin: str
    positions: str = ""


class Context(NamedTuple):
    """What all nodes of a graph share."""

    graph: GraphWriter
    source: Source
    ropes: tuple[Rope | None, ...]  # per block
    bits: Callable[[str, int], int | None]  # of a matrix by role and block


def block(c: Context, i: int, cache: int, stream: Stream) -> Stream:
    """Block i, whose keys and values are the graph's `cache`-th pair. A half that the model lacks adds nothing."""
    has_attention, has_ffn = c.source.halves[i]
    if has_attention:
        stream, normed = norm(c, i, "attn_norm", stream)
        out = _linear(c, i, ["attn_output"], _attention(c, i, cache, normed), _residual(c, i, "post_attention_norm"))
        stream = _add(c, i, "post_attention_norm", stream, out)
    if has_ffn:
        stream, normed = norm(c, i, "ffn_norm", stream)
        out = _linear(c, i, ["ffn_down"], _gated(c, i, normed), _residual(c, i, "post_ffw_norm"))
        stream = _add(c, i, "post_ffw_norm", stream, out)
    return stream


def norm(c: Context, i: int | None, role: str, stream: Stream, scale: float = 1.0) -> tuple[Stream, str]:
    """(the stream with nothing due, scale · RMS norm of it, or it as it is where the model has no such norm)."""
    out, d = f"{_at(i)}/{role}", c.source.decoder
    if not c.source.has(i, role):
        if stream.added is None:
            return stream, stream.x
        x = c.graph.node("Add", [stream.x, stream.added], f"{out}_sum", domain="")
        return Stream(x), x
    if stream.added is None:
        return stream, _rms(c, i, role, stream.x, out, scale)
    weight = _norm_weight(c, i, role, out, scale)
    x = f"{out}_sum"
    c.graph.node(
        "SkipSimplifiedLayerNormalization", [stream.x, stream.added, weight], [out, "", "", x], epsilon=d.norm_eps
    )
    return Stream(x), out


def _attention(c: Context, i: int, cache: int, x: str) -> str:
    """GroupQueryAttention: rotation, window, cache and scores in one operator.

    Queries, keys and values go in packed, or apart where queries and keys are normed first.
    """
    d, rope, out = c.source.decoder.layer(i), c.ropes[i], f"{_at(i)}/attn"
    if c.source.has(i, "attn_qkv"):
        qkv = [_linear(c, i, ["attn_qkv"], x), "", ""]
    elif not c.source.has(i, "attn_q_norm"):
        qkv = [_linear(c, i, ["attn_q", "attn_k", "attn_v"], x), "", ""]
    else:
        q, k, v = (_linear(c, i, [role], x) for role in ("attn_q", "attn_k", "attn_v"))
        qkv = [_head_norm(c, i, "attn_q_norm", q, d.n_heads), _head_norm(c, i, "attn_k_norm", k, d.n_kv_heads), v]
    past = [f"past_key_values.{cache}.key", f"past_key_values.{cache}.value"]
    inputs = [*qkv, *past, "seqlens_k", "total_sequence_length"]
    attributes: dict[str, float] = {"scale": d.attention_scale}
    if rope is not None:
        inputs += [rope.cos, rope.sin] + ([rope.positions] if rope.positions else [])
        attributes["do_rotary"] = 1
    if d.windows[i] is not None:
        attributes["local_window_size"] = d.windows[i]
    if d.attention_softcap is not None:
        attributes["softcap"] = d.attention_softcap
    outputs = [out, f"present.{cache}.key", f"present.{cache}.value"]
    c.graph.node(
        "GroupQueryAttention", inputs, outputs, num_heads=d.n_heads, kv_num_heads=d.n_kv_heads, **attributes
    )  # fmt: skip
    return out


def _gated(c: Context, i: int, x: str) -> str:
    """activation(gate) · up."""
    at = _at(i)
    if c.source.has(i, "ffn_gate"):
        gate, up = _linear(c, i, ["ffn_gate"], x), _linear(c, i, ["ffn_up"], x)
    else:  # one matrix, the gate's rows first
        gate, up = f"{at}/ffn_gate", f"{at}/ffn_up"
        both = _linear(c, i, ["ffn_up"], x, out=f"{at}/ffn_gate_up")
        c.graph.node("Split", [both], [gate, up], domain="", axis=-1, num_outputs=2)
    if c.source.decoder.activation == "silu":
        sigmoid = c.graph.node("Sigmoid", [gate], f"{at}/ffn_sigmoid", domain="")
        active = c.graph.node("Mul", [gate, sigmoid], f"{at}/ffn_act", domain="")
    else:
        active = c.graph.node("Gelu", [gate], f"{at}/ffn_act", domain="", approximate="tanh")
    return c.graph.node("Mul", [active, up], f"{at}/ffn_gated", domain="")


def _linear(c: Context, i: int, roles: list[str], x: str, scale: float = 1.0, out: str = "") -> str:
    """scale · (x @ Wᵀ + b), several projections stacked into one."""
    out = out or f"{_at(i)}/{'attn_qkv' if len(roles) > 1 else roles[0]}"
    weights = [_scaled(c.source.read(i, role), scale) for role in roles]
    bits = c.bits(roles[-1], i)
    biases = [
        _scaled(c.source.read(i, role, "bias"), scale)
        if c.source.has(i, role, "bias")
        else np.zeros(len(w), np.float32)
        for role, w in zip(roles, weights, strict=True)
    ]
    if not any(bias.any() for bias in biases):  # transformers has some for every projection or for none
        return c.graph.linear(x, f"{out}.weight", weights, out, bits)
    product = c.graph.linear(x, f"{out}.weight", weights, f"{out}_product", bits)
    c.graph.tensor(f"{out}.bias", (sum(map(len, biases)),), biases)
    return c.graph.node("Add", [product, f"{out}.bias"], out, domain="")


def _add(c: Context, i: int, post_norm: str, stream: Stream, out: str) -> Stream:
    """The stream with a sub-layer's output due, normed first where the family does."""
    if c.source.has(i, post_norm):
        out = _rms(c, i, post_norm, out, f"{_at(i)}/{post_norm}", c.source.decoder.residual_scale)
    return Stream(stream.x, out)


def _residual(c: Context, i: int, post_norm: str) -> float:
    """What an output projection is scaled by; a norm behind it would undo that, and is scaled itself."""
    return 1.0 if c.source.has(i, post_norm) else c.source.decoder.residual_scale


def _head_norm(c: Context, i: int, role: str, x: str, n_heads: int) -> str:
    """RMS norm of queries or keys (batch, tokens, heads·head_dim): over all heads together, or over each."""
    d, out = c.source.decoder, f"{_at(i)}/{role}"
    if d.qk_norm_whole:
        return _rms(c, i, role, x, out)
    split = c.graph.constant(f"heads_{n_heads}", [0, 0, n_heads, d.head_dim])
    flat = c.graph.constant(f"flat_{n_heads}", [0, 0, n_heads * d.head_dim])
    heads = c.graph.node("Reshape", [x, split], f"{out}_heads", domain="")
    return c.graph.node("Reshape", [_rms(c, i, role, heads, out), flat], f"{out}_flat", domain="")


def _rms(c: Context, i: int | None, role: str, x: str, out: str, scale: float = 1.0) -> str:
    weight = _norm_weight(c, i, role, out, scale)
    attributes = dict(epsilon=c.source.decoder.norm_eps, axis=-1, stash_type=1)
    return c.graph.node("SimplifiedLayerNormalization", [x, weight], out, domain="", **attributes)


def _norm_weight(c: Context, i: int | None, role: str, out: str, scale: float) -> str:
    offset = np.float32(c.source.decoder.norm_offset)
    weight = _scaled(np.asarray(c.source.read(i, role), np.float32) + offset, scale)
    return c.graph.tensor(f"{out}.weight", weight.shape, [weight])


def _scaled(weight: np.ndarray, scale: float) -> np.ndarray:
    return weight if scale == 1 else np.asarray(weight, np.float32) * np.float32(scale)


def _at(i: int | None) -> str:
    return "" if i is None else f"/layers.{i}"
