"""What folders and GGUF files have in common when they are read as a ModelSpec."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from edgeprune import families
from edgeprune.errors import InputRejected
from edgeprune.types import BlockSpec, ModelSpec, SubLayerSpec

PROBE_BYTES = 64


class Parts:
    """Collects tensors by layer and role, then checks that nothing is missing or of the wrong shape."""

    def __init__(self, family: Any, n_blocks: int, where: str):
        self.family, self.n_blocks, self.where = family, n_blocks, where
        self.attn_roles, self.ffn_roles = set(family.ATTN.values()), set(family.FFN.values())
        self.layers: list[dict[str, tuple[int, ...]]] = [{} for _ in range(n_blocks)]
        self.globals: dict[str, tuple[int, ...]] = {}
        self.dtypes: Counter[str] = Counter()
        self.weight_bytes = 0

    def add(self, layer: int | None, role: str | None, shape: tuple[int, ...], dtype: str, n_bytes: int) -> None:
        if role is None:
            return
        if layer is None:
            self.globals[role] = tuple(shape)
        elif layer < self.n_blocks:
            self.layers[layer][role] = tuple(shape)
        else:
            raise InputRejected(f"{self.where} says {self.n_blocks} layers, a tensor belongs to layer {layer}")
        self.dtypes[dtype] += math.prod(shape)
        self.weight_bytes += n_bytes

    def spec(self, *, windows: list[int | None], **fields: Any) -> ModelSpec:
        d, ff, heads, kv, hd = (
            fields[k] for k in ("hidden_size", "intermediate_size", "n_heads", "n_kv_heads", "head_dim")
        )
        want = {
            "attn_norm.weight": (d,),
            "attn_q.weight": (heads * hd, d),
            "attn_k.weight": (kv * hd, d),
            "attn_v.weight": (kv * hd, d),
            "attn_output.weight": (d, heads * hd),
            "ffn_norm.weight": (d,),
            "ffn_gate.weight": (ff, d),
            "ffn_up.weight": (ff, d),
            "ffn_down.weight": (d, ff),
        }
        for i, tensors in enumerate(self.layers):
            for role, shape in want.items():
                if tensors.get(role) != shape:
                    found = list(tensors[role]) if role in tensors else "nothing"
                    raise InputRejected(f"{self.where}: layer {i} {role} should be {list(shape)} and is {found}")
        embed = {"token_embd.weight": (fields["vocab_size"], d), "output_norm.weight": (d,)}
        if not fields["tied_embeddings"]:
            embed["output.weight"] = (fields["vocab_size"], d)
        for role, shape in embed.items():
            if self.globals.get(role) != shape:
                found = list(self.globals[role]) if role in self.globals else "nothing"
                raise InputRejected(f"{self.where}: {role} should be {list(shape)} and is {found}")
        return ModelSpec(
            family=families.key(self.family),
            n_blocks=self.n_blocks,
            blocks=tuple(
                BlockSpec(
                    attn=self._half(tensors, self.attn_roles),
                    ffn=self._half(tensors, self.ffn_roles),
                    sliding_window_tokens=windows[i],
                    kv_elements_per_token=2 * kv * hd,
                )
                for i, tensors in enumerate(self.layers)
            ),
            globals=dict(sorted(self.globals.items())),
            dtypes=dict(sorted(self.dtypes.items())),
            weight_bytes=self.weight_bytes,
            **fields,
        )

    def _half(self, tensors: dict[str, tuple[int, ...]], roles: set[str]) -> SubLayerSpec:
        unknown = [r for r in tensors if r.rsplit(".", 1)[0] not in self.attn_roles | self.ffn_roles]
        if unknown:
            raise InputRejected(
                f"{self.where}: tensor {unknown[0]!r} is not part of a {families.key(self.family)} block"
            )
        return SubLayerSpec(tensors={r: s for r, s in sorted(tensors.items()) if r.rsplit(".", 1)[0] in roles})


def fingerprint(samples: Iterable[tuple[str, str, tuple[int, ...], bytes]]) -> str:
    digest = hashlib.sha256()
    for tensor, dtype, shape, probe in samples:
        digest.update(f"{tensor} {dtype} {list(shape)} ".encode() + probe)
    return digest.hexdigest()


def whole_number(values: dict[str, Any], name: str, where: str) -> int:
    value = values.get(name)
    if type(value) is not int or value <= 0:
        raise InputRejected(f"{where}: {name} should be a positive whole number and is {value!r}")
    return value
