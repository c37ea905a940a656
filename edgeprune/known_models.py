"""Shapes of well-known models, shipped: what-if without weights, without a download.

builtin/models.json holds, for each, facts of its public config.json in that file's own keys, the repository on the hub
they are of, others of the same shape, and the published number of parameters. A family turns them into a ModelSpec as
it does with a folder's config.json, so a catalogue entry knows all that headers would tell, but no weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from importlib import resources
from typing import Any

from edgeprune import families
from edgeprune.catalog import did_you_mean
from edgeprune.errors import UsageError
from edgeprune.families._decoder import tensor_shapes
from edgeprune.types import BlockSpec, ModelSpec, SubLayerSpec

UNREAD = "shape:"  # begins the fingerprint of a model whose weights nobody read; no scores or plan can match it
# Weights beside which a bias stands, where config.json does not say so (transformers modeling_qwen2.py).
_BIASED = {"qwen2": ("attn_q", "attn_k", "attn_v")}
_SUFFIXES = ("-instruct", "-it", "-chat", "-hf", "-base", "-pt")


def names() -> list[str]:
    return sorted(_entries())


def find(text: str) -> str | None:
    """The catalogue's name for what was typed, in any case: a name, a hub id (with or without hf:// and @revision), its
    last part, or a name followed by -instruct and the like. None when nothing is meant."""
    wanted = re.sub(r"@.*", "", text.strip().removeprefix("hf://")).lower().replace("_", "-").replace(" ", "-")
    known = _spellings()
    if wanted in known:
        return known[wanted]
    bare = next((wanted.removesuffix(s) for s in _SUFFIXES if wanted.endswith(s)), None)
    return known.get(bare) if bare else None


def load(name: str) -> ModelSpec:
    """Raises UsageError with the nearest names for one that is not in the catalogue."""
    found = find(name)
    if found is None:
        raise UsageError(
            f"no model called {name!r} in the catalogue.{did_you_mean(name.rsplit('/', 1)[-1], names())} It holds "
            f"{', '.join(names())}; a path or a hub id with weights is planned with --scores"
        )
    return _spec(found)


def source(name: str) -> str:
    """The repository on the hub whose config.json the shape is of."""
    return _entries()[name]["source"]


def published_params(name: str) -> int:
    return _entries()[name]["params"]


def unread(spec: ModelSpec) -> bool:
    """Whether this is only a shape: a model of the catalogue."""
    return spec.fingerprint.startswith(UNREAD)


@functools.cache
def _entries() -> dict[str, Any]:
    return json.loads((resources.files("edgeprune") / "builtin" / "models.json").read_text(encoding="utf-8"))


@functools.cache
def _spellings() -> dict[str, str]:
    """All that a model is called, in lower case -> its name. A name of its own goes before a repository's."""
    found: dict[str, str] = {}
    for name, entry in _entries().items():
        for repo in (entry["source"], *entry["same_shape"]):
            found[repo.lower()] = name
            found.setdefault(repo.split("/")[1].lower(), name)
    return found | {name: name for name in _entries()}


@functools.cache
def _spec(name: str) -> ModelSpec:
    entry = _entries()[name]
    return of_config(entry["config"], entry["source"].split("/")[1])


def of_config(config: dict[str, Any], name: str) -> ModelSpec:
    """The shape that a config.json describes, weights unread. Raises InputRejected as a folder's config.json does."""
    family = families.for_model_type(config["model_type"])
    d = family.decoder(config)
    shapes = tensor_shapes(d, {**family.GLOBALS, **family.ATTN, **family.FFN})
    key = families.key(family)
    attn, ffn = _half(family.ATTN, shapes, key), _half(family.FFN, shapes, key)
    blocks = tuple(
        BlockSpec(
            attn=attn, ffn=ffn, sliding_window_tokens=d.windows[i], rotates=d.ropes[i] is not None,
            kv_elements_per_token=2 * d.n_kv_heads * d.head_dim,
        )
        for i in range(d.n_blocks)
    )  # fmt: skip
    outside = {f"{r}.weight": shapes[r] for r in sorted(family.GLOBALS.values()) if not (d.tied and r == "output")}
    params = sum(math.prod(s) for s in outside.values()) + d.n_blocks * (attn.params + ffn.params)
    return ModelSpec(
        name=name, format="safetensors", **families.shape(family, d), tied_embeddings=bool(d.tied), blocks=blocks,
        globals=outside, dtypes={"BF16": params}, weight_bytes=2 * params,
        fingerprint=UNREAD + hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
    )  # fmt: skip


def _half(roles: dict[str, str], shapes: dict[str, tuple[int, ...]], family: str) -> SubLayerSpec:
    weights = {f"{role}.weight": shapes[role] for role in sorted(roles.values())}
    biases = {f"{role}.bias": shapes[role][:1] for role in _BIASED.get(family, ()) if role in roles.values()}
    return SubLayerSpec(tensors=weights | biases)


__all__ = ["UNREAD", "find", "load", "names", "of_config", "published_params", "source", "unread"]
