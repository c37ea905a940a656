"""Tiny random models as GGUF through gguf-py's own names and writer, and their torch originals with blocks recombined."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _shapes import plan_for

from edgeprune import gguf_prune, model
from edgeprune.runtimes import llamacpp
from edgeprune.types import Block

VOCAB, WIDTH = 320, 64
BASE = dict(
    vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True,
)  # fmt: skip
FFN_OF = {  # children of a torch layer that move with the feed-forward
    "default": ("mlp", "post_attention_layernorm"),
    "gemma2": ("mlp", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    "gemma3": ("mlp", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    "olmo2": ("mlp", "post_feedforward_layernorm"),
    "apertus": ("mlp", "feedforward_layernorm"),
}
TWO_ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
# architecture: (transformers config, GGUF metadata below the architecture's name)
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma2": (
        "gemma2",
        dict(BASE, head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
        {"attention.sliding_window": 8, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3": (
        "gemma3_text",
        dict(BASE, head_dim=16, sliding_window=8, query_pre_attn_scalar=16, rope_parameters=TWO_ROPES),
        {"attention.sliding_window": 8, "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4},
    ),
    "olmo2": ("olmo2", dict(BASE, tie_word_embeddings=False), {"rope.freq_base": 1e4}),
    "phi3": ("phi3", dict(BASE, tie_word_embeddings=False), {}),
    "cohere2": (
        "cohere2",
        dict(BASE, sliding_window=8, logit_scale=0.25, layer_norm_eps=1e-5),
        {"attention.sliding_window": 8, "logit_scale": 0.25, "attention.layer_norm_epsilon": 1e-5},
    ),
    "qwen3moe": (
        "qwen3_moe",
        dict(BASE, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True),
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32},
    ),
    "apertus": (
        "apertus",
        dict(BASE, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
        {"rope.freq_base": 1e4},
    ),
}  # fmt: skip


def torch_model(arch: str, n_blocks: int, seed: int = 0) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, values, _ = MODELS[arch]
    config = AutoConfig.for_model(kind, num_hidden_layers=n_blocks, **copy.deepcopy(values))
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, p in made.named_parameters():
            if p.ndim == 1 and "norm" in name:
                p.copy_(1 + 0.1 * torch.randn_like(p))
            elif p.ndim > 1:
                p.copy_(torch.randn_like(p) * 0.6 / p.shape[-1] ** 0.5)
            else:
                p.add_(0.1 * torch.rand_like(p))
    return made


def recombined(whole: Any, arch: str, blocks: Sequence[Block]) -> Any:
    """The torch model with these blocks: halves moved by hand, positions' own values with the attention."""
    import torch

    made = copy.deepcopy(whole)
    config, layers = made.config, []
    for b in blocks:
        layer = copy.deepcopy(whole.model.layers[b.attn])
        for child in FFN_OF.get(arch, FFN_OF["default"]) if b.attn != b.ffn else ():
            setattr(layer, child, copy.deepcopy(getattr(whole.model.layers[b.ffn], child)))
        layers.append(layer)
    made.model.layers = torch.nn.ModuleList(layers)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [whole.config.layer_types[b.attn] for b in blocks]
    return made


