"""Small random llamas, and what they read."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from edgeprune.calibration import Windows

VOCAB = 1000


def model(n_blocks: int, hidden: int, seed: int = 0) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=hidden * 8 // 3, num_hidden_layers=n_blocks, vocab_size=VOCAB,
        num_attention_heads=max(1, hidden // 32), num_key_value_heads=max(1, hidden // 64), head_dim=32,
        max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    m = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, p in m.named_parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=(0.3 if "layers" in name else 1.0) / p.shape[-1] ** 0.5)
    return m


def spec(n_blocks: int) -> Any:
    return SimpleNamespace(n_blocks=n_blocks, name="random")


def text(n_windows: int, n_tokens: int, seed: int = 0) -> Windows:
    """Random tokens."""
    draw = random.Random(seed)
    return Windows([[draw.randrange(VOCAB) for _ in range(n_tokens)] for _ in range(n_windows)], None)


def own_text(m: Any, n_windows: int, n_tokens: int, seed: int = 0) -> Windows:
    """What the model itself wrote: there it predicts best, as a trained one does on prose."""
    import torch

    torch.manual_seed(seed)
    first = torch.randint(VOCAB, (n_windows, 1))
    tokens = m.generate(
        first, max_new_tokens=n_tokens - 1, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=None
    )  # fmt: skip
    return Windows(tokens.tolist(), None)
