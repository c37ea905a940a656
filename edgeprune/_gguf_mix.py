"""Which type each tensor of a quantised GGUF gets, and so its exact bytes.

llama.cpp does not give every tensor the type that a file is named after: some roles and positions get more bits, rows
that a block of 256 does not divide fall back, norms stay F32. The rules here restate llama_tensor_get_type_impl,
tensor_type_fallback and tensor_requires_imatrix (src/llama-quant.cpp as vendored by llama-cpp-python 0.3.36) for models
without experts. tests/test_cost.py checks them against llama.cpp's own choice for every quantisation.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from edgeprune.gguf_file import GGML_TYPES

BLOCKS = {name: (size, n_bytes) for name, size, n_bytes in GGML_TYPES.values()}  # elements and bytes per block

# file quantisation -> the type most tensors get
DEFAULT = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K",
    "Q5_1": "Q5_1", "Q5_0": "Q5_0", "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q4_1": "Q4_1", "Q4_0": "Q4_0",
    "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS", "Q3_K_L": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_S": "Q3_K", "IQ3_M": "IQ3_S",
    "IQ3_S": "IQ3_S", "IQ3_XS": "IQ3_S", "IQ3_XXS": "IQ3_XXS", "Q2_K": "Q2_K", "Q2_K_S": "Q2_K", "IQ2_M": "IQ2_S",
    "IQ2_S": "IQ2_XS", "IQ2_XS": "IQ2_XS", "IQ2_XXS": "IQ2_XXS", "IQ1_M": "IQ1_M", "IQ1_S": "IQ1_S", "TQ2_0": "TQ2_0",
    "TQ1_0": "TQ1_0", "Q2_0": "Q2_0", "Q1_0": "Q1_0",
}  # fmt: skip
ALIASES = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M"}
NEED_IMATRIX = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"})
_FLOATS = ("F32", "F16", "BF16")
_LOW = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"}  # a rule set of their own
_LOW_UPPER = {"IQ2_S", "IQ2_M"}

# where a row is not a multiple of the block
_FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


class Facts(NamedTuple):
    """What of a model, besides role and place, the choice depends on."""

    gqa: int = 1  # query heads per key/value head
    tied: bool = False  # the embedding is quantised as the output it also is
    wide70: bool = False  # llama.cpp takes the model for a 70B
    imatrix: bool = False


_VALUES = ("attn_v", "attn_qkv", "attn_kv_b")
_FEED_FORWARD = ("ffn_down", "ffn_up", "ffn_gate")  # and what begins so: experts


@functools.cache
def category(role: str) -> str:
    """What llama.cpp takes a tensor for: "attn_v", "ffn_down", …, or its own name where nothing is special."""
    name = role.removesuffix(".weight")
    if name in _VALUES:
        return "attn_v"
    return next((f for f in _FEED_FORWARD if name.startswith(f)), name)


# Files of these quantisations give some tensors a type by how many of their category come before.
_BY_PLACE = frozenset({"Q5_K_M", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q3_K_M", "IQ3_M"}) | NEED_IMATRIX


def placed(quant: str, imatrix: bool) -> tuple[str, ...]:
    """Categories of tensors whose type follows their position in the file."""
    if quant not in _BY_PLACE and not (imatrix and quant in ("Q4_0", "Q5_0")):
        return ()
    return ("attn_v", *_FEED_FORWARD) if quant == "IQ3_XS" else ("attn_v", "ffn_down")


@functools.cache
def alike(n: int) -> tuple[int, ...]:
    """For each of n positions in a file the first that no rule here tells from it."""
    first: dict[tuple[bool, ...], int] = {}
    eighth = n // 8
    told = ((i < 2, i < 4, i < n // 16, i < eighth, i >= 7 * n // 8, (i - eighth) % 3 == 2) for i in range(n))
    return tuple(first.setdefault(key, i) for i, key in enumerate(told))


def tensor_type(role: str, shape: tuple[int, ...], quant: str, index: int, n: int, facts: Facts) -> str:
    """Type of one block tensor.

    role: "attn_v.weight", …; shape in torch order (out, in); quant: key of DEFAULT; index: how many tensors of this
    category come before it in the file; n: of how many, as llama.cpp counts (attn_v: those present, feed-forward:
    blocks). What llama.cpp adds for 4 and for 8 experts is left out.
    """
    base = DEFAULT[quant]
    if not _quantised(role, shape):
        return "F32"
    if base in _FLOATS:
        return base
    choose = _low if quant in _LOW else _usual
    return _fit(choose(category(role), quant, base, index, n, facts), shape[-1])


def global_type(role: str, shape: tuple[int, ...], quant: str, *, tied: bool) -> str:
    """Type of token_embd, output or output_norm. A tied embedding is quantised as the output it also is."""
    base = DEFAULT[quant]
    if not _quantised(role, shape):
        return "F32"
    if base in _FLOATS:
        return base
    if role == "output.weight" or tied:
        if shape[-1] % BLOCKS[base][0] or base == "Q8_0":
            chosen = "Q8_0"
        else:
            chosen = "Q5_K" if quant in _LOW or quant == "IQ3_XXS" else "Q6_K"
    elif quant in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"):
        chosen = "Q2_K"
    elif quant in ("IQ2_S", "IQ2_M", "IQ3_XXS"):
        chosen = "IQ3_S"
    elif quant in ("TQ1_0", "TQ2_0", "Q2_0"):
        chosen = "Q4_K"
    else:
        chosen = base
    return _fit(chosen, shape[-1])


def type_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of this shape (last dimension contiguous, as a GGUF row)."""
    size, n_bytes = BLOCKS[kind]
    return math.prod(shape) // size * n_bytes


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
    kept = role.endswith("_norm.weight") or role == "ffn_gate_inp.weight"  # the latter chooses experts
    return len(shape) >= 2 and role.endswith("weight") and not kept


