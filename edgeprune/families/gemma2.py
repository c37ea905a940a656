"""Gemma 2: norms before and after each sub-layer, capped scores and logits, windows in every other layer."""

from __future__ import annotations

from typing import Any

from edgeprune.families import _llama_like as like
from edgeprune.families._decoder import Decoder, common, layer_types, number, softcap, windows_of
from edgeprune.families._llama_like import GLOBALS, IGNORED, LAYER, OUTPUTS

MODEL_TYPES = ("gemma2",)
GGUF_ARCH = "gemma2"
PERMUTE_QK = False
UNDIVIDED = None
ATTN = {**like.ATTN, "post_attention_layernorm": "post_attention_norm"}
FFN = {
    "pre_feedforward_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
}
DEFAULTS = {
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "head_dim": 256, "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 4096,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
}  # fmt: skip
TINY = dict(
    like.TINY,
    model_type="gemma2",
    tie_word_embeddings=True,
    query_pre_attn_scalar=24,
    sliding_window=16,
    pad_token_id=0,
)


def types(config: dict[str, Any]) -> list[str]:
    n = config["num_hidden_layers"]
    return layer_types(config, ["full_attention" if i % 2 else "sliding_attention" for i in range(n)])


def per_layer(config: dict[str, Any]) -> dict[str, list[Any]]:
    return {"layer_types": types(config)}


def decoder(config: dict[str, Any]) -> Decoder:
    made, c = common(config, DEFAULTS)
    return arithmetic(made, c, types(c))


def arithmetic(made: Decoder, c: dict[str, Any], kinds: list[str]) -> Decoder:
    """What Gemma 2 and 3 have in common; `c` with defaults filled in, `kinds` the layer types."""
    return made._replace(
        windows=windows_of(c, kinds),
        attention_scale=number(c, "query_pre_attn_scalar") ** -0.5,
        norm_offset=1.0,
        embedding_scale=made.hidden**0.5,
        attention_softcap=softcap(c, "attn_logit_softcapping"),
        logit_softcap=softcap(c, "final_logit_softcapping"),
    )


__all__ = ["GLOBALS", "IGNORED", "LAYER", "OUTPUTS"]
