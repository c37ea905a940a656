"""A transformers folder -> ModelSpec."""

from __future__ import annotations

import re
from typing import Any

from edgeprune import families
from edgeprune._model_parts import PROBE_BYTES, Parts, fingerprint, whole_number
from edgeprune.checkpoint import Checkpoint, raw_bytes
from edgeprune.errors import InputRejected
from edgeprune.types import ModelSpec


def inspect_folder(ck: Checkpoint, name: str) -> ModelSpec:
    c, where = ck.config, f"{ck.folder}/config.json"
    family = families.for_model_type(c["model_type"])
    n_blocks, hidden, n_heads = (
        whole_number(c, k, where) for k in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    tied = bool(c.get("tie_word_embeddings", False))
    parts = Parts(family, n_blocks, where)
    for tensor, e in ck.tensors.items():
        parts.add(*_role(family, tensor, where), e.shape, e.dtype, e.end - e.start)
    if tied:
        parts.globals.pop("output.weight", None)
    samples = (
        (
            tensor,
            e.dtype,
            e.shape,
            raw_bytes(e, max(0, (e.end - e.start - PROBE_BYTES) // 2), min(PROBE_BYTES, e.end - e.start)),
        )
        for tensor, e in sorted(ck.tensors.items())
    )
    return parts.spec(
        name=name,
        format="safetensors",
        model_type=c["model_type"],
        hidden_size=hidden,
        intermediate_size=whole_number(c, "intermediate_size", where),
        n_heads=n_heads,
        n_kv_heads=c.get("num_key_value_heads") or n_heads,
        head_dim=c.get("head_dim") or hidden // n_heads,
        vocab_size=whole_number(c, "vocab_size", where),
        context_length_tokens=whole_number(c, "max_position_embeddings", where),
        tied_embeddings=tied,
        windows=[family.sliding_window(c, i) for i in range(n_blocks)],
        fingerprint=fingerprint(samples),
    )


def _role(family: Any, tensor: str, where: str) -> tuple[int | None, str | None]:
    """(layer, "attn_q.weight"), (None, "token_embd.weight"), or (None, None) for a tensor to ignore."""
    path, _, kind = tensor.rpartition(".")
    if path in family.GLOBALS:
        return None, f"{family.GLOBALS[path]}.{kind}"
    layer = re.fullmatch(re.escape(family.LAYER).replace(r"\{i\}", r"(\d+)") + "(.+)", tensor)
    if layer:
        if layer[2] in family.IGNORED:
            return None, None
        role = {**family.ATTN, **family.FFN}.get(layer[2].rpartition(".")[0])
        if role:
            return int(layer[1]), f"{role}.{kind}"
    raise InputRejected(f"{where}: tensor {tensor!r} is not part of a {families.key(family)} model; refusing to guess")
