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
_CHUNK_ELEMENTS = 1 << 17  # small enough for the search's temporaries to stay in cache
_STEPS = np.array([0.97, 1.06, 1.15], np.float32)  # grids tried: finer ones clip a block's extremes


class Rows(NamedTuple):
    """Some rows of a rounded weight, as stored."""

    packed: np.ndarray  # uint8 (N, K/32, 32·bits/8)
    scales: np.ndarray  # float32 (N, K/32)
    zeros: np.ndarray | None  # uint8 (N, ceil(K/64)), 4 bits only


def quantise(weight: np.ndarray, bits: int) -> Iterator[Rows]:
    """Yield successive rows of `weight` (N, K), K a multiple of 32, rounded to 4 or 8 bits; memory stays flat.

    A block with NaN or an infinity has the scale NaN.
    """
    n_rows = max(1, _CHUNK_ELEMENTS // weight.shape[1])
    for start in range(0, weight.shape[0], n_rows):
        part = np.asarray(weight[start : start + n_rows], dtype=np.float32)
        # One block per column: sums over a block then run over whole rows at once, several times faster.
        blocks = np.ascontiguousarray(part.reshape(-1, BLOCK).T)
        with np.errstate(invalid="ignore"):
            rounded = (_round8 if bits == 8 else _round4)(blocks, len(part))
        yield rounded


def dequantise(rows: Rows) -> np.ndarray:
    """float32 (N, K): what the runtime multiplies with."""
    if rows.zeros is None:
        q, zeros = rows.packed, np.float32(128)
    else:
        q, zeros = _unpack(rows.packed), _unpack(rows.zeros)[:, : rows.scales.shape[1], None].astype(np.float32)
    return ((q.astype(np.float32) - zeros) * rows.scales[..., None]).reshape(len(q), -1)


def _unpack(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def _round8(blocks: np.ndarray, n: int) -> Rows:
    """The value of largest magnitude falls on -128, the side with one step more."""
    high, low = blocks.max(axis=0), blocks.min(axis=0)
    scales = np.where(-low > high, low, high) / np.float32(-128) + (high - low) * 0
    q = _on_grid(blocks, _inverse(scales), np.float32(-128), np.float32(127), np.empty_like(blocks))
    q += 128
    return Rows(_rows(q.astype(np.uint8), n), scales.reshape(n, -1), None)


def _round4(blocks: np.ndarray, n: int) -> Rows:
    """The least squared error among a few grids centred on the block's range.

    For integers v = q - zero the best scale is Σwv/Σv² and the error it leaves Σw² - (Σwv)²/Σv², so the largest
    (Σwv)²/Σv² wins. Clipping the extremes a little is often worth a finer step for the others.
    """
    high, low = np.maximum(blocks.max(axis=0), 0), np.minimum(blocks.min(axis=0), 0)  # zero must be on the grid
    inverse, middle = _inverse((high - low) / np.float32(15)), (high + low) / 2
    best, scales, zeros, finest = np.full_like(inverse, -1), *(np.zeros_like(inverse) for _ in range(3))
    v, product = np.empty_like(blocks), np.empty_like(blocks)
    for step in _STEPS:
        fine = inverse * step
        zero = np.clip(np.rint(7.5 - middle * fine), 0, 15)
        _on_grid(blocks, fine, -zero, 15 - zero, v)
        wv = np.multiply(blocks, v, out=product).sum(axis=0)
        vv = np.multiply(v, v, out=product).sum(axis=0)
        scale = np.divide(wv, vv, out=np.zeros_like(wv), where=vv > 0)
        better = wv * scale > best
        for kept, new in ((best, wv * scale), (scales, scale), (zeros, zero), (finest, fine)):
            np.copyto(kept, new, where=better)
    q = _on_grid(blocks, finest, -zeros, 15 - zeros, v)
    q += zeros
    scales += (high - low) * 0  # 0, or NaN where the block holds what is not finite
    q, zeros = q.astype(np.uint8), zeros.astype(np.uint8).reshape(n, -1)
    if zeros.shape[1] % 2:
        zeros = np.pad(zeros, ((0, 0), (0, 1)))
    return Rows(_rows(q[::2] | (q[1::2] << 4), n), scales.reshape(n, -1), zeros[:, ::2] | (zeros[:, 1::2] << 4))


def _on_grid(blocks: np.ndarray, inverse: np.ndarray, low: np.ndarray, high: np.ndarray, out: np.ndarray) -> np.ndarray:
    """w / scale to the nearest whole number within [low, high], per column."""
    np.rint(np.multiply(blocks, inverse, out=out), out=out)
    return np.minimum(np.maximum(out, low, out=out), high, out=out)


def _rows(packed: np.ndarray, n: int) -> np.ndarray:
    """(bytes, n·blocks) to (n, blocks, bytes)."""
    return np.ascontiguousarray(packed.T).reshape(n, -1, len(packed))


def _inverse(scales: np.ndarray) -> np.ndarray:
    """1/scale, 0 for a block of zeros."""
    return np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
