"""Phi-3 and Phi-4-mini: query, key and value in one matrix, gate and up in another."""

from __future__ import annotations

from typing import Any

from edgeprune.families import _llama_like as like
from edgeprune.families._decoder import Decoder, common, count, rope_of
from edgeprune.families._llama_like import GLOBALS, IGNORED, LAYER, OUTPUTS

MODEL_TYPES = ("phi3",)
GGUF_ARCH = "phi3"
PERMUTE_QK = False
ATTN = {"input_layernorm": "attn_norm", "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output"}
FFN = {"post_attention_layernorm": "ffn_norm", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
DEFAULTS = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096}
TINY = dict(like.TINY, model_type="phi3", tie_word_embeddings=False, pad_token_id=0)
per_layer = like.nothing_per_layer


def decoder(config: dict[str, Any]) -> Decoder:
    made, c = common(config, DEFAULTS)
    window = None if c.get("sliding_window") is None else count(c, "sliding_window")
    rope = rope_of(c) | {"original_max_position_embeddings": count(c, "original_max_position_embeddings")}
    if rope["rope_type"] in ("su", "yarn"):  # what earlier configs call it
        rope["rope_type"] = "longrope"
    return made._replace(windows=(window,) * made.n_blocks, ropes=(rope,) * made.n_blocks)


__all__ = ["GLOBALS", "IGNORED", "LAYER", "OUTPUTS"]
