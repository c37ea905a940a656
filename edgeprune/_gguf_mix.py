"""Which type each tensor of a quantised GGUF gets, and so its exact bytes.

llama.cpp does not give every tensor the type that a file is named after: some positions get more bits, rows that
a 256-wide block does not divide fall back, norms stay F32. The rules here restate those of llama.cpp
(src/llama-quant.cpp as vendored by llama-cpp-python 0.3.36; no importance matrix, no experts, as this project
quantises) for the tensor roles of its families. tests/test_cost.py checks them against real quantised files.
"""

from __future__ import annotations

# type -> (elements per block, bytes per block); ggml/src/ggml-common.h
BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q5_1": (32, 24),
    "Q5_0": (32, 22),
    "Q4_1": (32, 20),
    "Q4_0": (32, 18),
    "IQ4_NL": (32, 18),
    "Q6_K": (256, 210),
    "Q5_K": (256, 176),
    "Q4_K": (256, 144),
    "IQ4_XS": (256, 136),
    "Q3_K": (256, 110),
    "Q2_K": (256, 84),
}

# file quantisation -> the type most tensors get
DEFAULT = {
    "F32": "F32",
    "F16": "F16",
    "BF16": "BF16",
    "Q8_0": "Q8_0",
    "Q6_K": "Q6_K",
    "Q5_K_M": "Q5_K",
    "Q5_K_S": "Q5_K",
    "Q4_K_M": "Q4_K",
    "Q4_K_S": "Q4_K",
    "Q4_0": "Q4_0",
    "Q4_1": "Q4_1",
    "IQ4_XS": "IQ4_XS",
    "IQ4_NL": "IQ4_NL",
    "Q3_K_M": "Q3_K",
    "Q2_K": "Q2_K",
}

# where a row is not a multiple of 256
_FALLBACK = {
    "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}

BY_PLACE = frozenset({"Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_M", "IQ4_XS", "IQ4_NL"})  # whose mix follows the position
POSITIONAL = ("attn_v.weight", "ffn_down.weight")  # the roles whose type depends on where the block stands


def tensor_type(role: str, shape: tuple[int, ...], quant: str, *, index: int, n: int, gqa: int, wide70: bool) -> str:
    """Type of one block tensor.

    role: "attn_v.weight", …; shape in torch order (out, in); quant: key of DEFAULT; index: how many tensors of this
    role come before it in the file; n: tensors of this role counted as llama.cpp does (attn_v: those present,
    ffn_down: blocks); gqa: query heads per key/value head; wide70: an 80-block model, which llama.cpp takes for a 70B.
    """
    base = DEFAULT[quant]
    if not _quantised(role, shape):
        return "F32"
    if base in ("F32", "F16", "BF16"):
        return base
    chosen = base
    if role == "attn_v.weight":
        chosen = _attn_v(quant, base, index, n, gqa)
        if wide70 and chosen in ("Q3_K", "Q4_K"):
            chosen = "Q5_K"
    elif role == "ffn_down.weight":
        chosen = _ffn_down(quant, base, index, n)
    elif role == "attn_output.weight":
        chosen = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K"}.get(quant, base)
    return _fit(chosen, shape[-1])


def global_type(role: str, shape: tuple[int, ...], quant: str, *, tied: bool) -> str:
    """Type of token_embd, output or output_norm. A tied embedding is quantised as the output it also is."""
    base = DEFAULT[quant]
    if not _quantised(role, shape):
        return "F32"
    if base in ("F32", "F16", "BF16"):
        return base
    chosen = base
    if role == "output.weight" or tied:
        chosen = "Q8_0" if shape[-1] % BLOCKS[base][0] or base == "Q8_0" else "Q6_K"
    return _fit(chosen, shape[-1])


def type_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of this shape (last dimension contiguous, as a GGUF row)."""
    size, bytes_ = BLOCKS[kind]
    n = 1
    for d in shape:
        n *= d
    return n // size * bytes_


def repacked(kind: str, shape: tuple[int, ...], isa: frozenset[str]) -> bool:
    """Whether llama.cpp's CPU backend keeps a second, interleaved copy of a matrix of this type.

    From ggml/src/ggml-cpu/repack.cpp (version above). isa: "avx2", "avx512", "amx", "dotprod", "i8mm". With a
    memory-mapped file the original stays mapped, so both count.
    """
    if len(shape) < 2 or "amx" in isa:  # edgeprune.runtimes.llamacpp turns repacking off where AMX kernels would run
        return False
    arm = isa & {"dotprod", "i8mm"}
    rows8, rows4 = shape[0] % 8 == 0, shape[0] % 4 == 0
    if kind == "Q4_0" or kind == "IQ4_NL":
        return ("avx2" in isa and rows8) or (bool(arm) and rows4)
    if kind == "Q4_K":
        return ("avx2" in isa or bool(arm)) and rows8
    if kind == "Q2_K":
        return "avx512" in isa and rows8
    if kind in ("Q5_K", "Q6_K"):
        return bool(arm) and rows8
    if kind == "Q8_0":
        return bool(arm) and rows4
    return False


def _quantised(role: str, shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and role.endswith("weight") and not role.endswith("_norm.weight")


def _more_bits(i: int, n: int) -> bool:
    """The first and last eighth of the blocks, and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _attn_v(quant: str, base: str, i: int, n: int, gqa: int) -> str:
    if quant == "Q2_K":
        return "Q4_K" if gqa >= 4 else "Q3_K"
    if quant == "Q3_K_M":
        return "Q5_K" if i < 2 else "Q4_K"
    if quant in ("IQ4_NL", "IQ4_XS") and gqa >= 4:
        return "Q5_K"
    if quant in ("Q4_K_M", "Q5_K_M") and _more_bits(i, n):
        return "Q6_K"
    if quant == "Q4_K_S" and i < 4:
        return "Q5_K"
    return base


def _ffn_down(quant: str, base: str, i: int, n: int) -> str:
    if quant == "Q2_K":
        return "Q3_K"
    if quant == "Q3_K_M":
        return "Q5_K" if i < n // 16 else "Q4_K"
    if quant in ("Q4_K_M", "Q5_K_M") and _more_bits(i, n):
        return "Q6_K"
    if quant in ("IQ4_NL", "IQ4_XS", "Q4_K_S") and i < n // 8:
        return "Q5_K"
    return base


def _fit(kind: str, row: int) -> str:
    if row % BLOCKS[kind][0] == 0:
        return kind
    kind = _FALLBACK.get(kind, kind)
    return kind if row % BLOCKS[kind][0] == 0 else "F16"
