"""Cosine and sine tables of rotary position embedding, for GroupQueryAttention's in-op rotation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeprune.errors import InputRejected

KINDS = ("default", "linear", "llama3", "yarn")


def check_rope(rope: Mapping[str, Any]) -> None:
    """Raises InputRejected for a scaling whose table depends on the prompt, or that is unknown."""
    kind = rope.get("rope_type", "default")
    if kind not in KINDS:
        raise InputRejected(f"rope type {kind!r} can't be written to ONNX; known: {', '.join(KINDS)}; export to GGUF")
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise InputRejected("the config rotates only part of each head; the families exported to ONNX rotate all of it")


def rope_tables(rope: Mapping[str, Any], head_dim: int, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin), float32 (positions, head_dim/2). `rope`: transformers' `rope_parameters`, as a config resolves them.

    Angles are taken in float32 as torch takes them, so that far positions round alike.
    """
    check_rope(rope)
    frequencies, gain = _frequencies(rope, head_dim, positions)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies.astype(np.float32)[None, :]
    return np.cos(angles) * np.float32(gain), np.sin(angles) * np.float32(gain)


def _frequencies(rope: Mapping[str, Any], head_dim: int, positions: int) -> tuple[np.ndarray, float]:
    """Radians per position for each pair, and the factor on both tables."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = 1 / np.float32(rope["rope_theta"]) ** exponents
    kind = rope.get("rope_type", "default")
    if kind == "linear":  # Chen et al. 2023, arXiv:2306.15595: positions squeezed by `factor`
        return plain / np.float32(rope.get("factor", 1)), 1.0
    if kind == "llama3":
        return _llama3(plain, rope), 1.0
    if kind == "yarn":
        return _yarn(plain, rope, head_dim, positions)
    return plain, 1.0


def _llama3(plain: np.ndarray, rope: Mapping[str, Any]) -> np.ndarray:
    """Llama 3.1: slow pairs are divided by `factor`, fast ones kept, those between blended."""
    turns = rope["original_max_position_embeddings"] * plain / np.float32(2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return keep * plain + (1 - keep) * plain / rope["factor"]


def _yarn(plain: np.ndarray, rope: Mapping[str, Any], head_dim: int, positions: int) -> tuple[np.ndarray, float]:
    """Peng et al. 2023, arXiv:2309.00071, sections 3.2 (blend by turns in the old context) and 3.4 (temperature)."""
    old = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or positions / old

    def pair_turning(turns: float) -> float:
        return head_dim * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low, high = pair_turning(rope.get("beta_fast") or 32), pair_turning(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    squeeze = np.clip((np.arange(head_dim // 2) - low) / ((high - low) or 0.001), 0, 1).astype(np.float32)

    def temperature(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

    gain = rope.get("attention_factor")
    if gain is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        gain = temperature(rope["mscale"]) / temperature(rope["mscale_all_dim"])
    if gain is None:
        gain = temperature(1)
    return squeeze * plain / np.float32(factor) + (1 - squeeze) * plain, float(gain)
