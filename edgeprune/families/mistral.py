"""Mistral 7B and kin. A sliding window, where set, is the same in every layer."""

from edgeprune.families._llama_like import ATTN, FFN, GLOBALS, IGNORED, LAYER, OUTPUTS, uniform_window
from edgeprune.families._llama_like import TINY as _TINY

MODEL_TYPES = ("mistral",)
GGUF_ARCH = "llama"
PERMUTE_QK = True
PER_LAYER_CONFIG = ()
TINY = dict(_TINY, model_type="mistral", tie_word_embeddings=False, sliding_window=None)
sliding_window = uniform_window

__all__ = ["ATTN", "FFN", "GLOBALS", "IGNORED", "LAYER", "OUTPUTS"]
