"""What a transformers config means to llama.cpp: the architecture and its keys, or a refusal. No weights, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from edgeprune import families
from edgeprune.errors import InputRejected
from edgeprune.families import Decoder, Half
from exporters._gguf_arch import DUMMY_FFN, Arch, arch_of, check_fit, score_factor
from exporters._gguf_rope import Factors, read_rope


class Shape(NamedTuple):
    arch: Arch
    decoder: Decoder
    halves: tuple[Half, ...]
    tied: bool
    query_factor: float  # to be folded into the weights: llama.cpp's scale of the scores -> the model's
    keys: dict[str, Any]  # GGUF keys without their `<arch>.` prefix
    factors: Factors  # tensors that come from the config


def read_shape(config: dict[str, Any], family: ModuleType, halves: Sequence[Half], tied: bool) -> Shape:
    """`halves`: per block, whether it has attention and a feed-forward.

    Raises InputRejected, naming the config.json field or the block, for anything llama.cpp could not run faithfully.
    """
    d = family.decoder(config)
    reason = families.refusal(family, "llamacpp", [rope is not None for rope in d.ropes], halves, tied, d.alike)
    if reason:
        raise InputRejected(reason)
    arch = arch_of(family, d, halves)
    check_fit(arch, d, tied)
    rope, factors = read_rope(arch, d, halves)
    keys = _sizes(arch, d, halves) | {f"rope.{k}": v for k, v in rope.items()} | _arithmetic(arch, d)
    head_dim = config.get("head_dim") is not None and arch.name not in ("phi3", "granite")
    if head_dim or "head_dim" in arch.says or d.head_dim != d.hidden // d.n_heads:
        keys |= {"attention.key_length": d.head_dim, "attention.value_length": d.head_dim}
    if "vocab_size" in arch.says:
        keys["vocab_size"] = d.vocab
    return Shape(arch, d, tuple(halves), tied, score_factor(arch, d), keys, factors)


def _sizes(arch: Arch, d: Decoder, halves: Sequence[Half]) -> dict[str, Any]:
    """One number, or one per block where blocks differ. What lacks a half has no heads, or what stands in for it."""
    lone = 1 if arch.name == "openelm" else 0  # heads of a block without attention
    blocks = [*zip(d.widths, halves, strict=True)]
    return {
        "block_count": d.n_blocks,
        "embedding_length": d.hidden,
        "feed_forward_length": _one_or_list([w.ffn if ffn else DUMMY_FFN for w, (_, ffn) in blocks]),
        "attention.head_count": _one_or_list([w.n_heads if attn else lone for w, (attn, _) in blocks]),
        "attention.head_count_kv": _one_or_list([w.n_kv_heads if attn else lone for w, (attn, _) in blocks]),
        "attention.layer_norm_rms_epsilon": d.norm_eps,
    } | _windows(arch, d, halves)


def _one_or_list(values: list[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else values


def _windows(arch: Arch, d: Decoder, halves: Sequence[Half]) -> dict[str, Any]:
    """Which blocks look back how far; llama.cpp would else go by their position.

    Where it attends to everything, the declared context ends at the window: up to there both are the same.
    """
    sizes = sorted({w for w, (attn, _) in zip(d.windows, halves, strict=True) if attn and w is not None})
    if not arch.windows:
        out: dict[str, Any] = {"context_length": min([d.context_tokens, *sizes])}
        return out | ({"attention.sliding_window": sizes[0] if sizes else 0} if arch.name == "phi3" else {})
    if len(sizes) > 1:
        raise InputRejected(f"config.json: windows of {sizes[0]} and {sizes[1]} tokens; llama.cpp has one size for all")
    out, windowed = {"context_length": d.context_tokens}, [w is not None for w in d.windows]
    if not sizes and arch.name == "gemma2":  # aborts without a windowed block: let one see the whole context
        sizes, windowed[0] = [d.context_tokens], True
    if sizes:
        out |= {"attention.sliding_window": sizes[0], "attention.sliding_window_pattern": windowed}
    return out


def _arithmetic(arch: Arch, d: Decoder) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if d.attention_softcap is not None:
        out["attn_logit_softcapping"] = d.attention_softcap
    if d.logit_softcap is not None:
        out["final_logit_softcapping"] = d.logit_softcap
    if arch.multipliers:
        out |= {"attention.scale": d.attention_scale, "embedding_scale": d.embedding_scale}
        out |= {"residual_scale": d.residual_scale, "logit_scale": 1 / d.logit_scale}  # it divides by the last
    return out
