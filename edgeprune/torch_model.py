"""Models in torch: load a folder, view a model with fewer blocks without copying it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgeprune import families
from edgeprune.checkpoint import open_checkpoint
from edgeprune.errors import InputRejected, OutOfResources
from edgeprune.types import Blocks


def device() -> str:
    """CUDA when present, else CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load(folder: Path, on: str | None = None) -> Any:
    """The causal LM of a transformers folder, in eval mode: float32 on a CPU, its stored type on CUDA."""
    quiet()
    import torch
    from transformers import AutoModelForCausalLM

    open_checkpoint(folder)
    on = on or device()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32 if on == "cpu" else "auto", trust_remote_code=False, local_files_only=True
        )
        return model.to(on).eval().requires_grad_(False)
    except (MemoryError, torch.cuda.OutOfMemoryError) as e:
        raise OutOfResources(f"{folder} does not fit in {on} memory; use a machine with more") from e
    except RuntimeError as e:
        if "memory" in str(e).lower():
            raise OutOfResources(f"{folder} does not fit in {on} memory; use a machine with more") from e
        raise


def tokenizer(folder: Path) -> Any:
    quiet()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as e:
        raise InputRejected(f"{folder} has no tokenizer transformers can read ({_first_line(e)})") from None


def pruned_config(config: dict[str, Any], blocks: Blocks) -> dict[str, Any]:
    """The config of the model that `blocks` leaves: layer count, and per-layer lists re-sliced with the attention.

    Raises InputRejected for a list of one entry per layer that the family does not know: it can't be guessed
    whether such state travels with the layer.
    """
    family = families.for_model_type(config["model_type"])
    n, keep = config["num_hidden_layers"], [b.attn for b in blocks]
    out = dict(config, num_hidden_layers=len(blocks))
    for name, value in config.items():
        if name in family.PER_LAYER_CONFIG:
            if value is not None:
                out[name] = [value[i] for i in keep]
        elif isinstance(value, list) and len(value) == n and n > 1 and name not in ("architectures", "eos_token_id"):
            raise InputRejected(
                f"config.json has {name}, {n} entries for {n} layers, which edgeprune does not know; refusing"
            )
    if "layer_types" in family.PER_LAYER_CONFIG and config.get("use_sliding_window"):
        # Older configs say it by a formula over the layer number, which a cut would break.
        kinds = [family.sliding_window(config, i) for i in keep]
        out["layer_types"] = ["full_attention" if k is None else "sliding_attention" for k in kinds]
    return out


def view(model: Any, blocks: Blocks) -> Any:
    """The model that `blocks` leaves, sharing the weights of `model`: layers renumbered, own KV cache indices."""
    import torch

    config = type(model.config)(**pruned_config(model.config.to_dict(), blocks))
    config._attn_implementation = model.config._attn_implementation
    family = families.for_model_type(config.model_type)
    with torch.device("meta"):
        out = type(model)(config)
    shared = dict(model.named_parameters(remove_duplicate=False))
    state = {}
    for name in dict(out.named_parameters(remove_duplicate=False)):
        state[name] = shared[source_name(family, name, blocks)]
    out.load_state_dict(state, strict=True, assign=True)
    out.model.rotary_emb = model.model.rotary_emb  # buffers outside the state dict
    return out.eval().requires_grad_(False)


def source_name(family: Any, name: str, blocks: Blocks) -> str:
    """Whole-model name of the tensor that becomes `name` in the pruned model."""
    m = re.fullmatch(re.escape(family.LAYER).replace(r"\{i\}", r"(\d+)") + "(.+)", name)
    if not m:
        return name
    block = blocks[int(m[1])]
    layer = block.attn if m[2].rpartition(".")[0] in family.ATTN else block.ffn
    return family.LAYER.format(i=layer) + m[2]


def quiet() -> None:
    """No bars or advice of libraries between ours. Called before they are imported."""
    import os

    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers' GGUF reader asks nobody else
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()


def _first_line(e: Exception) -> str:
    return " ".join(str(e).split())[:120]
