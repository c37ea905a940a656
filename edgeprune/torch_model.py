"""Models in torch: load a folder, turn a .gguf into a folder, view a model with fewer blocks without copying it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgeprune import families
from edgeprune.checkpoint import open_checkpoint, read_config
from edgeprune.errors import InputRejected, OutOfResources
from edgeprune.files import staging, write_sums
from edgeprune.types import Blocks


def device() -> str:
    """CUDA when present, else CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load(folder: Path, on: str | None = None) -> Any:
    """The causal LM of a transformers folder, in eval mode: float32 on a CPU, its stored type on CUDA."""
    _quiet()
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
    _quiet()
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
            raise InputRejected(f"config.json has {name}, {n} entries for {n} layers, which edgeprune does not know; refusing")
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


def materialise(gguf: Path, out: Path, force: bool = False) -> None:
    """A .gguf as a float32 transformers folder: dequantised weights (exact), tokenizer, chat template.

    Reads through transformers' own GGUF support. Raises InputRejected when the tokenizer it rebuilds gives other
    token ids than llama.cpp's.
    """
    _quiet()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = Path(gguf)
    with staging(out, force) as partial:
        partial.mkdir()
        tok = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        _restore_pre_tokenizer(tok, gguf)
        _check_tokens(tok, gguf)
        tok.save_pretrained(partial)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        model.save_pretrained(partial)
        read_config(partial)
        write_sums(partial)


def _restore_pre_tokenizer(tok: Any, gguf: Path) -> None:
    """transformers drops the pre-tokenizer a GGUF names; SmolLM's splits every digit off first."""
    from tokenizers import pre_tokenizers

    from edgeprune.gguf_file import read_header

    if read_header(gguf).metadata.get("tokenizer.ggml.pre") == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tok.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)


PROBE_TEXT = "Hello, world! It's 12:34 on 2024-05-06;\n\n\tx = 3.14159  # naïve café, 日本語 и русский \r\n  don't STOP"


def _check_tokens(tok: Any, gguf: Path) -> None:
    from edgeprune.catalog import load as load_module

    session = load_module("edgeprune.runtimes", "llamacpp").open_session(gguf, n_ctx=256, n_threads=1)
    try:
        theirs = session.tokenize(PROBE_TEXT)
    finally:
        session.close()
    if tok.encode(PROBE_TEXT, add_special_tokens=False) != theirs:
        raise InputRejected(f"{gguf}: transformers can't rebuild its tokenizer exactly; use the model's transformers folder")


def _quiet() -> None:
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
