"""Llama, SmolLM2, TinyLlama, Vicuna: config `model_type` "llama"."""

from edgeprune.families._llama_like import ATTN, FFN, GLOBALS, IGNORED, LAYER, OUTPUTS, no_window
from edgeprune.families._llama_like import TINY as _TINY

MODEL_TYPES = ("llama",)
GGUF_ARCH = "llama"
PERMUTE_QK = True
PER_LAYER_CONFIG = ()
TINY = dict(_TINY, model_type="llama", tie_word_embeddings=True)
sliding_window = no_window

__all__ = ["ATTN", "FFN", "GLOBALS", "IGNORED", "LAYER", "OUTPUTS"]
