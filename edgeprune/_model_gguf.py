"""A .gguf file, whole or split -> ModelSpec. Any architecture whose tensors tell attention from feed-forward."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from edgeprune import _gguf_arch as archs
from edgeprune import _tokenizer_bytes as tokenizer_bytes
from edgeprune import families
from edgeprune._fingerprint import PROBE_BYTES, fingerprint
from edgeprune.catalog import load_all
from edgeprune.errors import InputRejected
from edgeprune.gguf_file import GGUFHeader, read_header, split_paths, tensor_samples
from edgeprune.types import BlockSpec, ModelSpec, SubLayerSpec

Shapes = dict[str, tuple[int, ...]]
# Tables for the rotary embedding, in no block; too small to count.
ROPE_TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def inspect_gguf(path: Path, name: str | None) -> ModelSpec:
    """Raises InputRejected: damaged, a tensor of no known half of a block, tensors that do not fit the metadata."""
    header, where = read_header(path), str(path)
    arch = header.metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise InputRejected(f"{where} does not say its architecture; it is not a language model")
    values = arch_values(header, arch)
    n, hidden = (whole_number(values, k, where) for k in ("block_count", "embedding_length"))
    if n > len(header.tensors):
        raise InputRejected(f"{where} says {n} blocks and holds {len(header.tensors)} tensors; download it again")
    heads = per_block(values, "attention.head_count", n, where)
    kv_heads = per_block(values, "attention.head_count_kv", n, where, default=heads)
    ff = per_block(values, "feed_forward_length", n, where, default=[0] * n)
    if arch == "qwen":  # the first Qwen counts gate and up together (src/models/qwen.cpp)
        ff = [f // 2 for f in ff]
    key = values.get("attention.key_length") or hidden // max(1, max(heads))
    value = values.get("attention.value_length") or key
    halves, others = sorted_tensors(header, arch, n, where)
    widths = [
        {
            "attn_q.weight": (heads[i] * key, hidden),
            "attn_k.weight": (kv_heads[i] * key, hidden),
            "attn_v.weight": (kv_heads[i] * value, hidden),
            "attn_output.weight": (hidden, heads[i] * value),
            "ffn_gate.weight": (ff[i], hidden),
            "ffn_up.weight": (ff[i] * _up_width(halves[i]["ffn"], ff[i]), hidden),
            "ffn_down.weight": (hidden, ff[i]),
        }
        for i in range(n)
    ]
    if arch in archs.ARCHITECTURES:  # elsewhere a name can mean another shape
        _check(halves, widths, where)
    vocab = others.get("token_embd.weight", (0,))[0]
    if not vocab or others["token_embd.weight"] != (vocab, hidden):
        raise InputRejected(
            f"{where}: token_embd.weight should be [vocabulary, {hidden}]; it is damaged or no text model"
        )
    for role in ("output_norm.weight", "output.weight"):
        want = (hidden,) if role == "output_norm.weight" else (vocab, hidden)
        if role in others and others[role] != want:
            raise InputRejected(f"{where}: {role} should be {list(want)} and is {list(others[role])}")
    seen = archs.windows(arch, values, n)
    turns = archs.rotates(arch, n)
    latent = "attention.kv_lora_rank" in values  # DeepSeek's: keys hold the values too
    return ModelSpec(
        name=name or _stem(path),
        format="gguf",
        family=_family(arch),
        model_type=arch,
        n_blocks=n,
        hidden_size=hidden,
        intermediate_size=max(ff) or _widest(halves) or hidden,
        n_heads=max(heads) or 1,
        n_kv_heads=max(kv_heads) or 1,
        head_dim=key,
        vocab_size=vocab,
        context_length_tokens=whole_number(values, "context_length", where),
        tied_embeddings="output.weight" not in others,
        blocks=tuple(
            BlockSpec(
                attn=SubLayerSpec(tensors=dict(sorted(halves[i]["attn"].items()))),
                ffn=SubLayerSpec(tensors=dict(sorted(halves[i]["ffn"].items()))),
                sliding_window_tokens=seen[i],
                rotates=turns[i],
                kv_elements_per_token=kv_heads[i] * (key if latent else key + value),
            )
            for i in range(n)
        ),
        globals=dict(sorted(others.items())),
        dtypes=_dtypes(header),
        weight_bytes=sum(t.n_bytes for name, t in header.tensors.items() if name not in ROPE_TABLES),
        tokenizer_bytes=tokenizer_bytes.of_gguf(header),
        fingerprint=fingerprint(tensor_samples(header, PROBE_BYTES)),
    )


def arch_values(header: GGUFHeader, arch: str) -> dict[str, Any]:
    """The architecture's own metadata, without its prefix."""
    return {k.removeprefix(f"{arch}."): v for k, v in header.metadata.items() if k.startswith(f"{arch}.")}


