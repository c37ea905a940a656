"""Pre-norm decoders: x + attn(norm(x)), then x + ffn(norm(x)). Shared by the llama-shaped families.

Keys are module paths below `model.layers.{i}.`, values the GGUF role in `blk.{i}.{role}`.
The first path component is also the attribute of the torch decoder layer that moves with the sub-layer.
"""

ATTN = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
FFN = {
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GLOBALS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = "model.layers.{i}."

# The two weights whose zeroing turns a block into the identity (for tests).
OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")

IGNORED = ("self_attn.rotary_emb.inv_freq",)  # a buffer old checkpoints carry; computed from the config


def no_window(config: dict, layer: int) -> int | None:
    """Every layer attends to everything."""
    return None


def uniform_window(config: dict, layer: int) -> int | None:
    """One window for all layers (Mistral 7B v0.1), tokens."""
    return config.get("sliding_window")


def listed_window(config: dict, layer: int) -> int | None:
    """Qwen: `layer_types` says it, or, in older configs, layers from `max_window_layers` on are windowed."""
    if not config.get("use_sliding_window") or not config.get("sliding_window"):
        return None
    types = config.get("layer_types")
    sliding = types[layer] == "sliding_attention" if types else layer >= config.get("max_window_layers", 28)
    return config["sliding_window"] if sliding else None


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
