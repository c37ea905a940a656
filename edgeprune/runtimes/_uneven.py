"""Models whose layers differ in width. Transformers has a config for them, `per_layer_config`, and makes no model of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from edgeprune import families
from edgeprune.checkpoint import open_checkpoint


def load(folder: Path) -> Any:
    """The causal LM of such a folder, float32: transformers' own layers, each made from a config with its own widths.

    Raises as transformers and torch do where config and tensors don't fit.
    """
    import torch
    from accelerate import init_empty_weights
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    checkpoint = open_checkpoint(folder)
    said = {k: v for k, v in checkpoint.config.items() if k not in ("per_layer_config", "model_type")}
    config = AutoConfig.for_model(checkpoint.config["model_type"], **said)
    decoder = families.decoder(checkpoint.config)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        for i, layer in enumerate(model.model.layers):
            own = copy.copy(model.model.config)
            for field, name in families.WIDTH_FIELDS.items():
                setattr(own, name, getattr(decoder.widths[i], field))
            model.model.layers[i] = type(layer)(own, i)
    files = sorted({entry.file for entry in checkpoint.tensors.values()})
    state = {name: value.float() for file in files for name, value in load_file(file).items()}
    if families.is_tied(decoder, state):
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    return model
