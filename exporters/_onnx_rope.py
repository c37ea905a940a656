"""Cosine and sine tables of rotary position embedding, for GroupQueryAttention's in-op rotation.

A rotation is a dict as edgeprune.families gives it per block (transformers' `rope_parameters`): rope_type, rope_theta,
partial_rotary_factor and what the type needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeprune.errors import InputRejected

# Rope types and the numbers each needs besides rope_theta.
KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("original_max_position_embeddings",),
    "longrope": ("original_max_position_embeddings",),
}


def check_rope(rope: Mapping[str, Any], head_dim: int) -> None:
    """Raises InputRejected for a rotation that is unknown, incomplete, or depends on more than position and length."""
    kind = rope["rope_type"]
    if kind not in KINDS:
        raise InputRejected(f"rope type {kind!r} can't be written to ONNX; known: {', '.join(KINDS)}; export to GGUF")
    for name in KINDS[kind]:
        value = rope.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise InputRejected(f"config.json: {name} of the {kind} rotation should be a positive number, is {value!r}")
    dim = rotated(rope, head_dim)
    if not 0 < dim <= head_dim or dim % 16:
        raise InputRejected(
            f"config.json: {dim} of each head's {head_dim} values rotate; onnxruntime needs a multiple of 16; use GGUF"
        )
    for name in ("short_factor", "long_factor") if kind == "longrope" else ():
        factors = rope.get(name)
        if not isinstance(factors, list) or len(factors) != dim // 2:
            raise InputRejected(f"config.json: {name} should list {dim // 2} numbers, one per rotated pair")


def rotated(rope: Mapping[str, Any], head_dim: int) -> int:
    """How many of a head's values rotate."""
    return int(head_dim * rope.get("partial_rotary_factor", 1.0))


def switch_tokens(rope: Mapping[str, Any]) -> int | None:
    """Length up to which a longrope's short factors hold (its tables' first rows); None for all other rotations."""
    return int(rope["original_max_position_embeddings"]) if rope["rope_type"] == "longrope" else None


def rope_tables(rope: Mapping[str, Any], head_dim: int, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin), float32 (positions, rotated/2); longrope's are (short rows + positions, …), short factors first.

    Angles are taken in float32 as torch takes them, so that far positions round alike.
    """
    dim, kind = rotated(rope, head_dim), rope["rope_type"]
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    powers = np.float32(rope["rope_theta"]) ** exponents
    plain = 1 / powers
    gain, parts = 1.0, [(plain, positions)]
    if kind == "linear":  # Chen et al. 2023, arXiv:2306.15595: positions squeezed by `factor`
        parts = [(plain / np.float32(rope["factor"]), positions)]
    elif kind == "llama3":
        parts = [(_llama3(plain, rope), positions)]
    elif kind == "yarn":
        frequencies, gain = _yarn(plain, rope, dim, positions)
        parts = [(frequencies, positions)]
    elif kind == "longrope":  # Ding et al. 2024, arXiv:2402.13753
        gain = _longrope_gain(rope, positions)
        short, long = (np.asarray(rope[k], np.float32) for k in ("short_factor", "long_factor"))
        parts = [(1 / (short * powers), switch_tokens(rope)), (1 / (long * powers), positions)]
    angles = np.concatenate([_angles(*part) for part in parts])
    return np.cos(angles) * np.float32(gain), np.sin(angles) * np.float32(gain)


def _angles(frequencies: np.ndarray, positions: int) -> np.ndarray:
    return np.arange(positions, dtype=np.float32)[:, None] * frequencies.astype(np.float32)[None, :]


def _llama3(plain: np.ndarray, rope: Mapping[str, Any]) -> np.ndarray:
    """Llama 3.1: slow pairs are divided by `factor`, fast ones kept, those between blended."""
    turns = rope["original_max_position_embeddings"] * plain / np.float32(2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return keep * plain + (1 - keep) * plain / rope["factor"]


def _longrope_gain(rope: Mapping[str, Any], positions: int) -> float:
    """√(1 + ln(stretch) / ln(old context)), unless the config says it."""
    old, said = rope["original_max_position_embeddings"], rope.get("attention_factor")
    stretch = rope.get("factor") or positions / old
    if said is not None:
        return float(said)
    return 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(old))


def _yarn(plain: np.ndarray, rope: Mapping[str, Any], dim: int, positions: int) -> tuple[np.ndarray, float]:
    """Peng et al. 2023, arXiv:2309.00071, sections 3.2 (blend by turns in the old context) and 3.4 (temperature)."""
    old = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or positions / old

    def pair_turning(turns: float) -> float:
        return dim * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low, high = pair_turning(rope.get("beta_fast") or 32), pair_turning(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    squeeze = np.clip((np.arange(dim // 2) - low) / ((high - low) or 0.001), 0, 1).astype(np.float32)

    def temperature(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

    gain = rope.get("attention_factor")
    if gain is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        gain = temperature(rope["mscale"]) / temperature(rope["mscale_all_dim"])
    if gain is None:
        gain = temperature(1)
    return squeeze * plain / np.float32(factor) + (1 - squeeze) * plain, float(gain)
