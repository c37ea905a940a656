"""Qwen2 and Qwen2.5: query, key and value projections have biases; `layer_types` is per layer."""

from __future__ import annotations

from typing import Any

from edgeprune.families import _llama_like as like
from edgeprune.families._decoder import Decoder, common, layer_types, windows_of
from edgeprune.families._llama_like import ATTN, FFN, GLOBALS, IGNORED, LAYER, OUTPUTS

MODEL_TYPES = ("qwen2",)
GGUF_ARCH = "qwen2"
GGUF_ARCH_IRREGULAR = "deci"
PERMUTE_QK = False
DEFAULTS = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6}
TINY = dict(like.TINY, model_type="qwen2", tie_word_embeddings=True)


def types(config: dict[str, Any]) -> list[str]:
    """`layer_types`, or, in older configs, windows from layer `max_window_layers` on."""
    n, first = config["num_hidden_layers"], config.get("max_window_layers", 28)
    types = layer_types(config, ["full_attention" if i < first else "sliding_attention" for i in range(n)])
    windowed = config.get("use_sliding_window") and config.get("sliding_window")
    return types if windowed else ["full_attention"] * n


def per_layer(config: dict[str, Any]) -> dict[str, list[Any]]:
    said = config.get("layer_types") or config.get("use_sliding_window")
    return {"layer_types": types(config)} if said else {}


def decoder(config: dict[str, Any]) -> Decoder:
    made, c = common(config, DEFAULTS)
    return made._replace(windows=windows_of(c, types(c)))


__all__ = ["ATTN", "FFN", "GLOBALS", "IGNORED", "LAYER", "OUTPUTS"]