def _low(role: str, quant: str, base: str, i: int, n: int, facts: Facts) -> str:
    """Under three bits."""
    more = "IQ3_S" if quant in _LOW_UPPER else "Q2_K"
    if role == "attn_v":
        return "Q4_K" if facts.gqa >= 4 else more
    if role == "ffn_down" and i < n // 8:
        return more
    if role == "attn_output":
        return {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}.get(quant, base)
    return base


def _usual(role: str, quant: str, base: str, i: int, n: int, facts: Facts) -> str:
    if role == "attn_v":
        chosen = _attn_v(quant, base, i, n, facts)
        return "Q5_K" if facts.wide70 and chosen in ("Q3_K", "Q4_K") else chosen
    if role == "ffn_down":
        return _ffn_down(quant, base, i, n, facts)
    if role in ("attn_q", "attn_k"):
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(quant, base)
    if role == "attn_output":
        more = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
        return more.get(quant, base)
    if role in ("ffn_gate", "ffn_up") and quant == "IQ3_XS" and n // 8 <= i < 7 * n // 8:
        return "IQ3_XXS"
    return base


def _more_bits(i: int, n: int) -> bool:
    """The first and last eighth of the blocks, and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _attn_v(quant: str, base: str, i: int, n: int, facts: Facts) -> str:
    if facts.gqa >= 4:
        wide = {"IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"}
        wide |= dict.fromkeys(("Q2_K", "Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"), "Q4_K")
        if quant in wide:
            return wide[quant]
    if quant == "Q2_K":
        return "Q3_K"
    if quant == "IQ3_XXS":
        return "IQ3_XXS" if facts.imatrix else "IQ3_S"
    if quant == "IQ3_M":
        return "Q4_K"
    if quant == "Q3_K_M":
        return "Q5_K" if i < 2 else "Q4_K"
    if quant == "Q3_K_L" or (quant == "Q4_K_S" and i < 4):
        return "Q5_K"
    if quant in ("Q4_K_M", "Q5_K_M") and _more_bits(i, n):
        return "Q6_K"
    return base


def _ffn_down(quant: str, base: str, i: int, n: int, facts: Facts) -> str:
    first = i < n // 8
    if quant == "Q2_K":
        return "Q3_K"
    if quant == "IQ3_XXS" and not facts.imatrix:
        return "Q4_K" if first else "Q3_K"
    if quant == "Q3_K_M":
        return "Q5_K" if i < n // 16 else "Q4_K"
    if quant == "Q3_K_L":
        return "Q5_K"
    if quant in ("Q4_K_M", "Q5_K_M") and _more_bits(i, n):
        return "Q6_K"
    if not first:
        return base
    if facts.imatrix:
        guarded = {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}
    else:
        guarded = {"IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"}
    return (guarded | {"Q2_K_S": "Q4_K", "IQ3_M": "Q4_K", "Q4_K_S": "Q5_K"}).get(quant, base)


def _fit(kind: str, row: int) -> str:
    """Where a block does not divide the row: a type of the same order, else F16. (Q1_0 has none: exports refuse it.)"""
    if row % BLOCKS[kind][0] == 0:
        return kind
    kind = _FALLBACK.get(kind, kind)
    return kind if row % BLOCKS[kind][0] == 0 else "F16"
