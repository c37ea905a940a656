"""Mistral 7B and kin. A sliding window, where set, is the same in every layer."""

from __future__ import annotations

from typing import Any

from edgeprune.families import _llama_like as like
from edgeprune.families._decoder import Decoder, common, count
from edgeprune.families._llama_like import ATTN, FFN, GLOBALS, IGNORED, LAYER, OUTPUTS

MODEL_TYPES = ("mistral",)
GGUF_ARCH = "llama"
GGUF_ARCH_IRREGULAR = "deci"
PERMUTE_QK = True
DEFAULTS = {"max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "sliding_window": 4096}
TINY = dict(like.TINY, model_type="mistral", tie_word_embeddings=False, sliding_window=None)
per_layer = like.nothing_per_layer


def decoder(config: dict[str, Any]) -> Decoder:
    made, c = common(config, DEFAULTS)
    window = None if c["sliding_window"] is None else count(c, "sliding_window")
    return made._replace(windows=(window,) * made.n_blocks)


__all__ = ["ATTN", "FFN", "GLOBALS", "IGNORED", "LAYER", "OUTPUTS"]
