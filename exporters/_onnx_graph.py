"""An ONNX graph under construction: nodes in memory, tensors streamed to `model.onnx.data` beside it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import InputRejected
from exporters._onnx_quant import BLOCK, quantise

DATA_FILE = "model.onnx.data"
_PAGE = 4096  # large tensors start on a page, so that runtimes can map each; small ones on a cache line
_LINE = 64
_MS = "com.microsoft"


class GraphWriter:
    """Collects nodes and writes tensors as they come; `float_type` is float32 or float16."""

    def __init__(self, folder: Path, float_type: type[np.floating]):
        self.folder = folder
        self.float_type = np.dtype(float_type)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._file = open(folder / DATA_FILE, "wb")
        self._constants: set[str] = set()

    def close(self) -> None:
        self._file.close()

    def node(self, op: str, inputs: list[str], outputs: list[str] | str, domain: str = _MS, **attributes: Any) -> str:
        """Add a node named after its first output; returns that output."""
        from onnx import helper

        outputs = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def constant(self, name: str, values: Any) -> str:
        """A small int64 tensor kept inside model.onnx, stored once per name."""
        from onnx import numpy_helper

        if name not in self._constants:
            self._constants.add(name)
            self.initializers.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def scalar(self, name: str, value: float) -> str:
        """One number of the graph's float type, kept inside model.onnx."""
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.asarray(value, self.float_type), name))
        return name

    def tensor(
        self, name: str, shape: tuple[int, ...], parts: Iterable[np.ndarray], dtype: np.dtype | None = None
    ) -> str:
        """Stream `parts`, C order, end to end, as one tensor. Floats are cast to the graph's float type."""
        dtype = self.float_type if dtype is None else np.dtype(dtype)
        align = _PAGE if math.prod(shape) * dtype.itemsize >= _PAGE else _LINE
        self._file.write(b"\0" * (-self._file.tell() % align))
        start = self._file.tell()
        for part in parts:
            with np.errstate(over="ignore"):
                data = np.ascontiguousarray(part, dtype=dtype)
            if dtype.kind == "f" and not np.isfinite(data).all():
                if np.isfinite(np.asarray(part, np.float64)).all():
                    raise InputRejected(f"{name} has values beyond {dtype.name}; use another quant")
                raise _damaged(name)
            self._file.write(memoryview(data).cast("B"))
        self.alias(name, shape, dtype, start, self._file.tell() - start)
        return name

    def alias(self, name: str, shape: tuple[int, ...], dtype: np.dtype, start: int, length: int) -> None:
        """Declare bytes of the data file as a tensor; two tensors may name the same bytes."""
        import onnx
        from onnx import helper

        assert math.prod(shape) * dtype.itemsize == length, (name, shape, length)
        t = onnx.TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(dtype), dims=shape)
        t.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", DATA_FILE), ("offset", start), ("length", length)):
            t.external_data.add(key=key, value=str(value))
        self.initializers.append(t)

    def linear(self, x: str, name: str, weights: list[np.ndarray], out: str, bits: int | None) -> str:
        """`out` = x @ Wᵀ for the weights (N, K) stacked along N, as MatMul, or MatMulNBits when `bits` is 4 or 8."""
        n, k = sum(w.shape[0] for w in weights), weights[0].shape[1]
        if bits is None:
            stacked = weights[0] if len(weights) == 1 else np.concatenate(weights)
            self.tensor(name, (k, n), [np.asarray(stacked).T])
            return self.node("MatMul", [x, name], out, domain="")
        self.quantised(name, weights, bits)
        return self.matmul_nbits(x, name, n, k, out, bits)

    def quantised(self, name: str, weights: list[np.ndarray], bits: int) -> list[str]:
        """Write `name` (N, K/32, bytes) with its scales and zero points; returns the names of those two."""
        n, k = sum(w.shape[0] for w in weights), weights[0].shape[1]
        scales: list[np.ndarray] = []
        zeros: list[np.ndarray] = []

        def packed() -> Iterable[np.ndarray]:
            for rows in itertools.chain.from_iterable(quantise(weight, bits) for weight in weights):
                if not np.isfinite(rows.scales).all():
                    raise _damaged(name)
                scales.append(rows.scales)
                zeros.extend([] if rows.zeros is None else [rows.zeros])
                yield rows.packed

        self.tensor(name, (n, k // BLOCK, BLOCK * bits // 8), packed(), np.dtype(np.uint8))
        names = [self.tensor(f"{name}.scales", (n, k // BLOCK), scales)]
        if zeros:
            names.append(self.tensor(f"{name}.zeros", (n, zeros[0].shape[1]), zeros, np.dtype(np.uint8)))
        return names

    def matmul_nbits(self, x: str, name: str, n: int, k: int, out: str, bits: int) -> str:
        """x @ Wᵀ for a weight that `quantised` wrote.

        accuracy_level 4 lets CPUs multiply in 8-bit integers, as onnxruntime's own tools choose there.
        """
        inputs = [x, name, f"{name}.scales"] + ([f"{name}.zeros"] if bits == 4 else [])
        return self.node("MatMulNBits", inputs, out, N=n, K=k, bits=bits, block_size=BLOCK, accuracy_level=4)

    def embedding(self, ids: str, name: str, weight: np.ndarray, out: str, bits: int | None) -> str:
        """Rows of `weight` (V, H). Quantised rows are read through a flat view of the bytes of `name`."""
        if bits is None:
            self.tensor(name, weight.shape, [weight])
            return self.node("Gather", [name, ids], out, domain="")
        parts = self.quantised(name, [weight], bits)
        written = next(t for t in self.initializers if t.name == name)
        place = {e.key: int(e.value) for e in written.external_data if e.key != "location"}
        flat = (weight.shape[0], weight.shape[1] * bits // 8)
        self.alias(f"{name}.rows", flat, np.dtype(np.uint8), place["offset"], place["length"])
        attributes = dict(bits=bits, block_size=BLOCK, gather_axis=0, quantize_axis=1)
        return self.node("GatherBlockQuantized", [f"{name}.rows", ids, *parts], out, **attributes)


def _damaged(name: str) -> InputRejected:
    return InputRejected(f"{name} holds NaN or infinite values; the checkpoint is damaged, download it again")
