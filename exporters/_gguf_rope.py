"""Rotary embeddings as GGUF says them: keys below `<arch>.rope.`, and the factors kept as tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgeprune.errors import InputRejected
from edgeprune.families import Decoder, Half
from exporters._gguf_arch import Arch

_Rope = dict[str, Any]
Factors = dict[str, tuple[float, ...]]  # tensor name -> one divisor per pair of dimensions
_LLAMA_CPP_BASE = 10000.0  # where the file does not say


def read_rope(arch: Arch, d: Decoder, halves: Sequence[Half]) -> tuple[dict[str, Any], Factors]:
    """Keys and factor tensors. Raises InputRejected, naming the config.json field, for what the graph can't rotate."""
    ropes: dict[bool, list[_Rope]] = {True: [], False: []}  # of windowed blocks, of the others
    for rope, window, (attention, _) in zip(d.ropes, d.windows, halves, strict=True):
        windowed = arch.local_rope and window is not None
        if attention and rope is not None and rope not in ropes[windowed]:
            ropes[windowed].append(rope)
    if max(len(ropes[True]), len(ropes[False])) > 1:
        raise InputRejected(
            f"config.json: rope differs by layer type, which llama.cpp's {arch.name!r} graph cannot hold"
        )
    keys: dict[str, Any] = {}
    factors: Factors = {}
    if ropes[False]:
        keys, factors = _global(arch, d, ropes[False][0])
    if ropes[True]:
        local = ropes[True][0]
        if local["rope_type"] != "default" or "scaling.original_context_length" in keys:
            kind = local["rope_type"] if local["rope_type"] != "default" else "yarn"
            raise InputRejected(f"config.json: rope type {kind!r} with sliding windows is not in llama.cpp here")
        keys["freq_base_swa"] = local["rope_theta"]
    return keys, factors


def _global(arch: Arch, d: Decoder, rope: _Rope) -> tuple[dict[str, Any], Factors]:
    kind, theta = rope["rope_type"], rope["rope_theta"]
    partial = rope.get("partial_rotary_factor", 1.0)
    n_rot = int(d.head_dim * partial)
    if partial != 1.0 and not arch.partial_rope:
        raise InputRejected(
            f"config.json: partial_rotary_factor {partial} cannot be written to GGUF's {arch.name!r} arch"
        )
    keys: dict[str, Any] = {"freq_base": theta}
    if arch.name == "gemma2" and theta == _LLAMA_CPP_BASE:  # as llama.cpp's converter, which never writes it here
        keys = {}
    if "rope_dim" in arch.says or partial != 1.0:
        keys["dimension_count"] = n_rot
    if arch.longrope:
        keys["scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if kind == "default":
        return keys, {}
    if kind == "longrope" and arch.longrope:
        factor, factors = _longrope(d, rope, n_rot)
        return keys | {"scaling.attn_factor": factor}, factors
    if kind == "linear" and not arch.longrope:
        return keys | {"scaling.type": "linear", "scaling.factor": _number(rope, "factor")}, {}
    if kind == "llama3" and arch.freq_factors:
        return keys, {"rope_freqs.weight": _llama3(rope, theta, d.head_dim)}
    if kind == "yarn" and not arch.longrope:
        return keys | _yarn(rope), {}
    known = ["longrope"] if arch.longrope else ["linear", "yarn"] + ["llama3"] * arch.freq_factors
    raise InputRejected(
        f"config.json: rope type {kind!r} is not in llama.cpp's {arch.name!r} graph; known: {', '.join(known)}"
    )


def _number(rope: _Rope, key: str, default: float | None = None) -> float:
    value = rope.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise InputRejected(f"config.json: rope {key} is {value!r}, not a positive number")
    return float(value)


def _yarn(rope: _Rope) -> dict[str, Any]:
    """https://arxiv.org/abs/2309.00071. llama.cpp itself multiplies by 1 + 0.1 ln(factor)."""
    for key, only in (("beta_fast", 32), ("beta_slow", 1), ("truncate", True), ("extrapolation_factor", 1)):
        if rope.get(key, only) not in (only, None):
            raise InputRejected(f"config.json: yarn {key} {rope[key]!r} is not read by llama.cpp; only {only} works")
    factor = _number(rope, "factor")
    out: dict[str, Any] = {
        "scaling.type": "yarn",
        "scaling.factor": factor,
        "scaling.original_context_length": int(_number(rope, "original_max_position_embeddings")),
    }
    for key in ("beta_fast", "beta_slow"):
        if rope.get(key) is not None:
            out[f"scaling.yarn_{key}"] = float(rope[key])
    built_in = _mscale(factor, 1.0)
    asked = rope.get("attention_factor")
    if asked is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        asked = _mscale(factor, _number(rope, "mscale")) / _mscale(factor, _number(rope, "mscale_all_dim"))
    if asked is not None and abs(asked - built_in) > 1e-6:
        out["scaling.attn_factor"] = float(asked) / built_in
    if rope.get("attention_factor") is not None:
        out["scaling.yarn_attn_factor"] = float(rope["attention_factor"])
    return out


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _llama3(rope: _Rope, theta: float, head_dim: int) -> tuple[float, ...]:
    """What each frequency is divided by: Llama 3.1's rope scaling (transformers, modeling_rope_utils.py, "llama3")."""
    factor = _number(rope, "factor", 8.0)
    low, high = _number(rope, "low_freq_factor", 1.0), _number(rope, "high_freq_factor", 4.0)
    original = _number(rope, "original_max_position_embeddings", 8192)
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


def _longrope(d: Decoder, rope: _Rope, n_rot: int) -> tuple[float, Factors]:
    """The factor on queries and keys, and the divisors below and past the original context.

    https://arxiv.org/abs/2402.13753; transformers, modeling_rope_utils.py, "longrope".
    """
    factors: Factors = {}
    for kind in ("long", "short"):
        values = rope.get(f"{kind}_factor")
        numbers = isinstance(values, list) and all(isinstance(v, (int, float)) and v > 0 for v in values)
        if not numbers or len(values) != n_rot // 2:
            raise InputRejected(f"config.json: rope {kind}_factor should be a list of {n_rot // 2} positive numbers")
        factors[f"rope_factors_{kind}.weight"] = tuple(float(v) for v in values)
    original = rope["original_max_position_embeddings"]
    stretch = _number(rope, "factor", d.context_tokens / original)
    derived = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    return float(rope.get("attention_factor") or derived), factors