def per_block(
    values: dict[str, Any], key: str, n: int, where: str, default: list[int] | None = None
) -> list[int]:  # fmt: skip
    """One number per block, from a scalar or an array. Raises InputRejected for anything else."""
    found = values.get(key, default)
    if type(found) is int:
        found = [found] * n
    if not isinstance(found, (tuple, list)) or len(found) != n or any(type(x) is not int or x < 0 for x in found):
        raise InputRejected(f"{where}: {key} should be a whole number, or {n} of them, and is {str(found)[:60]}")
    return list(found)


def sorted_tensors(header: GGUFHeader, arch: str, n: int, where: str) -> tuple[list[dict[str, Shapes]], Shapes]:
    """Per block {"attn": shapes by role, "ffn": …}, and the shapes outside the blocks."""
    halves: list[dict[str, Shapes]] = [{"attn": {}, "ffn": {}} for _ in range(n)]
    others: Shapes = {}
    for name, t in header.tensors.items():
        block = block_of(name)
        if block is None:
            if name not in ROPE_TABLES:
                others[name] = t.shape
            continue
        i, role = block
        if i >= n:
            raise InputRejected(f"{where} says {n} blocks, and tensor {name!r} belongs to block {i}; download it again")
        half = archs.half(arch, role)
        if half is None:
            raise InputRejected(f"{where}: tensor {name!r} is neither attention nor feed-forward; refusing to guess")
        halves[i][half][role] = t.shape
    return halves, others


def block_of(name: str) -> tuple[int, str] | None:
    """(3, "attn_q.weight") for "blk.3.attn_q.weight"; None for a tensor outside the blocks."""
    found = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    return (int(found[1]), found[2]) if found else None


def _check(halves: list[dict[str, Shapes]], widths: list[Shapes], where: str) -> None:
    """Equal roles in every block that has the half at all, with the shapes the metadata asks for."""
    want = {kind: Counter(frozenset(h[kind]) for h in halves if h[kind]).most_common(1) for kind in ("attn", "ffn")}
    for i, block in enumerate(halves):
        empty = {"attn": not widths[i]["attn_q.weight"][0], "ffn": not widths[i]["ffn_down.weight"][1]}
        for kind, shapes in block.items():
            missing = sorted(set().union(*(roles for roles, _ in want[kind])) - set(shapes))
            if missing and not (empty[kind] and not shapes) and not _mixed(halves, kind):
                raise InputRejected(f"{where}: block {i} has no {missing[0]}; download it again")
            for role in shapes:
                if role in widths[i] and shapes[role] != widths[i][role]:
                    raise InputRejected(
                        f"{where}: block {i} {role} should be {list(widths[i][role])} and is {list(shapes[role])}"
                    )


def _up_width(shapes: Shapes, ff: int) -> int:
    """2 where the gate lies in the same matrix (Phi-3, GLM), else 1."""
    return 2 if "ffn_gate.weight" not in shapes and shapes.get("ffn_up.weight", (0,))[0] == 2 * ff else 1


def _mixed(halves: list[dict[str, Shapes]], kind: str) -> bool:
    """Feed-forwards with and without experts in one model."""
    return kind == "ffn" and 0 < sum("ffn_gate_inp.weight" in h["ffn"] for h in halves) < len(halves)


def _family(arch: str) -> str:
    """Key of the family written as this architecture; the architecture itself when none is."""
    known = [families.key(f) for f in load_all("edgeprune.families").values() if f.GGUF_ARCH == arch]
    return known[0] if known else arch


def _widest(halves: list[dict[str, Shapes]]) -> int:
    return max((s[-1] for h in halves for role, s in h["ffn"].items() if role.startswith("ffn_down")), default=0)


def _dtypes(header: GGUFHeader) -> dict[str, int]:
    count: Counter[str] = Counter()
    for name, t in header.tensors.items():
        if name not in ROPE_TABLES:
            count[t.type] += math.prod(t.shape)
    return dict(sorted(count.items()))


def _stem(path: Path) -> str:
    parts = split_paths(path)
    return path.stem if len(parts) == 1 else path.stem[: -len("-00001-of-00001")]


def whole_number(values: dict[str, Any], name: str, where: str) -> int:
    value = values.get(name)
    if type(value) is not int or value <= 0:
        raise InputRejected(f"{where}: {name} should be a positive whole number and is {value!r}")
    return value
