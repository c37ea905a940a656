"""Qwen2 and Qwen2.5: query, key and value projections have biases; `layer_types` is per layer."""

from edgeprune.families._llama_like import ATTN, FFN, GLOBALS, IGNORED, LAYER, OUTPUTS, listed_window
from edgeprune.families._llama_like import TINY as _TINY

MODEL_TYPES = ("qwen2",)
GGUF_ARCH = "qwen2"
PERMUTE_QK = False
PER_LAYER_CONFIG = ("layer_types",)
TINY = dict(_TINY, model_type="qwen2", tie_word_embeddings=True)
sliding_window = listed_window

__all__ = ["ATTN", "FFN", "GLOBALS", "IGNORED", "LAYER", "OUTPUTS"]
