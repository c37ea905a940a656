"""What stands beside the graph: onnxruntime-genai's configuration and the model's own tokenizer files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from edgeprune.checkpoint import CARRIED
from edgeprune.families import Decoder

# genai reserves KV cache for max_length at once; a whole 128k context would not fit the devices meant here.
_DEFAULT_MAX_LENGTH = 4096


# Names of genai's own where they differ; "decoder" is its name for any model with this interface.
_GENAI_TYPES = {"olmo2": "decoder"}


def carry(folder: Path, out: Path) -> None:
    for name in CARRIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)


def genai_config(d: Decoder, n_caches: int, config: dict[str, Any], generation: dict[str, Any]) -> dict[str, Any]:
    """`genai_config.json`, from a model's numbers, its config.json and its generation_config.json.

    genai counts layers to find caches, so `n_caches` (blocks with attention) is its num_hidden_layers.
    Format: https://onnxruntime.ai/docs/genai/reference/config.html
    """
    ids = {k: _first(generation.get(k), config.get(k)) for k in _TOKENS}
    if isinstance(ids["bos_token_id"], list):
        ids["bos_token_id"] = ids["bos_token_id"][0]
    if ids["pad_token_id"] is None:  # genai needs one; the first end token is the usual stand-in
        eos = ids["eos_token_id"]
        ids["pad_token_id"] = eos[0] if isinstance(eos, list) and eos else eos
    return {
        "model": {
            **{k: v for k, v in ids.items() if v is not None},
            "context_length": d.context_tokens,
            "decoder": {
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "provider_options": [],
                    "enable_mem_pattern": False,  # as edgeprune.runtimes.onnxruntime, whose memory is foretold
                },
                "filename": "model.onnx",
                "head_size": d.head_dim,
                "hidden_size": d.hidden,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": d.n_heads,
                "num_hidden_layers": n_caches,
                "num_key_value_heads": d.n_kv_heads,
            },
            "type": _GENAI_TYPES.get(d.model_type, d.model_type),
            "vocab_size": d.vocab,
        },
        "search": {
            "diversity_penalty": 0.0,
            "do_sample": bool(generation.get("do_sample", False)),
            "early_stopping": True,
            "length_penalty": 1.0,
            "max_length": min(d.context_tokens, _DEFAULT_MAX_LENGTH),
            "min_length": 0,
            "no_repeat_ngram_size": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": float(_first(generation.get("repetition_penalty"), 1.0)),
            "temperature": float(_first(generation.get("temperature"), 1.0)),
            "top_k": int(_first(generation.get("top_k"), 50)),
            "top_p": float(_first(generation.get("top_p"), 1.0)),
        },
    }


_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_generation(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _first(*values: Any) -> Any:
    return next((v for v in values if v is not None), None)
