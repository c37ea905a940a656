"""SmolLM3: a llama whose every fourth attention does not rotate (NoPE). `no_rope_layers` is 1 where it does."""

from __future__ import annotations

from typing import Any

from edgeprune.errors import InputRejected
from edgeprune.families import _llama_like as like
from edgeprune.families._decoder import Decoder, common, layer_types, windows_of
from edgeprune.families._llama_like import ATTN, FFN, GLOBALS, IGNORED, LAYER, OUTPUTS

MODEL_TYPES = ("smollm3",)
GGUF_ARCH = "smollm3"
PERMUTE_QK = True
OUTPUT_BIASES = ("attention_bias", "mlp_bias")
# llama.cpp (src/models/smollm3.cpp) takes it from the layer's position: every fourth block, whatever the file says.
NOPE_EVERY = {"llamacpp": 4}
DEFAULTS = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 2e6, "tie_word_embeddings": True}
TINY = dict(like.TINY, model_type="smollm3", tie_word_embeddings=True, pad_token_id=0)


def rotates(config: dict[str, Any]) -> list[int]:
    n, step = config["num_hidden_layers"], config.get("no_rope_layer_interval") or 4
    flags = config.get("no_rope_layers") or [int((i + 1) % step != 0) for i in range(n)]
    if not isinstance(flags, list) or len(flags) != n:
        raise InputRejected("config.json: no_rope_layers does not have one entry per layer; re-slice it")
    return flags


def types(config: dict[str, Any]) -> list[str]:
    sliding = config.get("use_sliding_window") and config.get("sliding_window")
    return layer_types(config, ["full_attention" if f or not sliding else "sliding_attention" for f in rotates(config)])


def per_layer(config: dict[str, Any]) -> dict[str, list[Any]]:
    return {"no_rope_layers": rotates(config), "layer_types": types(config)}


def decoder(config: dict[str, Any]) -> Decoder:
    made, c = common(config, DEFAULTS)
    ropes = tuple(rope if flag else None for rope, flag in zip(made.ropes, rotates(c), strict=True))
    return made._replace(ropes=ropes, windows=windows_of(c, types(c)))


__all__ = ["ATTN", "FFN", "GLOBALS", "IGNORED", "LAYER", "OUTPUTS"]
