"""One file per model family: where its sub-layers live and what is per layer. No torch here.

A family module says:
    MODEL_TYPES   config.json `model_type` values it covers
    GGUF_ARCH     GGUF `general.architecture` it is written as
    LAYER, ATTN, FFN, GLOBALS, IGNORED, OUTPUTS   tensor names, see _llama_like
    sliding_window(config, layer) -> int | None   attention window of a layer, tokens
    PER_LAYER_CONFIG   config lists with one entry per layer, re-sliced with the attention
    PERMUTE_QK    whether GGUF stores rotary query/key rows interleaved (llama.cpp's NORM rope)
    TINY          config values of a small model of the family, for tests
"""

from __future__ import annotations

from types import ModuleType

from edgeprune.catalog import did_you_mean, load_all
from edgeprune.errors import InputRejected


def for_model_type(model_type: str) -> ModuleType:
    """The family of a config's `model_type`. Raises InputRejected naming the families there are."""
    families = load_all("edgeprune.families")
    for module in families.values():
        if model_type in module.MODEL_TYPES:
            return module
    known = sorted(t for m in families.values() for t in m.MODEL_TYPES)
    raise InputRejected(
        f"model_type {model_type!r} is not a family edgeprune knows.{did_you_mean(model_type, known)} Known: {', '.join(known)}"
    )


def key(module: ModuleType) -> str:
    """The registry key (file name) of a family module."""
    return module.__name__.rsplit(".", 1)[-1]
