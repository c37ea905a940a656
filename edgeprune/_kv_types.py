"""Types that a KV cache can have, where a runtime takes them, and what they are expected to cost."""

from __future__ import annotations

from edgeprune.types import ModelSpec

# Bytes per number: ggml stores 32 numbers of q8_0 in 34 bytes, of q4_0 in 18 (ggml/src/ggml-common.h).
ELEMENT_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
LLAMACPP = ("f16", "q8_0", "q4_0")  # llama-bench's default first; those whose cost was published
GROUP = 32  # numbers that share a scale; a head must hold whole groups (llama_init_from_model in src/llama-context.cpp)
# Backends whose flash attention reads a quantised cache, without which llama.cpp refuses one (docs/ops/*.csv:
# FLASH_ATTN_EXT; OpenCL's reads floats only).
FLASH_BACKENDS = frozenset({"cpu", "cuda", "metal", "vulkan"})


def native(runtime: str, quant: str) -> str:
    """What a runtime's users get unless they ask."""
    return "f16" if runtime == "llamacpp" or quant == "fp16" else "f32"


def offered(spec: ModelSpec, runtime: str, backend: str, quant: str) -> tuple[str, ...]:
    """Types this model's cache can have there, the runtime's own first."""
    if runtime != "llamacpp" or backend not in FLASH_BACKENDS or spec.head_dim % GROUP:
        return (native(runtime, quant),)
    return LLAMACPP
