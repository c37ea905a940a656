"""One file per model family: where its sub-layers live and what its config means. No torch here.

A family module says:
    MODEL_TYPES   config.json `model_type` values it covers
    GGUF_ARCH     GGUF `general.architecture` it is written as
    LAYER, ATTN, FFN, GLOBALS, IGNORED, OUTPUTS   tensor names, see _llama_like
    PERMUTE_QK    whether GGUF stores rotary query/key rows interleaved (llama.cpp's NORM rope)
    TINY          config values of a small model of the family, for tests
    decoder(config) -> Decoder   the model's shape and arithmetic, see _decoder
    per_layer(config) -> dict    config lists with one entry per layer, spelt out; they move with the attention
    GGUF_ARCH_IRREGULAR   (optional) the architecture that holds blocks without attention or feed-forward
    OUTPUT_BIASES (optional) the config fields that give its projections biases, those of both output projections among them
    UNDIVIDED     (optional) transformers refuses its configs where heads don't divide hidden_size: the `model_type` that
                  computes the same without biases and is taken then, or None
    NOPE_EVERY    (optional) runtimes that skip rotation by the block's position: {runtime: every n-th}
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from edgeprune.catalog import did_you_mean, load_all
from edgeprune.errors import InputRejected
from edgeprune.families._decoder import WIDTH_FIELDS, Decoder, Width
from edgeprune.families._holds import Half, refusal
from edgeprune.families._tensors import Place, is_tied, place


def for_model_type(model_type: str) -> ModuleType:
    """The family of a config's `model_type`. Raises InputRejected naming the families there are."""
    families = load_all("edgeprune.families")
    for module in families.values():
        if model_type in module.MODEL_TYPES:
            return module
    known = sorted(t for m in families.values() for t in m.MODEL_TYPES)
    raise InputRejected(
        f"model_type {model_type!r} is not a family edgeprune knows.{did_you_mean(model_type, known)} Known: {', '.join(known)}"
    )


def norms_after(module: ModuleType) -> bool:
    """Whether a family norms what its sub-layers put out, between an output projection and the stream."""
    return not {"post_attention_norm", "post_ffw_norm"}.isdisjoint({*module.ATTN.values(), *module.FFN.values()})


def decoder(config: dict[str, Any]) -> Decoder:
    """A config.json as a Decoder. Raises InputRejected naming the field that is unusable."""
    return for_model_type(config["model_type"]).decoder(config)


def shape(module: ModuleType, d: Decoder) -> dict[str, Any]:
    """What a ModelSpec says of a decoder of this family, beside its blocks and weights."""
    return {
        "family": key(module), "model_type": d.model_type, "n_blocks": d.n_blocks, "hidden_size": d.hidden,
        "intermediate_size": d.ffn, "n_heads": d.n_heads, "n_kv_heads": d.n_kv_heads, "head_dim": d.head_dim,
        "vocab_size": d.vocab, "context_length_tokens": d.context_tokens,
    }  # fmt: skip


def key(module: ModuleType) -> str:
    """The registry key (file name) of a family module."""
    return module.__name__.rsplit(".", 1)[-1]


__all__ = [
    "WIDTH_FIELDS", "Decoder", "Half", "Place", "Width", "decoder", "for_model_type", "is_tied", "key", "place", "refusal",
    "shape",
]  # fmt: skip
