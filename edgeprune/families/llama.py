"""Llama, SmolLM2, TinyLlama, Vicuna: config `model_type` "llama"."""

from __future__ import annotations

from typing import Any

from edgeprune.families import _llama_like as like
from edgeprune.families._decoder import Decoder, common
from edgeprune.families._llama_like import ATTN, FFN, GLOBALS, IGNORED, LAYER, OUTPUTS

MODEL_TYPES = ("llama",)
GGUF_ARCH = "llama"
GGUF_ARCH_IRREGULAR = "deci"
PERMUTE_QK = True
UNDIVIDED = "mistral"
OUTPUT_BIASES = ("attention_bias", "mlp_bias")
DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
TINY = dict(like.TINY, model_type="llama", tie_word_embeddings=True)
per_layer = like.nothing_per_layer


def decoder(config: dict[str, Any]) -> Decoder:
    return common(config, DEFAULTS)[0]


__all__ = ["ATTN", "FFN", "GLOBALS", "IGNORED", "LAYER", "OUTPUTS"]
