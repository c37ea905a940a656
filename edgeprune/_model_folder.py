"""A transformers folder -> ModelSpec."""

from __future__ import annotations

import math
from collections import Counter

from edgeprune import _tokenizer_bytes as tokenizer_bytes
from edgeprune import families
from edgeprune._fingerprint import PROBE_BYTES, fingerprint
from edgeprune.checkpoint import Checkpoint, halves, raw_bytes
from edgeprune.types import BlockSpec, ModelSpec, SubLayerSpec


def inspect_folder(ck: Checkpoint, name: str) -> ModelSpec:
    """Raises InputRejected for a config that is unusable and for tensors that do not fit it."""
    family = families.for_model_type(ck.config["model_type"])
    d = family.decoder(ck.config)
    places = families.place(family, d, {n: e.shape for n, e in ck.tensors.items()}, ck.folder)
    roles: dict[int | None, dict[str, tuple[int, ...]]] = {i: {} for i in (None, *range(d.n_blocks))}
    dtypes: Counter[str] = Counter()
    for tensor, at in places.items():
        entry = ck.tensors[tensor]
        roles[at.layer][f"{at.role}.{at.kind}"] = entry.shape
        dtypes[entry.dtype] += math.prod(entry.shape)

    def half(layer: int, names: dict[str, str], there: bool) -> SubLayerSpec:
        mine = {r: s for r, s in sorted(roles[layer].items()) if r.rsplit(".", 1)[0] in names.values()}
        return SubLayerSpec(tensors=mine if there else {})

    there = halves(ck)
    samples = ((tensor, e.dtype, e.shape, _probe(e)) for tensor, e in sorted(ck.tensors.items()))
    return ModelSpec(
        name=name,
        format="safetensors",
        **families.shape(family, d),
        tied_embeddings=families.is_tied(d, ck.tensors),
        blocks=tuple(
            BlockSpec(
                attn=half(i, family.ATTN, there[i][0]),
                ffn=half(i, family.FFN, there[i][1]),
                sliding_window_tokens=d.windows[i],
                rotates=d.ropes[i] is not None,
                kv_elements_per_token=2 * d.widths[i].n_kv_heads * d.head_dim if there[i][0] else 0,
            )
            for i in range(d.n_blocks)
        ),
        globals=dict(sorted(roles[None].items())),
        dtypes=dict(sorted(dtypes.items())),
        weight_bytes=sum(ck.tensors[t].end - ck.tensors[t].start for t in places),
        tokenizer_bytes=tokenizer_bytes.of_folder(ck.folder, d.vocab),
        fingerprint=fingerprint(samples),
    )


def _probe(entry) -> bytes:
    """Up to 64 bytes from the middle."""
    n = entry.end - entry.start
    return raw_bytes(entry, max(0, (n - PROBE_BYTES) // 2), min(PROBE_BYTES, n))
