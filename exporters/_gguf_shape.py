"""What a transformers config means to llama.cpp: sizes, rope and context, or a refusal. No weights, no torch."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

from edgeprune.errors import InputRejected

# Values transformers fills in where config.json is silent (its configuration_<model_type>.py files).
_SILENT: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 128},
    "mistral": {"sliding_window": 4096},
}


class Shape(NamedTuple):
    n_blocks: int
    hidden: int
    ffn: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    context_tokens: int  # never past a sliding window: llama.cpp's archs here attend to everything
    norm_eps: float
    rope: dict[str, Any]  # GGUF keys below `<arch>.rope.`
    rope_factors: tuple[float, ...] | None  # per pair of dimensions, for rope_freqs.weight
    tied: bool | None  # None: config.json does not say


def read_shape(config: dict[str, Any], family: ModuleType) -> Shape:
    """Raises InputRejected, naming the config.json field, for anything GGUF could not hold faithfully."""
    kind = config["model_type"]
    config = {**_SILENT.get(kind, {}), **{k: v for k, v in config.items() if v is not None or k == "sliding_window"}}
    act = config.get("hidden_act", "silu")
    if act != "silu":
        raise InputRejected(f"config.json: hidden_act is {act!r}; llama.cpp computes {kind} models with silu only")
    if config.get("quantization_config"):
        raise InputRejected("config.json: the weights are quantised already; export from the unquantised model")
    n_heads, hidden = _count(config, "num_attention_heads"), _count(config, "hidden_size")
    head_dim = _count(config, "head_dim", hidden // n_heads)
    rope, factors = _rope(config, head_dim)
    return Shape(
        n_blocks=_count(config, "num_hidden_layers"),
        hidden=hidden,
        ffn=_count(config, "intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=_count(config, "num_key_value_heads", n_heads),
        head_dim=head_dim,
        vocab=_count(config, "vocab_size"),
        context_tokens=_context(config, family),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope=rope,
        rope_factors=factors,
        tied=config.get("tie_word_embeddings"),
    )


def arch_metadata(shape: Shape, arch: str) -> dict[str, Any]:
    """Keys without their `<arch>.` prefix."""
    values: dict[str, Any] = {
        "block_count": shape.n_blocks,
        "context_length": shape.context_tokens,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.ffn,
        "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads,
        "attention.layer_norm_rms_epsilon": shape.norm_eps,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
    }
    values.update({f"rope.{k}": v for k, v in shape.rope.items()})
    if arch == "llama":  # as llama.cpp's converter does; the others derive both
        values.update({"vocab_size": shape.vocab, "rope.dimension_count": shape.head_dim})
    return values


def _count(config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise InputRejected(f"config.json: {key} is {value!r}, not a positive number; is this a transformers model?")
    return value


def _context(config: dict[str, Any], family: ModuleType) -> int:
    """Within its window a sliding-window model attends to everything, so the declared context ends there."""
    layers = config.get("layer_types")
    if layers is not None:
        if not isinstance(layers, list) or len(layers) != config["num_hidden_layers"]:
            raise InputRejected("config.json: layer_types does not have one entry per layer; re-slice it")
        unknown = sorted({str(t) for t in layers} - {"full_attention", "sliding_attention"})
        if unknown:
            raise InputRejected(f"config.json: layer type {unknown[0]!r} cannot be written to GGUF")
    windows = {family.sliding_window(config, i) for i in range(config["num_hidden_layers"])} - {None}
    lengths = [_count(config, "max_position_embeddings", 2048)]
    return min(lengths + [_count({"sliding_window": w}, "sliding_window") for w in windows])


def _rope(config: dict[str, Any], head_dim: int) -> tuple[dict[str, Any], tuple[float, ...] | None]:
    params = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if any(isinstance(v, dict) for v in params.values()):
        raise InputRejected("config.json: rope differs by layer type, which this GGUF arch cannot hold")
    theta = float(params.get("rope_theta") or config.get("rope_theta") or 10000.0)
    partial = params.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        raise InputRejected(f"config.json: partial_rotary_factor {partial} cannot be written to this GGUF arch")
    kind = str(params.get("rope_type") or params.get("type") or "default")
    rope: dict[str, Any] = {"freq_base": theta}
    if kind == "default":
        return rope, None
    if kind == "linear":
        return rope | {"scaling.type": "linear", "scaling.factor": _number(params, "factor")}, None
    if kind == "llama3":
        return rope, _llama3_factors(params, theta, head_dim)
    if kind == "yarn":
        return rope | _yarn(config, params), None
    raise InputRejected(f"config.json: rope type {kind!r} is not in llama.cpp here; known: linear, llama3, yarn")


def _number(params: dict[str, Any], key: str, default: float | None = None) -> float:
    value = params.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise InputRejected(f"config.json: rope {key} is {value!r}, not a positive number")
    return float(value)


def _yarn(config: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """https://arxiv.org/abs/2309.00071. llama.cpp itself multiplies by 1 + 0.1 ln(factor)."""
    for key, only in (("beta_fast", 32), ("beta_slow", 1), ("truncate", True), ("extrapolation_factor", 1)):
        if params.get(key, only) not in (only, None):
            raise InputRejected(f"config.json: yarn {key} {params[key]!r} is not read by llama.cpp; only {only} works")
    factor = _number(params, "factor")
    key = "original_max_position_embeddings"
    original = _count({key: params.get(key, config.get("max_position_embeddings"))}, key)
    out: dict[str, Any] = {
        "scaling.type": "yarn",
        "scaling.factor": factor,
        "scaling.original_context_length": original,
    }
    for key in ("beta_fast", "beta_slow"):
        if params.get(key) is not None:
            out[f"scaling.yarn_{key}"] = float(params[key])
    built_in = _mscale(factor, 1.0)
    asked = params.get("attention_factor")
    if asked is None and params.get("mscale") and params.get("mscale_all_dim"):
        asked = _mscale(factor, _number(params, "mscale")) / _mscale(factor, _number(params, "mscale_all_dim"))
    if asked is not None and abs(asked - built_in) > 1e-6:
        out["scaling.attn_factor"] = float(asked) / built_in
    if params.get("attention_factor") is not None:
        out["scaling.yarn_attn_factor"] = float(params["attention_factor"])
    return out


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _llama3_factors(params: dict[str, Any], theta: float, head_dim: int) -> tuple[float, ...]:
    """What each frequency is divided by: Llama 3.1's rope scaling (transformers, modeling_rope_utils.py, "llama3")."""
    factor = _number(params, "factor", 8.0)
    low, high = _number(params, "low_freq_factor", 1.0), _number(params, "high_freq_factor", 4.0)
    original = _number(params, "original_max_position_embeddings", 8192)
    out = []
    for i in range(0, head_dim, 2):
        waves = original * theta ** (-i / head_dim) / (2 * math.pi)  # turns within the original context
        if waves > high:
            out.append(1.0)
        elif waves < low:
            out.append(factor)
        else:
            smooth = (waves - low) / (high - low)
            out.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return tuple(out)
