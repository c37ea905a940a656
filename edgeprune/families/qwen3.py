"""Qwen3: per-head query and key norms; `layer_types` is per layer."""

from edgeprune.families._llama_like import ATTN, FFN, GLOBALS, IGNORED, LAYER, OUTPUTS, listed_window
from edgeprune.families._llama_like import TINY as _TINY

MODEL_TYPES = ("qwen3",)
GGUF_ARCH = "qwen3"
PERMUTE_QK = False
PER_LAYER_CONFIG = ("layer_types",)
TINY = dict(_TINY, model_type="qwen3", tie_word_embeddings=True)
sliding_window = listed_window

__all__ = ["ATTN", "FFN", "GLOBALS", "IGNORED", "LAYER", "OUTPUTS"]
