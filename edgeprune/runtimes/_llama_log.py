"""llama.cpp's log: silent, with the last lines kept so that a failure can say why."""

from __future__ import annotations

import ctypes
import functools
from collections import deque
from types import ModuleType

ERROR = 4  # GGML_LOG_LEVEL_ERROR, ggml.h
_lines: deque[tuple[int, str]] = deque(maxlen=4000)


@functools.cache
def library() -> ModuleType:
    """llama_cpp's low-level bindings, initialised once, logging to `lines()` only."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def log(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        _lines.append((level, text.decode("utf-8", "replace")))

    library.log = log  # llama.cpp keeps the bare pointer: the callback must outlive it
    llama_cpp.llama_log_set(log, None)
    llama_cpp.llama_backend_init()
    return llama_cpp


def clear() -> None:
    """Forget, and listen again: llama.cpp has one log for the process, and another user may have taken it."""
    library().llama_log_set(library.log, None)
    _lines.clear()


def lines() -> list[str]:
    """Everything logged since `clear`, joined pieces split at line ends."""
    return "".join(text for _, text in _lines).splitlines()


def reason() -> str:
    """The first error since `clear`: later ones only repeat that loading failed."""
    errors = [text.strip() for level, text in _lines if level == ERROR and text.strip()]
    return errors[0] if errors else "no reason given"
