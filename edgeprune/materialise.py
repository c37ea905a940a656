"""A .gguf as a transformers folder: what torch scores and prunes. Weights are dequantised to float32, exactly.

Config and tokenizer come from transformers' own GGUF support; values from gguf-py's dequantisation, one tensor in
memory at a time.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import families
from edgeprune._gguf_arch import ARCHITECTURES
from edgeprune._model_gguf import block_of, inspect_gguf
from edgeprune.checkpoint import open_checkpoint, write_float32
from edgeprune.errors import InputRejected
from edgeprune.files import need_space, staging, write_sums
from edgeprune.gguf_file import GGUFHeader, read_header
from edgeprune.model_card import front_of_gguf
from edgeprune.torch_model import quiet
from edgeprune.types import ModelSpec

PROBE_TEXT = "Hello, world! It's 12:34 on 2024-05-06;\n\n\tx = 3.14159  # naïve café, 日本語 и русский \r\n  don't STOP"


def materialise(gguf: Path, out: Path, force: bool = False) -> None:
    """Write the transformers folder `out` from a .gguf file.

    Raises InputRejected when the file is damaged, its family is unknown, or when the tokenizer transformers rebuilds
    gives other token ids than llama.cpp's.
    """
    quiet()
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    header = read_header(gguf)
    first = header.paths[0]
    need_space(out, sum(4 * math.prod(t.shape) for t in header.tensors.values()))
    with staging(out, force) as partial:
        partial.mkdir()
        try:
            config = AutoConfig.from_pretrained(first.parent, gguf_file=first.name)
            tok = AutoTokenizer.from_pretrained(first.parent, gguf_file=first.name)
        except (ValueError, NotImplementedError, KeyError) as e:
            raise InputRejected(
                f"{gguf}: transformers does not read this GGUF ({' '.join(str(e).split())[:120]})"
            ) from None
        _as_llama_cpp(config, inspect_gguf(first, None))
        _restore_pre_tokenizer(tok, header)
        _check_tokens(tok, gguf)
        tok.save_pretrained(partial)
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
        config.dtype = "float32"
        config.tie_word_embeddings = "output.weight" not in header.tensors
        config.save_pretrained(partial)
        GenerationConfig.from_model_config(config).save_pretrained(partial)
        write_weights(header, families.for_model_type(config.model_type), config, partial / "model.safetensors")
        if card := front_of_gguf(header.metadata):
            (partial / "README.md").write_text(card, encoding="utf-8")
        open_checkpoint(partial)
        write_sums(partial)


def _as_llama_cpp(config: Any, spec: ModelSpec) -> None:
    """What transformers leaves at its defaults, from the file. Raises InputRejected where its reading differs otherwise."""
    family = families.for_model_type(config.model_type)
    if getattr(config, "head_dim", spec.head_dim) != spec.head_dim:
        config.head_dim = spec.head_dim
    if getattr(config, "layer_types", None):
        slides = [b.sliding_window_tokens is not None for b in spec.blocks]
        config.layer_types = ["sliding_attention" if s else "full_attention" for s in slides]
    if hasattr(config, "query_pre_attn_scalar"):  # gemma: llama.cpp scales by it only in its 27B models
        by_count = ARCHITECTURES[spec.model_type].by_count
        large = by_count is not None and by_count(spec.n_blocks)
        config.query_pre_attn_scalar = spec.hidden_size // spec.n_heads if large else spec.head_dim
    found, blocks = family.decoder(config.to_dict()), spec.blocks
    same = (found.n_blocks, found.head_dim, found.windows, [rope is not None for rope in found.ropes])
    if same != (
        spec.n_blocks,
        spec.head_dim,
        tuple(b.sliding_window_tokens for b in blocks),
        [b.rotates for b in blocks],
    ):
        raise InputRejected(
            f"{spec.name}: transformers reads other layers from this GGUF; use the model's transformers folder"
        )


def write_weights(header: GGUFHeader, family: Any, config: Any, path: Path) -> None:
    """Every tensor of the model under its transformers name, float32."""
    names = {_torch_name(family, n): n for n in header.tensors if n != "rope_freqs.weight"}
    norm_offset = family.decoder(config.to_dict()).norm_offset
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}

    def produce(name: str) -> np.ndarray:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = header.tensors[names[name]]
        raw = np.memmap(tensor.path, mode="r", dtype=np.uint8, offset=tensor.offset, shape=(tensor.n_bytes,))
        rows = math.prod(tensor.shape[:-1])
        values = dequantize(raw.reshape(rows, -1), GGMLQuantizationType[tensor.type]).reshape(tensor.shape)
        role = names[name].split(".")[-2]
        if norm_offset and role.endswith("norm"):
            return values - np.float32(norm_offset)  # GGUF stores what multiplies
        return unpermute(values, heads[role]) if family.PERMUTE_QK and role in heads else values

    write_float32(path, {name: header.tensors[n].shape for name, n in names.items()}, produce)


def unpermute(values: np.ndarray, n_heads: int) -> np.ndarray:
    """Undo the interleaving of rotary rows that llama.cpp's converter applies (conversion/llama.py, `permute`).

    (rows, …) with rows = heads × head_dim: pairs (i, i + head_dim/2) lie side by side in GGUF.
    """
    half = values.shape[0] // n_heads // 2
    return values.reshape(n_heads, half, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _torch_name(family: Any, name: str) -> str:
    role, _, kind = name.rpartition(".")
    found = {v: k for k, v in family.GLOBALS.items()}.get(role)
    if found:
        return f"{found}.{kind}"
    block = block_of(name)
    path = {v: k for k, v in {**family.ATTN, **family.FFN}.items()}.get(block[1].rpartition(".")[0]) if block else None
    if path is None:
        raise InputRejected(
            f"tensor {name!r} has no place in a transformers {families.key(family)} model; refusing to guess"
        )
    layer = block[0]
    return f"{family.LAYER.format(i=layer)}{path}.{kind}"


def _restore_pre_tokenizer(tok: Any, header: GGUFHeader) -> None:
    """transformers drops the pre-tokenizer a GGUF names; SmolLM's splits every digit off first."""
    from tokenizers import pre_tokenizers

    if header.metadata.get("tokenizer.ggml.pre") == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tok.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)


def _check_tokens(tok: Any, gguf: Path) -> None:
    from edgeprune.catalog import load

    session = load("edgeprune.runtimes", "llamacpp").open_session(gguf, n_ctx=256, n_threads=1)
    try:
        theirs = session.tokenize(PROBE_TEXT)
    finally:
        session.close()
    if tok.encode(PROBE_TEXT, add_special_tokens=False) != theirs:
        raise InputRejected(
            f"{gguf}: transformers can't rebuild its tokenizer exactly; use the model's transformers folder"
        )
