"""Block-wise rounding in the layout of onnxruntime's MatMulNBits and GatherBlockQuantized.

A weight of shape (N, K) becomes uint8 (N, K/32, 32·bits/8), float32 scales (N, K/32) and, for 4 bits, one zero
point per block: w ≈ scale·(q - zero). With 8 bits zero is 128 throughout and is not stored.
Two 4-bit values share a byte, the earlier one in the low half; so do zero points, row by row.
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#commicrosoftmatmulnbits
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 32
_CHUNK_ELEMENTS = 1 << 18  # small enough for the search's temporaries to stay in cache
_STEPS = np.array([0.95, 1, 1.06, 1.12, 1.2], np.float32)  # grids tried: finer ones clip a block's extremes


class Rows(NamedTuple):
    """Some rows of a rounded weight, as stored."""

    packed: np.ndarray  # uint8 (N, K/32, 32·bits/8)
    scales: np.ndarray  # float32 (N, K/32)
    zeros: np.ndarray | None  # uint8 (N, ceil(K/64)), 4 bits only


def quantise(weight: np.ndarray, bits: int) -> Iterator[Rows]:
    """Yield successive rows of `weight` (N, K), K a multiple of 32, rounded to 4 or 8 bits; memory stays flat."""
    rows = max(1, _CHUNK_ELEMENTS // weight.shape[1])
    for start in range(0, weight.shape[0], rows):
        part = np.asarray(weight[start : start + rows], dtype=np.float32)
        blocks = part.reshape(part.shape[0], -1, BLOCK)
        yield _round8(blocks) if bits == 8 else _round4(blocks)


def dequantise(rows: Rows) -> np.ndarray:
    """float32 (N, K): what the runtime multiplies with."""
    if rows.zeros is None:
        q, zeros = rows.packed, np.float32(128)
    else:
        q, zeros = _unpack(rows.packed), _unpack(rows.zeros)[:, : rows.scales.shape[1], None].astype(np.float32)
    return ((q.astype(np.float32) - zeros) * rows.scales[..., None]).reshape(len(q), -1)


def _pack(q: np.ndarray) -> np.ndarray:
    if q.shape[-1] % 2:
        q = np.concatenate([q, np.zeros_like(q[..., :1])], axis=-1)
    return q[..., ::2] | (q[..., 1::2] << 4)


def _unpack(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def _round8(blocks: np.ndarray) -> Rows:
    """The value of largest magnitude falls on -128, the side with one step more."""
    high, low = blocks.max(axis=-1), blocks.min(axis=-1)
    scales = np.where(-low > high, low, high) / np.float32(-128)
    q = np.rint(blocks * _inverse(scales)[..., None])
    return Rows((np.clip(q, -128, 127) + 128).astype(np.uint8), scales, None)


def _round4(blocks: np.ndarray) -> Rows:
    """The least squared error among a few grids centred on the block's range.

    For integers v = q - zero the best scale is Σwv/Σv² and the error it leaves Σw² - (Σwv)²/Σv², so the largest
    (Σwv)²/Σv² wins. Clipping the extremes a little is often worth a finer step for the others.
    """
    high, low = np.maximum(blocks.max(axis=-1), 0), np.minimum(blocks.min(axis=-1), 0)  # zero must be on the grid
    inverse, middle = _inverse((high - low) / np.float32(15)), (high + low) / 2
    best = np.full(inverse.shape, -1, np.float32)
    scales, zeros = np.zeros_like(best), np.zeros_like(best)
    chosen = np.zeros(blocks.shape, np.float32)
    for step in _STEPS:
        zero = np.clip(np.rint(7.5 - middle * inverse * step), 0, 15)[..., None]
        q = np.clip(np.rint(blocks * (inverse * step)[..., None]) + zero, 0, 15)
        v = q - zero
        wv, vv = np.einsum("nbi,nbi->nb", blocks, v), np.einsum("nbi,nbi->nb", v, v)
        scale = np.divide(wv, vv, out=np.zeros_like(wv), where=vv > 0)
        better = wv * scale > best
        best, scales = np.where(better, wv * scale, best), np.where(better, scale, scales)
        zeros, chosen = np.where(better, zero[..., 0], zeros), np.where(better[..., None], q, chosen)
    return Rows(_pack(chosen.astype(np.uint8)), scales, _pack(zeros.astype(np.uint8)))


def _inverse(scales: np.ndarray) -> np.ndarray:
    """1/scale, 0 for a block of zeros."""
    return np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
