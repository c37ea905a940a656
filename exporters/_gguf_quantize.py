"""llama.cpp's own quantiser, quiet, with its last words kept for the error message."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

from edgeprune.errors import InputRejected, OutOfResources

_STEP = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")


def quantize(source: Path, out: Path, file_type: int, progress: Callable[[float], None]) -> None:
    """Raises InputRejected with llama.cpp's reason, OutOfResources when the disk filled up."""
    import llama_cpp

    errors: list[str] = []

    @llama_cpp.llama_log_callback
    def log(level: int, text: bytes, _: object) -> None:
        step = _STEP.search(line := text.decode("utf-8", "replace").strip())
        if step:
            progress(int(step[1]) / int(step[2]))
        elif level == 4 and line:  # GGML_LOG_LEVEL_ERROR
            errors.append(line)

    previous, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(previous), ctypes.byref(user_data))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = 0  # all
    llama_cpp.llama_log_set(log, None)
    try:
        failed = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    finally:
        llama_cpp.llama_log_set(previous, user_data)
    if failed:
        reason = errors[-1] if errors else "no reason given"
        if "No space left" in reason or "write" in reason:
            raise OutOfResources(f"llama.cpp could not write {out}: {reason}")
        raise InputRejected(f"llama.cpp could not quantise {source.name}: {reason}")
