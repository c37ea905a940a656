"""Prune a GGUF into a GGUF: kept tensors are copied byte by byte, block numbers and per-block metadata follow the plan.

No torch, no tokenizer, nothing requantised. What can't be moved safely is refused before a byte is written; see
edgeprune._gguf_arch for what is known of each architecture.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune import _gguf_arch as archs
from edgeprune import _gguf_metadata as meta
from edgeprune._gguf_copy import Piece, copy_pieces
from edgeprune._gguf_cut import as_deci, check_cut
from edgeprune._model_gguf import arch_values, block_of
from edgeprune.blocks import is_portable
from edgeprune.errors import InputRejected
from edgeprune.files import need_space, refuse_existing, staging
from edgeprune.gguf_file import GGML_TYPES, GGUFHeader, GGUFTensor, read_header
from edgeprune.prune import check_plan, provenance
from edgeprune.types import Blocks, ModelSpec, Plan

# A block without a feed-forward gets one of zeros: llama.cpp's deci drops the attention's result when n_ff is 0
# (src/models/deci.cpp). As narrow as the quantised types' smallest block allows.
ZERO_FFN = 32
_NUMBERS = {name: number for number, (name, _, _) in GGML_TYPES.items()}


class Kept(NamedTuple):
    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int
    source: GGUFTensor | None  # None: zeros


def prune_gguf(
    source: Path, spec: ModelSpec, plan: Plan, out: Path, *, base_model: str, force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:  # fmt: skip
    """Write the single .gguf that `plan` leaves of `source` (one file or all parts of a split model).

    `progress` gets bytes done and in all. Raises WrongWeights for a plan of another model, InputRejected for a cut that
    llama.cpp can't be told of, UsageError when `out` exists, OutOfResources when the disk is full.
    """
    refuse_existing(out, force)
    check_plan(plan, spec)
    header = read_header(source)
    arch = check_cut(header, plan.blocks)
    kept = kept_tensors(header, arch, plan.blocks)
    entries = new_metadata(header, arch, plan, kept, base_model)
    head, offsets = _head(header, entries, kept)
    total = len(head) + sum(_padded(k.n_bytes, header.alignment) for k in kept)
    need_space(out.parent, total)
    pieces = [
        Piece(k.source.path if k.source else None, k.source.offset if k.source else 0, offset, k.n_bytes)
        for k, offset in zip(kept, offsets, strict=True)
    ]
    # Not flushed: as fast as cp, and made again in as little time should the power fail within seconds.
    with staging(out, force, flush=False) as partial:
        copy_pieces(partial, head, pieces, total, progress)
        written = read_header(partial)
        if [(t.type, t.shape, t.offset) for t in written.tensors.values()] != [
            (k.type, k.shape, offset) for k, offset in zip(kept, offsets, strict=True)
        ]:
            raise InputRejected(f"{source} changed while it was read; prune again")


def kept_tensors(header: GGUFHeader, arch: str, blocks: Blocks) -> list[Kept]:
    """Tensors of the pruned model in the order of the whole one, then the zero feed-forwards."""
    place = {("attn", b.attn): new for new, b in enumerate(blocks)} | {
        ("ffn", b.ffn): new for new, b in enumerate(blocks)
    }
    out = []
    for name, t in header.tensors.items():
        block = block_of(name)
        if block:
            i, role = block
            new = place.get((archs.half(arch, role), i))
            if new is None:
                continue
            name = f"blk.{new}.{role}"
        out.append(Kept(name, t.type, t.shape, t.n_bytes, t))
    d = arch_values(header, arch)["embedding_length"]
    for new, b in enumerate(blocks):
        if b.ffn is None:
            out += [_zeros(f"blk.{new}.ffn_norm.weight", (d,)), _zeros(f"blk.{new}.ffn_gate.weight", (ZERO_FFN, d))]
            out += [
                _zeros(f"blk.{new}.ffn_up.weight", (ZERO_FFN, d)),
                _zeros(f"blk.{new}.ffn_down.weight", (d, ZERO_FFN)),
            ]
    return out


def new_metadata(header: GGUFHeader, arch: str, plan: Plan, kept: list[Kept], base_model: str) -> list[bytes]:
    """The entries of the pruned file: those of the whole model, byte for byte where the cut leaves them true."""
    entries = {k: v for k, v in meta.read_entries(header).items() if not k.startswith(("split.", "edgeprune."))}
    count = f"{arch}.block_count"
    entries[count] = meta.with_number(entries[count], count, len(plan.blocks))
    _slice_arrays(entries, arch, plan.blocks)
    _write_windows(entries, header, arch, plan.blocks)
    lead = f"{arch}.leading_dense_block_count"
    if lead in entries:
        n_dense = header.metadata[lead]
        entries[lead] = meta.with_number(
            entries[lead], lead, sum(b.ffn is not None and b.ffn < n_dense for b in plan.blocks)
        )
    _name(entries, header, arch, plan, kept)
    for key, value in sorted(provenance(plan, base_model).items()):
        entries[f"edgeprune.{key}"] = meta.text(f"edgeprune.{key}", str(value))
    if not is_portable(plan.blocks):
        entries = as_deci(entries, arch_values(header, arch), arch, plan.blocks, ZERO_FFN)
    return list(entries.values())


def _slice_arrays(entries: dict[str, bytes], arch: str, blocks: Blocks) -> None:
    known = {f"{arch}.{k}": half for k, half in archs.PER_BLOCK.items()} | archs.PER_BLOCK_PLAIN
    for key, half in known.items():
        if key in entries and meta.is_array(entries[key], key):
            picks = [getattr(b, half) for b in blocks]
            if None not in picks:  # else as_deci writes it
                entries[key] = meta.sliced(entries[key], key, picks)


def _write_windows(entries: dict[str, bytes], header: GGUFHeader, arch: str, blocks: Blocks) -> None:
    """The window of each block as an array, where its new position would no longer say it."""
    key = f"{arch}.attention.sliding_window_pattern"
    values = arch_values(header, arch)
    if archs.ARCHITECTURES[arch].window_every is None or isinstance(
        values.get("attention.sliding_window_pattern"), tuple
    ):
        return  # none, or sliced like any other array
    old = archs.windows(arch, values, values["block_count"])
    want = [old[b.attn] is not None for b in blocks if b.attn is not None]
    if [w is not None for w in archs.windows(arch, values, len(blocks))] != want:
        entries[key] = meta.flags(key, want)


def _name(entries: dict[str, bytes], header: GGUFHeader, arch: str, plan: Plan, kept: list[Kept]) -> None:
    """general.name says what was cut; general.size_label what is there, as gguf-py counts it."""
    name = header.metadata.get("general.name")
    if isinstance(name, str) and plan.removed:
        title = f"{name}, {len(plan.blocks)} of {plan.n_blocks_whole} blocks"
        entries["general.name"] = meta.text("general.name", title)
    if "general.size_label" in entries:
        entries["general.size_label"] = meta.text("general.size_label", _size_label(kept, header.metadata, arch))


def _size_label(kept: list[Kept], metadata: dict[str, Any], arch: str) -> str:
    import gguf

    total = sum(math.prod(k.shape) for k in kept if k.source)
    experts = sum(math.prod(k.shape) for k in kept if "_exps." in k.name)
    n_experts = metadata.get(f"{arch}.expert_count") or 0
    return gguf.size_label(total, total - experts, experts // max(1, n_experts), n_experts)


def _head(header: GGUFHeader, entries: list[bytes], kept: list[Kept]) -> tuple[bytes, list[int]]:
    """Everything before the first tensor, padded, and where each tensor starts."""
    table, at, starts = [], 0, []
    for k in kept:
        raw = k.name.encode()
        dims = k.shape[::-1]
        table.append(struct.pack("<Q", len(raw)) + raw + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        table.append(struct.pack("<IQ", _NUMBERS[k.type], at))
        starts.append(at)
        at += _padded(k.n_bytes, header.alignment)
    head = b"GGUF" + struct.pack("<IQQ", header.version, len(kept), len(entries)) + b"".join(entries + table)
    head += bytes(_padded(len(head), header.alignment) - len(head))
    return head, [len(head) + s for s in starts]


def _zeros(name: str, shape: tuple[int, ...]) -> Kept:
    """A tensor of zeros, 4-bit where its rows allow: every quantised type's zero bytes are zero weights."""
    kind = "F32" if len(shape) == 1 else "Q4_0" if shape[-1] % 32 == 0 else "F16"
    _, block, block_bytes = GGML_TYPES[_NUMBERS[kind]]
    return Kept(name, kind, shape, math.prod(shape) // block * block_bytes, None)


def _padded(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment
