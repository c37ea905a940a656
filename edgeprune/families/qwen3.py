"""Qwen3: per-head query and key norms; `layer_types` is per layer."""

from __future__ import annotations

from typing import Any

from edgeprune.families import _llama_like as like
from edgeprune.families._decoder import Decoder, common, windows_of
from edgeprune.families._llama_like import FFN, GLOBALS, IGNORED, LAYER, OUTPUTS
from edgeprune.families.qwen2 import per_layer, types

MODEL_TYPES = ("qwen3",)
GGUF_ARCH = "qwen3"
GGUF_ARCH_IRREGULAR = "openelm"
PERMUTE_QK = False
ATTN = {**like.ATTN, **like.QK_NORMS}
DEFAULTS = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "head_dim": 128}
TINY = dict(like.TINY, model_type="qwen3", tie_word_embeddings=True)


def decoder(config: dict[str, Any]) -> Decoder:
    made, c = common(config, DEFAULTS)
    return made._replace(windows=windows_of(c, types(c)))


__all__ = ["FFN", "GLOBALS", "IGNORED", "LAYER", "OUTPUTS", "per_layer"]
