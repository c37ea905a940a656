"""Names and values that most families share.

Keys are module paths below `model.layers.{i}.`, values the GGUF role in `blk.{i}.{role}`.
The first path component is also the attribute of the torch decoder layer that moves with the sub-layer.
"""

from __future__ import annotations

from typing import Any

ATTN = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
FFN = {
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GLOBALS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = "model.layers.{i}."

# The two weights whose zeroing turns a block into the identity.
OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")

IGNORED = ("self_attn.rotary_emb.inv_freq",)  # a buffer old checkpoints carry; computed from the config


def nothing_per_layer(config: dict[str, Any]) -> dict[str, list[Any]]:
    return {}


TINY = dict(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
)
