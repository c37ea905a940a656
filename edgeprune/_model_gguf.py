"""A .gguf file -> ModelSpec."""

from __future__ import annotations

import re
from pathlib import Path

from edgeprune._model_parts import PROBE_BYTES, Parts, fingerprint, whole_number
from edgeprune.catalog import load_all
from edgeprune.errors import InputRejected
from edgeprune.gguf_file import read_header, tensor_samples
from edgeprune.types import ModelSpec


def inspect_gguf(path: Path, name: str | None) -> ModelSpec:
    h = read_header(path)
    m, arch = h.metadata, h.metadata.get("general.architecture")
    matches = [f for f in load_all("edgeprune.families").values() if f.GGUF_ARCH == arch]
    if not matches:
        known = sorted({f.GGUF_ARCH for f in load_all("edgeprune.families").values()})
        raise InputRejected(f"{path}: architecture {arch!r} is not one edgeprune knows ({', '.join(known)})")
    family, where = matches[0], str(path)
    values = {k.removeprefix(f"{arch}."): v for k, v in m.items() if k.startswith(f"{arch}.")}
    n_blocks, hidden, n_heads = (
        whole_number(values, k, where) for k in ("block_count", "embedding_length", "attention.head_count")
    )
    parts = Parts(family, n_blocks, where)
    for tensor, t in h.tensors.items():
        if tensor == "rope_freqs.weight":
            continue
        layer = re.fullmatch(r"blk\.(\d+)\.(.+)", tensor)
        parts.add(int(layer[1]) if layer else None, layer[2] if layer else tensor, t.shape, t.type, t.n_bytes)
    window = values.get("attention.sliding_window")
    return parts.spec(
        name=name or path.stem,
        format="gguf",
        model_type=arch,
        hidden_size=hidden,
        intermediate_size=whole_number(values, "feed_forward_length", where),
        n_heads=n_heads,
        n_kv_heads=values.get("attention.head_count_kv", n_heads),
        head_dim=values.get("attention.key_length", hidden // n_heads),
        vocab_size=parts.globals.get("token_embd.weight", (0,))[0],
        context_length_tokens=whole_number(values, "context_length", where),
        tied_embeddings="output.weight" not in parts.globals,
        windows=[window] * n_blocks,
        fingerprint=fingerprint(tensor_samples(path, h, PROBE_BYTES)),
    )
