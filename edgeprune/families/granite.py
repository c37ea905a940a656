"""Granite 3: a llama with multipliers on embeddings, scores, residuals and logits."""

from __future__ import annotations

from typing import Any

from edgeprune.families import _llama_like as like
from edgeprune.families._decoder import Decoder, common, number
from edgeprune.families._llama_like import ATTN, FFN, GLOBALS, IGNORED, LAYER, OUTPUTS

MODEL_TYPES = ("granite",)
GGUF_ARCH = "granite"
PERMUTE_QK = True
OUTPUT_BIASES = ("attention_bias", "mlp_bias")
DEFAULTS = {
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "embedding_multiplier": 1.0, "logits_scaling": 1.0,
    "residual_multiplier": 1.0, "attention_multiplier": 1.0,
}  # fmt: skip
TINY = dict(
    like.TINY, model_type="granite", tie_word_embeddings=True, embedding_multiplier=3.0, logits_scaling=2.0,
    residual_multiplier=0.7, attention_multiplier=0.1,
)  # fmt: skip
per_layer = like.nothing_per_layer


def decoder(config: dict[str, Any]) -> Decoder:
    made, c = common(config, DEFAULTS)
    return made._replace(
        embedding_scale=number(c, "embedding_multiplier"),
        attention_scale=number(c, "attention_multiplier"),
        residual_scale=number(c, "residual_multiplier"),
        logit_scale=1 / number(c, "logits_scaling"),
    )


__all__ = ["ATTN", "FFN", "GLOBALS", "IGNORED", "LAYER", "OUTPUTS"]
