"""Which cuts of a GGUF llama.cpp can be told of, and the deci architecture for blocks that lost a half."""

from __future__ import annotations

from typing import Any

from edgeprune import _gguf_arch as archs
from edgeprune import _gguf_metadata as meta
from edgeprune._model_gguf import arch_values, per_block
from edgeprune.blocks import is_portable
from edgeprune.errors import InputRejected
from edgeprune.gguf_file import GGUFHeader, Omitted
from edgeprune.types import Blocks

# What llama.cpp's llama graph reads and its deci graph does not.
_NOT_IN_DECI = ("expert_count", "attention.scale")
_LONG_ROPE = ("rope_factors_long.weight", "rope_factors_short.weight")


def check_cut(header: GGUFHeader, blocks: Blocks) -> str:
    """The architecture, when llama.cpp would compute of the kept blocks what it did before; else InputRejected."""
    arch = header.metadata["general.architecture"]
    values = arch_values(header, arch)
    why = archs.refusal(arch, values["block_count"], blocks)
    if why:
        raise InputRejected(f"{header.paths[0]}: {why}")
    _check_metadata(header, arch, values, values["block_count"])
    if not is_portable(blocks):
        _check_irregular(header, values, blocks)
    return arch


def _check_metadata(header: GGUFHeader, arch: str, values: dict[str, Any], n: int) -> None:
    where, a = header.paths[0], archs.ARCHITECTURES[arch]
    for key, value in values.items():
        if isinstance(value, (tuple, Omitted)) and key not in archs.NOT_PER_BLOCK:
            if key not in archs.PER_BLOCK:
                raise InputRejected(f"{where}: {arch}.{key} is an array that may be per block; refusing to guess")
            if isinstance(value, Omitted) or len(value) != n:
                raise InputRejected(
                    f"{where}: {arch}.{key} does not have {n} entries, one per block; download it again"
                )
        if key in archs.POSITIONAL and value and not (a.dense_lead and key == "leading_dense_block_count"):
            raise InputRejected(
                f"{where}: {arch}.{key} is {value}, which tells blocks apart by position; refusing to guess"
            )
    for key in archs.PER_BLOCK_PLAIN:
        value = header.metadata.get(key)
        if isinstance(value, Omitted) or (isinstance(value, tuple) and len(value) != n):
            raise InputRejected(f"{where}: {key} does not have {n} entries, one per block; download it again")
    for key in a.needs:
        if key not in values:
            raise InputRejected(
                f"{where} leaves out {arch}.{key}, which llama.cpp then takes from the number of blocks; convert the model again"
            )


def _check_irregular(header: GGUFHeader, values: dict[str, Any], blocks: Blocks) -> None:
    where = header.paths[0]
    extra = [k for k in _NOT_IN_DECI if values.get(k)] + [t for t in _LONG_ROPE if t in header.tensors]
    if extra:
        raise InputRejected(
            f"{where}: {extra[0]} has no place in deci, llama.cpp's architecture for blocks without a half"
        )
    if not per_block(values, "attention.head_count", values["block_count"], str(where))[blocks[0].attn]:
        raise InputRejected(f"{where}: {archs.DECI_FIRST}")


def as_deci(
    entries: dict[str, bytes], values: dict[str, Any], arch: str, blocks: Blocks, zero_ffn: int
) -> dict[str, bytes]:  # fmt: skip
    """The metadata of the same model as deci, with heads and widths per block; 0 heads for a block without attention."""
    n, out = values["block_count"], {}
    heads = per_block(values, "attention.head_count", n, arch)
    kv = per_block(values, "attention.head_count_kv", n, arch, default=heads)
    ff = per_block(values, "feed_forward_length", n, arch)
    rows = {
        "attention.head_count": [0 if b.attn is None else heads[b.attn] for b in blocks],
        "attention.head_count_kv": [0 if b.attn is None else kv[b.attn] for b in blocks],
        "feed_forward_length": [zero_ffn if b.ffn is None else ff[b.ffn] for b in blocks],
    }
    width = values.get("attention.key_length") or values["embedding_length"] // heads[blocks[0].attn]
    for key, entry in entries.items():
        if key.startswith(f"{arch}."):
            short = key.removeprefix(f"{arch}.")
            new = f"deci.{short}"
            out[new] = meta.numbers(new, rows.pop(short)) if short in rows else meta.renamed(entry, key, new)
        else:
            out[key] = entry
    for short, numbers in rows.items():
        out[f"deci.{short}"] = meta.numbers(f"deci.{short}", numbers)
    for short in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if f"deci.{short}" not in out:  # else llama.cpp divides by the first block's heads
            out[f"deci.{short}"] = meta.number(f"deci.{short}", width)
    out["general.architecture"] = meta.text("general.architecture", "deci")
    return out