def torch_logits(m: Any, ids: list[int]) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return m(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


def llama_logits(path: Path, ids: list[int]) -> np.ndarray:
    session = llamacpp.open_session(path, n_ctx=256, n_threads=1, precise=True)
    try:
        return session.logits(ids)
    finally:
        session.close()


def some_ids(n: int = 60, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(3, 300, n).tolist()


def write_gguf(m: Any, arch: str, path: Path, extra: dict[str, Any] | None = None, split_tensors: int = 0) -> Path:
    """The torch model as F32 GGUF without a vocabulary; `extra` metadata wins, None leaves a key out."""
    import gguf

    c, n = m.config, m.config.num_hidden_layers
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split_tensors)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    values = {
        "block_count": n, "context_length": 256, "embedding_length": c.hidden_size, "vocab_size": c.vocab_size,
        "feed_forward_length": c.intermediate_size, "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads, "attention.key_length": head_dim,
        "attention.value_length": head_dim, "rope.dimension_count": head_dim,
        "attention.layer_norm_rms_epsilon": getattr(c, "rms_norm_eps", 1e-5), **MODELS.get(arch, ("", {}, {}))[2],
    }  # fmt: skip
    writer.add_string("general.name", "Tiny Random")
    writer.add_string("general.size_label", "1K")
    put(writer, {f"{arch}.{k}": v for k, v in values.items()} | xielu(m) | (extra or {}))
    writer.add_string("tokenizer.ggml.model", "none")
    for name, data in tensors(m, arch):
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def xielu(m: Any) -> dict[str, list[float]]:
    """The four numbers of Apertus' activation in each block, as llama.cpp wants them (conversion/apertus.py)."""
    import torch

    found = [getattr(layer.mlp, "act_fn", None) for layer in m.model.layers]
    if not hasattr(found[0], "alpha_p"):
        return {}
    soft = torch.nn.functional.softplus
    with torch.no_grad():
        return {
            "xielu.alpha_p": [float(soft(a.alpha_p)) for a in found],
            "xielu.alpha_n": [float(a.beta + soft(a.alpha_n)) for a in found],
            "xielu.beta": [float(a.beta) for a in found],
            "xielu.eps": [float(a.eps) for a in found],
        }


def tensors(m: Any, arch: str) -> list[tuple[str, np.ndarray]]:
    import gguf

    kind = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch)
    names = gguf.get_tensor_name_map(kind, m.config.num_hidden_layers)
    out, activation = [], ("alpha_p", "alpha_n", "beta", "eps")
    for name, t in m.state_dict().items():
        if name == "lm_head.weight" and m.config.tie_word_embeddings or name.endswith(activation):
            continue
        data = t.numpy()
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            data = data + 1
        if name.endswith("experts.gate_up_proj"):
            gate, up = np.split(data, 2, axis=1)
            stem = "blk." + name.split(".")[2]
            out += [(f"{stem}.ffn_gate_exps.weight", np.ascontiguousarray(gate))]
            out += [(f"{stem}.ffn_up_exps.weight", np.ascontiguousarray(up))]
        elif name.endswith("experts.down_proj"):
            out.append((f"blk.{name.split('.')[2]}.ffn_down_exps.weight", data))
        else:
            found = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert found, name
            out.append((found, data))
    return out


def put(writer: Any, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)


def split(source: Path, out: Path, tensors: int) -> list[Path]:
    """The same model in parts of so many tensors."""
    rewritten(source, out, {}, split_tensors=tensors)
    return sorted(out.parent.glob(f"{out.stem}-*.gguf"))


def rewritten(
    source: Path, out: Path, changes: dict[str, Any], tensors: dict[str, Any] | None = None, split_tensors: int = 0
) -> Path:  # fmt: skip
    """`source` written anew by gguf-py with other metadata (None drops a key) and other tensors (None drops one)."""
    import gguf

    reader = gguf.GGUFReader(source)
    keys = {k: f for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    arch = changes.get("general.architecture") or keys.pop("general.architecture").contents()
    writer = gguf.GGUFWriter(out, arch, split_max_tensors=split_tensors)
    for key, field in keys.items():
        if key not in changes and key != "general.architecture":
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub)
    put(writer, {k: v for k, v in changes.items() if k != "general.architecture"})
    data = {t.name: t.data for t in reader.tensors} | (tensors or {})
    for name, values in data.items():
        if values is not None:
            kind = next((t.tensor_type for t in reader.tensors if t.name == name), None)
            writer.add_tensor(name, np.array(values), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def to_blocks(*pairs: int | tuple[int | None, int | None]) -> tuple[Block, ...]:
    return tuple(Block(attn=p, ffn=p) if isinstance(p, int) else Block(attn=p[0], ffn=p[1]) for p in pairs)


def cut(source: Path, blocks: Sequence[Block], out: Path) -> Path:
    spec = model.inspect(source)
    gguf_prune.prune_gguf(source, spec, plan_for(spec, tuple(blocks)), out, base_model="tiny")
    return out


def contents(path: Path) -> tuple[dict[str, Any], dict[str, tuple]]:
    """({key: (types, value)}, {tensor: (type, shape, bytes)}) as gguf-py reads them."""
    import gguf

    reader = gguf.GGUFReader(path)
    keys = {k: (f.types, f.contents()) for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    return keys, {t.name: (t.tensor_type.name, t.shape.tolist(), t.data.tobytes()) for t in reader.tensors}


def prune_layers(source: Path, gone: list[int], out: Path) -> Path:
    """`llama-quantize --prune-layers … copy`, through the library: nothing is requantised."""
    import ctypes

    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    layers = (ctypes.c_int32 * (len(gone) + 1))(*sorted(gone), -1)
    params.only_copy, params.prune_layers = True, ctypes.cast(layers, type(params.prune_layers))
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)) == 0
    return out
