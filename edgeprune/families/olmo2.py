"""OLMo 2: norms after each sub-layer only, query and key norms over all heads together."""

from __future__ import annotations

from typing import Any

from edgeprune.families import _llama_like as like
from edgeprune.families._decoder import Decoder, common
from edgeprune.families._llama_like import GLOBALS, IGNORED, LAYER, OUTPUTS

MODEL_TYPES = ("olmo2",)
GGUF_ARCH = "olmo2"
PERMUTE_QK = False
ATTN = {
    **{k: v for k, v in like.ATTN.items() if v != "attn_norm"},
    **like.QK_NORMS,
    "post_attention_layernorm": "post_attention_norm",
}
FFN = {
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
}
DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}
TINY = dict(like.TINY, model_type="olmo2", tie_word_embeddings=False, pad_token_id=0)
per_layer = like.nothing_per_layer


def decoder(config: dict[str, Any]) -> Decoder:
    return common(config, DEFAULTS)[0]._replace(qk_norm_whole=True)


__all__ = ["GLOBALS", "IGNORED", "LAYER", "OUTPUTS"]
