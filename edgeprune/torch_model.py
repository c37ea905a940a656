"""Models in torch: load a folder, view a model with fewer blocks without copying it."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeprune import families
from edgeprune._host import cgroup_limit
from edgeprune.checkpoint import DTYPE_BYTES, Checkpoint, open_checkpoint
from edgeprune.errors import InputRejected, OutOfResources, UsageError
from edgeprune.types import Blocks

TYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes
WEIGHTS_SHARE = 0.75  # of memory; the rest is for activations


def device() -> str:
    """CUDA when present, else CPU; of several processes on a machine each takes its own GPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def fast_dtype() -> str | None:
    """The type matrix products are fastest in here: bfloat16 where the device has instructions for it; else None."""
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else None
    has = torch.cpu.get_capabilities()
    return "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") or has.get("arm_bf16") else None


def dtype_of(precision: str) -> str | None:
    """The type that --precision names; "auto" is the fastest here."""
    return fast_dtype() if precision == "auto" else precision


def load(folder: Path, on: str | None = None, dtype: str | None = None, max_bytes: int | None = None) -> Any:
    """The causal LM of a transformers folder, in eval mode, in `dtype`: else float32 on a CPU, its stored type on CUDA.

    max_bytes: what weights and activations may take on a device, `free_bytes()` unless told. Where weights would take
    more than three quarters of it, they are spread over the GPUs there are, and beyond those over the CPU's memory and
    the disk; with no GPU all stay on disk. What is not on its device is brought when it is called, so that the rest of
    the memory goes to activations: the more of them, the fewer times all weights are read.
    Raises OutOfResources where even that fails.
    """
    if dtype not in (None, *TYPES):
        raise UsageError(f"no weights of type {dtype!r} here; name one of {', '.join(TYPES)}")
    quiet()
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(folder)
    refuse_uneven(checkpoint.config)
    on = on or device()
    dtype = dtype or ("float32" if on == "cpu" else "auto")
    n_bytes, limit = _weight_bytes(checkpoint, dtype), max_bytes or free_bytes(on)
    if on == "cpu" and n_bytes > limit / 4:
        _give_back_freed_memory()
    from_pretrained = functools.partial(
        AutoModelForCausalLM.from_pretrained, folder, dtype=dtype, trust_remote_code=False, local_files_only=True
    )
    with memory_errors(f"{folder} does not fit in {on} memory; use a machine with more"):
        if n_bytes <= WEIGHTS_SHARE * limit:
            model = from_pretrained().to(on)
        elif on == "cpu":
            model = _on_disk(checkpoint, dtype)
        else:
            places = {i: int(WEIGHTS_SHARE * limit) for i in _gpus()} | {"cpu": int(WEIGHTS_SHARE * free_bytes("cpu"))}
            model = from_pretrained(device_map="auto", max_memory=places)
        return model.eval().requires_grad_(False)


def load_thinner(folder: Path, dtype: str, max_bytes: int | None = None) -> Any:
    """As `load`, of a folder that `edgeprune prune --width` wrote. One whose layers differ in width is never left on disk."""
    if not open_checkpoint(folder).config.get("per_layer_config"):
        return load(folder, dtype=dtype, max_bytes=max_bytes)
    import torch

    from edgeprune.runtimes import _uneven

    with memory_errors(f"{folder} does not fit in memory; use a machine with more"):
        return _uneven.load(folder).to(device(), getattr(torch, dtype)).eval().requires_grad_(False)


@contextlib.contextmanager
def memory_errors(line: str) -> Iterator[None]:
    """What torch raises for want of memory, on any device, as OutOfResources with this line."""
    import torch

    try:
        yield
    except (MemoryError, torch.cuda.OutOfMemoryError) as e:
        raise OutOfResources(line) from e
    except RuntimeError as e:
        if "memory" in str(e).lower():
            raise OutOfResources(line) from e
        raise


def _on_disk(checkpoint: Checkpoint, dtype: str) -> Any:
    """The model with all weights left in its safetensors files: accelerate reads each module's when it is called."""
    import accelerate
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
    with accelerate.init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    model.tie_weights()
    stored = {id(p): name for name, p in model.named_parameters(remove_duplicate=False) if name in checkpoint.tensors}
    index = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        entry = checkpoint.tensors[stored[id(p)]]  # of a tied weight the one that is there
        index[name] = {"safetensors_file": str(entry.file), "weight_name": stored[id(p)], "dtype": dtype}
    return accelerate.dispatch_model(model, {"": "disk"}, offload_index=index)


