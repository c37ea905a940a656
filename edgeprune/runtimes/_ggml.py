"""ggml's tensors from Python: the C struct, and their data wherever it lives (ggml.h, ggml-backend.h of llama.cpp)."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from edgeprune.errors import EdgepruneError

F32 = 0  # enum ggml_type
OUTPUT, COMPUTE = 2, 16  # enum ggml_tensor_flag; a node without COMPUTE keeps its place in the graph and is not run
_ADDRESS, _SIZE = ctypes.c_void_p, ctypes.c_size_t


class Tensor(ctypes.Structure):
    """struct ggml_tensor; `library` makes sure that this is how the installed build lays it out."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", _ADDRESS),
        ("ne", ctypes.c_int64 * 4),  # elements, the innermost dimension first
        ("nb", _SIZE * 4),  # bytes from one to the next
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", _ADDRESS * 10),
        ("view_src", _ADDRESS),  # the tensor whose memory this one is a view of, never itself a view
        ("view_offs", _SIZE),
        ("data", _ADDRESS),
        ("name", ctypes.c_char * 64),
        ("extra", _ADDRESS),
        ("padding", ctypes.c_char * 8),
    ]


FLAGS = Tensor.flags.offset


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", _SIZE), ("mem_buffer", _ADDRESS), ("no_alloc", ctypes.c_bool)]


_PROTOTYPES = {
    "ggml_init": (_ADDRESS, [_InitParams]),
    "ggml_free": (None, [_ADDRESS]),
    "ggml_new_tensor_1d": (_ADDRESS, [_ADDRESS, ctypes.c_int, ctypes.c_int64]),
    "ggml_view_1d": (_ADDRESS, [_ADDRESS, _ADDRESS, ctypes.c_int64, _SIZE]),
    "ggml_add": (_ADDRESS, [_ADDRESS, _ADDRESS, _ADDRESS]),
    "ggml_set_name": (_ADDRESS, [_ADDRESS, ctypes.c_char_p]),
    "ggml_set_output": (None, [_ADDRESS]),
    "ggml_new_graph": (_ADDRESS, [_ADDRESS]),
    "ggml_build_forward_expand": (None, [_ADDRESS, _ADDRESS]),
    "ggml_backend_tensor_get": (None, [_ADDRESS, _ADDRESS, _SIZE, _SIZE]),
    "ggml_backend_tensor_set": (None, [_ADDRESS, _ADDRESS, _SIZE, _SIZE]),
}


@functools.cache
def library() -> Any:
    """The ggml that llama-cpp-python's llama.cpp runs on. Raises EdgepruneError when it has another tensor struct."""
    import llama_cpp
    from llama_cpp import _ggml
    from llama_cpp._ctypes_extensions import load_shared_library

    lib = _ggml.libggml
    if not hasattr(lib, "ggml_backend_tensor_get"):  # Windows does not look into the libraries that this one uses
        lib = load_shared_library("ggml-base", _ggml.libggml_base_path)
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    if not _as_described(lib):
        raise EdgepruneError(
            f"the ggml of llama-cpp-python {llama_cpp.__version__} lays out tensors in a way edgeprune does not know; "
            "install llama-cpp-python 0.3.36, or score the transformers folder"
        )
    return lib


def _as_described(lib: Any) -> bool:
    """Whether a view, a sum and its graph read as they were made."""
    context = lib.ggml_init(_InitParams(1 << 20, None, True))
    a, b = (lib.ggml_new_tensor_1d(context, F32, 6) for _ in range(2))
    c = lib.ggml_add(context, a, b)
    v = lib.ggml_view_1d(context, c, 4, 8)
    lib.ggml_set_name(c, b"c")
    lib.ggml_set_output(c)
    lib.ggml_build_forward_expand(lib.ggml_new_graph(context), v)
    total, view = Tensor.from_address(c), Tensor.from_address(v)
    good = (
        (total.type, total.ne[:], total.nb[:2], total.name) == (F32, [6, 1, 1, 1], [4, 24], b"c")
        and (total.src[:3], total.view_src, total.flags) == ([a, b, None], None, OUTPUT | COMPUTE)
        and (view.view_src, view.view_offs, view.src[0], view.ne[0]) == (c, 8, c, 4)
    )
    lib.ggml_free(context)
    return good


def read(tensor: int, out: np.ndarray) -> None:
    """Fill a contiguous array with the first bytes of the tensor at this address."""
    library().ggml_backend_tensor_get(tensor, out.ctypes.data, 0, out.nbytes)


def write(tensor: int, values: np.ndarray) -> None:
    library().ggml_backend_tensor_set(tensor, values.ctypes.data, 0, values.nbytes)
