"""Shapes of the models in the public rates: facts of each model's public config.json on the Hugging Face Hub.

`check` compares the parameters that these shapes make with the parameters that the rates' file gives, so that a wrong
line here can't pass unseen.
"""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    blocks: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    ff: int
    vocab: int
    tied: bool
    config: str  # repository of the config.json; "as X" where the file has the shape of X

    @property
    def block_params(self) -> int:
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
        return self.blocks * (attention + 3 * self.width * self.ff)

    @property
    def params(self) -> int:
        return self.block_params + self.vocab * self.width * (1 if self.tied else 2)

    def cache_bytes(self, depth: float) -> float:
        """Float16 cache of `depth` tokens, as llama.cpp keeps it."""
        return 2 * 2 * self.blocks * self.kv_heads * self.head_dim * depth

    def attention_flops(self, depth: float) -> float:
        """One token with `depth` before it."""
        return 4 * self.blocks * self.heads * self.head_dim * depth

    def prefill_flops(self, tokens: int) -> float:
        """As edgeprune.cost counts a prompt."""
        head = 2 * self.vocab * self.width
        return 2 * self.block_params * tokens + self.attention_flops(1) * tokens * (tokens + 1) / 2 + head


SHAPES = {
    "Llama-2-7B": Shape(32, 32, 32, 128, 4096, 11008, 32000, False, "meta-llama/Llama-2-7b-hf"),
    "Llama-2-13B": Shape(40, 40, 40, 128, 5120, 13824, 32000, False, "meta-llama/Llama-2-13b-hf"),
    "Llama-3.1-8B": Shape(32, 32, 8, 128, 4096, 14336, 128256, False, "meta-llama/Llama-3.1-8B"),
    "Llama-3.2-1B": Shape(16, 32, 8, 64, 2048, 8192, 128256, True, "meta-llama/Llama-3.2-1B"),
    "Llama-3.2-3B": Shape(28, 24, 8, 128, 3072, 8192, 128256, True, "meta-llama/Llama-3.2-3B"),
    "Llama-3.3-70B": Shape(80, 64, 8, 128, 8192, 28672, 128256, False, "meta-llama/Llama-3.3-70B-Instruct"),
    "Qwen2.5-0.5B": Shape(24, 14, 2, 64, 896, 4864, 151936, True, "Qwen/Qwen2.5-0.5B"),
    "Qwen2.5-1.5B": Shape(28, 12, 2, 128, 1536, 8960, 151936, True, "Qwen/Qwen2.5-1.5B"),
    "Qwen2.5-3B": Shape(36, 16, 2, 128, 2048, 11008, 151936, True, "Qwen/Qwen2.5-3B"),
    "Qwen2.5-7B": Shape(28, 28, 4, 128, 3584, 18944, 152064, False, "Qwen/Qwen2.5-7B"),
    "Qwen2.5-14B": Shape(48, 40, 8, 128, 5120, 13824, 152064, False, "Qwen/Qwen2.5-14B"),
    "Qwen3-0.6B": Shape(28, 16, 8, 128, 1024, 3072, 151936, True, "Qwen/Qwen3-0.6B"),
    "Qwen3-1.7B": Shape(28, 16, 8, 128, 2048, 6144, 151936, True, "Qwen/Qwen3-1.7B"),
    "Qwen3-4B": Shape(36, 32, 8, 128, 2560, 9728, 151936, True, "Qwen/Qwen3-4B"),
    "Qwen3-8B": Shape(36, 32, 8, 128, 4096, 12288, 151936, False, "Qwen/Qwen3-8B"),
    "Qwen3-14B": Shape(40, 40, 8, 128, 5120, 17408, 151936, False, "Qwen/Qwen3-14B"),
    "Qwen3-32B": Shape(64, 64, 8, 128, 5120, 25600, 151936, False, "Qwen/Qwen3-32B"),
    "SmolLM2-360M": Shape(32, 15, 5, 64, 960, 2560, 49152, True, "HuggingFaceTB/SmolLM2-360M"),
    "SmolLM2-1.7B": Shape(24, 32, 32, 64, 2048, 8192, 49152, True, "HuggingFaceTB/SmolLM2-1.7B"),
    "TinyLlama-1.1B": Shape(22, 32, 4, 64, 2048, 5632, 32000, False, "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    "gemma-2-2b": Shape(26, 8, 4, 256, 2304, 9216, 256000, True, "google/gemma-2-2b"),
    "gemma-3-4b": Shape(34, 8, 4, 256, 2560, 10240, 262208, True, "google/gemma-3-4b-it"),
    "Phi-3.5-mini": Shape(32, 32, 32, 96, 3072, 8192, 32064, False, "microsoft/Phi-3.5-mini-instruct"),
    "Phi-4-mini": Shape(32, 24, 8, 128, 3072, 8192, 200064, True, "microsoft/Phi-4-mini-instruct"),
    "Phi-4-14B": Shape(40, 40, 10, 128, 5120, 17920, 100352, False, "microsoft/phi-4"),
    "Ministral-3-3B": Shape(26, 32, 8, 128, 3072, 9216, 131072, True, "mistralai/Ministral-3-3B-Instruct-2512"),
    "Ministral-8B": Shape(36, 32, 8, 128, 4096, 12288, 131072, False, "mistralai/Ministral-8B-Instruct-2410"),
    "Falcon3-7B": Shape(28, 12, 4, 256, 3072, 23040, 131072, False, "tiiuae/Falcon3-7B-Base"),
    "Mistral-Small-24B": Shape(40, 32, 8, 128, 5120, 32768, 131072, False, "mistralai/Mistral-Small-24B-Base-2501"),
}


def check(model: str, params_b: float) -> None:
    """Raises ValueError where the shape and the file disagree on the number of parameters."""
    found = SHAPES[model].params / 1e9
    if abs(found / params_b - 1) > 0.003:
        raise ValueError(
            f"{model}: the shape here makes {found:.3f} B parameters, the rates' file says {params_b:.3f} B"
        )