def free_bytes(on: str | None = None) -> int:
    """What weights and activations of this process may take on a device unless told: nine tenths of what is free.

    Processes on one machine share its memory evenly; each has a GPU of its own, or all there are when it is alone.
    """
    import torch

    on = on or device()
    if on != "cpu":
        return int(0.9 * min(torch.cuda.mem_get_info(i)[0] for i in _gpus()))
    import psutil

    free = min(psutil.virtual_memory().available, cgroup_limit() or math.inf)
    return int(0.9 * free / int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _gpus() -> list[int]:
    import torch

    alone = os.environ.get("LOCAL_WORLD_SIZE", "1") == "1"
    return list(range(torch.cuda.device_count())) if alone else [int(os.environ["LOCAL_RANK"])]


def _give_back_freed_memory() -> None:
    """glibc keeps freed blocks of up to 32 MB to itself, in pieces that the next tensor may not fit in; here of up to 1 MB.
    New memory costs time, a part that shrinks as models grow, so this is for where memory is short."""
    import ctypes

    m_mmap_threshold = -3  # mallopt(3)
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 1 << 20)


def _weight_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """Of a model loaded in `dtype`; "auto" is the stored one."""
    return sum(math.prod(t.shape) * TYPES.get(dtype, DTYPE_BYTES[t.dtype]) for t in checkpoint.tensors.values())


def tokenizer(folder: Path) -> Any:
    quiet()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as e:
        raise InputRejected(f"{folder} has no tokenizer transformers can read ({_first_line(e)})") from None


def pruned_config(config: dict[str, Any], blocks: Blocks) -> dict[str, Any]:
    """The config of the model that `blocks` leaves: layer count, and per-layer lists re-sliced with the attention.

    A block without attention takes the entries of its feed-forward's layer: nothing reads them.
    Raises InputRejected for a list of one entry per layer that the family does not know: it can't be guessed
    whether such state travels with the layer.
    """
    refuse_uneven(config)
    family = families.for_model_type(config["model_type"])
    n, keep = config["num_hidden_layers"], [b.ffn if b.attn is None else b.attn for b in blocks]
    lists = family.per_layer(config)
    for name, value in config.items():
        known = name in lists or name in ("architectures", "eos_token_id")
        if isinstance(value, list) and len(value) == n and n > 1 and not known:
            raise InputRejected(
                f"config.json has {name}, {n} entries for {n} layers, which edgeprune does not know; refusing"
            )
    sliced = {name: [values[i] for i in keep] for name, values in lists.items()}
    return {**config, **sliced, "num_hidden_layers": len(blocks)}


def refuse_uneven(config: dict[str, Any]) -> None:
    """Raises InputRejected for layers that differ in width, of which transformers makes no model."""
    if config.get("per_layer_config"):
        raise InputRejected(
            "this model's layers differ in width: it can be healed by refit, exported, measured and evaluated as it is; what else "
            "there is to remove or to heal comes before `edgeprune prune --width`"
        )


def view(model: Any, blocks: Blocks) -> Any:
    """The model that `blocks` leaves, sharing the weights of `model`: layers renumbered, own KV cache indices.

    A missing half is all zeros, so that it adds nothing.
    """
    import torch

    config = type(model.config)(**pruned_config(model.config.to_dict(), blocks))
    config._attn_implementation = model.config._attn_implementation
    family = families.for_model_type(config.model_type)
    with torch.device("meta"):
        out = type(model)(config)
    shared = dict(model.named_parameters(remove_duplicate=False))
    zeros: dict[torch.Size, Any] = {}
    state = {}
    for name, wanted in dict(out.named_parameters(remove_duplicate=False)).items():
        source = source_name(family, name, blocks)
        if source is None:
            like = next(iter(shared.values()))
            state[name] = zeros.setdefault(
                wanted.shape, torch.zeros(wanted.shape, dtype=like.dtype, device=like.device)
            )
        else:
            state[name] = shared[source]
    out.load_state_dict(state, strict=True, assign=True)
    _share_buffers(out, model)
    return out.eval().requires_grad_(False)


def _share_buffers(out: Any, model: Any) -> None:
    """Buffers outside the state dict: rotation frequencies, embedding scales. None of them is per layer."""
    out.model.rotary_emb = model.model.rotary_emb
    for name, value in model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        if not owner.startswith("model.rotary_emb"):
            setattr(out.get_submodule(owner), leaf, value)


def source_name(family: Any, name: str, blocks: Blocks) -> str | None:
    """Whole-model name of the tensor that becomes `name` in the pruned model; None where the half is left out."""
    m = re.fullmatch(re.escape(family.LAYER).replace(r"\{i\}", r"(\d+)") + "(.+)", name)
    if not m:
        return name
    block = blocks[int(m[1])]
    layer = block.attn if m[2].rpartition(".")[0] in family.ATTN else block.ffn
    return None if layer is None else family.LAYER.format(i=layer) + m[2]


def quiet() -> None:
    """No bars or advice of libraries between ours. Called before they are imported."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers' GGUF reader asks nobody else
    import logging

    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # that some weights are on disk is meant
    disable_progress_bars()


def _first_line(e: Exception) -> str:
    return " ".join(str(e).split())[:120]
