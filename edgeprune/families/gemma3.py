"""Gemma 3, text only: Gemma 2's block with query and key norms; five windowed layers, with a rotation of their own, to
each full one."""

from __future__ import annotations

from typing import Any

from edgeprune.errors import InputRejected
from edgeprune.families import _llama_like as like
from edgeprune.families._decoder import Decoder, common, layer_types, rope_of
from edgeprune.families._llama_like import GLOBALS, IGNORED, LAYER, OUTPUTS
from edgeprune.families.gemma2 import ATTN as _ATTN
from edgeprune.families.gemma2 import DEFAULTS as _DEFAULTS
from edgeprune.families.gemma2 import FFN, arithmetic

MODEL_TYPES = ("gemma3_text",)
GGUF_ARCH = "gemma3"
PERMUTE_QK = False
UNDIVIDED = None
ATTN = {**_ATTN, **like.QK_NORMS}
DEFAULTS = {
    **_DEFAULTS, "max_position_embeddings": 131072, "attn_logit_softcapping": None, "final_logit_softcapping": None,
    "rope_theta": 1e6, "rope_local_base_freq": 1e4,
}  # fmt: skip
TINY = dict(
    like.TINY, model_type="gemma3_text", tie_word_embeddings=True, query_pre_attn_scalar=24, sliding_window=16,
    pad_token_id=0,
    layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
)  # fmt: skip


def types(config: dict[str, Any]) -> list[str]:
    n, every = config["num_hidden_layers"], config.get("sliding_window_pattern") or 6
    return layer_types(config, ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(n)])


def per_layer(config: dict[str, Any]) -> dict[str, list[Any]]:
    return {"layer_types": types(config)}


def decoder(config: dict[str, Any]) -> Decoder:
    made, c = common(config, DEFAULTS, rope_per_type=True)
    if c.get("use_bidirectional_attention"):
        raise InputRejected("config.json: use_bidirectional_attention makes an encoder, not a model that generates")
    kinds = types(c)
    ropes = {
        "full_attention": rope_of(c, "full_attention"),
        "sliding_attention": rope_of(c, "sliding_attention", theta="rope_local_base_freq"),
    }
    return arithmetic(made, c, kinds)._replace(ropes=tuple(ropes[k] for k in kinds))


__all__ = ["FFN", "GLOBALS", "IGNORED", "LAYER", "OUTPUTS"]
