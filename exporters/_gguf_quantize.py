"""llama.cpp's own quantiser, quiet, with its last words kept for the error message."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeprune.catalog import did_you_mean
from edgeprune.errors import InputRejected, OutOfResources, UsageError
from exporters import Options
from exporters._imatrix import Matrix, fit, read

# name -> general.file_type (enum llama_ftype): what llama-quantize offers (tools/quantize/quantize.cpp), less MXFP4_MOE,
# which makes Q8_0 of a model without experts.
FILE_TYPE = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q5_1": 9, "Q5_0": 8,
    "Q4_K_M": 15, "Q4_K_S": 14, "Q4_1": 3, "Q4_0": 2, "IQ4_NL": 25, "IQ4_XS": 30, "Q3_K_L": 13, "Q3_K_M": 12,
    "Q3_K_S": 11, "IQ3_M": 27, "IQ3_S": 26, "IQ3_XS": 22, "IQ3_XXS": 23, "Q2_K": 10, "Q2_K_S": 21, "IQ2_M": 29,
    "IQ2_S": 28, "IQ2_XS": 20, "IQ2_XXS": 19, "IQ1_M": 31, "IQ1_S": 24, "TQ2_0": 37, "TQ1_0": 36, "Q2_0": 41,
    "Q1_0": 40,
}  # fmt: skip
ALIASES = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M"}  # llama-quantize's
# Some tensor of theirs gets a type that llama.cpp refuses to make blindly (tensor_requires_imatrix in llama-quant.cpp).
NEED_IMATRIX = frozenset({
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S",
})  # fmt: skip
UNWEIGHTED = ("F32", "F16", "BF16", "Q8_0")  # rounded to the nearest value, whatever a matrix says
_STEP = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_TEXT_BYTES = 127  # what an override of llama.cpp holds
_INT, _STR = 0, 3  # enum llama_model_kv_override_type
_ERROR = 4  # GGML_LOG_LEVEL_ERROR


def check_quant(quant: str, options: Options) -> None:
    """Raises UsageError for an unknown name, and for an importance matrix that is missing or of no use."""
    if quant not in FILE_TYPE:
        near = did_you_mean(quant, [q.lower() for q in FILE_TYPE])
        raise UsageError(f"no GGUF quantisation called {quant!r}.{near} Known: {', '.join(FILE_TYPE)}.")
    if quant in NEED_IMATRIX and options.imatrix is None:
        raise UsageError(f"{quant} needs an importance matrix: pass --imatrix FILE, made by llama-imatrix, or use Q2_K")
    if quant in UNWEIGHTED and options.imatrix is not None:
        raise UsageError(f"{quant} has no use for an importance matrix; leave --imatrix out")


def prepare(
    quant: str, options: Options, shapes: Mapping[str, tuple[int, ...]], origin: Mapping[str, str]
) -> Matrix | None:
    """The importance matrix that `options` name, fitted to tensors of these shapes (torch order); None without one.

    `origin`: provenance of the file to be quantised. Raises InputRejected where the matrix is damaged or of another
    model, and where a tensor's rows fit neither `quant` nor a type to fall back to (Q1_0's blocks of 128).
    """
    matrices = {n: s for n, s in shapes.items() if len(s) > 1 and n.endswith(".weight")}
    for name, shape in matrices.items() if quant == "Q1_0" else ():
        if name.startswith("blk.") and shape[-1] % 128:
            raise InputRejected(f"Q1_0 needs rows of a multiple of 128, {name} has {shape[-1]}; use Q2_0 or Q2_K")
    if options.imatrix is None:
        return None
    columns = {n: math.prod(s[:-2]) * s[-1] for n, s in matrices.items()}
    return fit(read(options.imatrix), columns, origin, complete=quant in NEED_IMATRIX)


def quantize(
    source: Path,
    out: Path,
    quant: str,
    progress: Callable[[float], None],
    matrix: Matrix | None = None,
    metadata: Mapping[str, str] | None = None,
    requantize: bool = False,
) -> None:
    """Write `out` from the .gguf `source` (the first part of a split one).

    metadata: texts to add, at most 127 bytes each. requantize: `source` may be quantised already.
    Raises InputRejected with llama.cpp's reason, OutOfResources when the disk filled up.
    """
    import llama_cpp

    errors: list[str] = []
    stop: list[BaseException] = []  # raised inside the callback, where ctypes would swallow it

    @llama_cpp.llama_log_callback
    def log(level: int, text: bytes, _: object) -> None:
        step = _STEP.search(line := text.decode("utf-8", "replace").strip())
        try:
            if step:
                progress(int(step[1]) / int(step[2]))
        except BaseException as e:
            stop.append(e)
        if level == _ERROR and line.strip("=\n "):
            errors.append(line)

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = FILE_TYPE[quant], 0, requantize  # 0: all threads
    entries: dict[str, str | int] = dict(metadata or {})
    if matrix:
        params.imatrix = _matrix_argument(llama_cpp, matrix)
        entries |= _matrix_metadata(matrix)
    if entries:
        params.kv_overrides = _overrides(llama_cpp, entries)
    previous, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(previous), ctypes.byref(user_data))
    llama_cpp.llama_log_set(log, None)
    try:
        failed = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    finally:
        llama_cpp.llama_log_set(previous, user_data)
    if stop:
        raise stop[0]
    if failed:
        reason = errors[-1].partition("failed to quantize: ")[2] or errors[-1] if errors else "no reason given"
        if "No space left" in reason or "iostream" in reason or "write" in reason:
            raise OutOfResources(f"llama.cpp could not write {out}: {reason}; free some space or choose another place")
        raise InputRejected(f"llama.cpp could not quantise {source.name} to {quant}: {reason}")


def _matrix_argument(llama_cpp: Any, matrix: Matrix) -> Any:
    """The array that llama_model_quantize_params.imatrix points to, ended by a slot without a name.

    It points into `matrix`, which must outlive it.
    """
    array = (llama_cpp.llama_model_imatrix_data * (len(matrix.weights) + 1))()
    for slot, (name, values) in zip(array, matrix.weights.items(), strict=False):
        slot.name, slot.size = name.encode(), values.size
        slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return array


def _matrix_metadata(matrix: Matrix) -> dict[str, str | int]:
    """As llama-quantize records it; texts cut to what an override holds."""
    found: dict[str, str | int] = {"file": _cut(str(matrix.path)), "entries_count": len(matrix.weights)}
    if matrix.datasets:
        found["dataset"] = _cut(matrix.datasets[0])
    if matrix.n_chunks > 0:
        found["chunks_count"] = matrix.n_chunks
    return {f"quantize.imatrix.{key}": value for key, value in found.items()}


def _cut(text: str) -> str:
    return text.encode()[:_TEXT_BYTES].decode("utf-8", "ignore")


def _overrides(llama_cpp: Any, entries: Mapping[str, str | int]) -> Any:
    array = (llama_cpp.llama_model_kv_override * (len(entries) + 1))()  # the last one's empty key ends it
    for slot, (key, value) in zip(array, entries.items(), strict=False):
        slot.key = key.encode()
        if isinstance(value, int):
            slot.tag, slot.value.val_i64 = _INT, value
        else:
            raw = value.encode()
            if len(raw) > _TEXT_BYTES:
                raise InputRejected(
                    f"{key} is {len(raw)} bytes, llama.cpp's quantiser can add texts of {_TEXT_BYTES} at most"
                )
            slot.tag, slot.value.val_str = _STR, raw
    return array
