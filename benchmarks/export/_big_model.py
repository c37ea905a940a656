"""A llama checkpoint of any size with random bfloat16 weights, in shards, written without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

SHARD_BYTES = 10**9
HIDDEN, FFN, HEADS, KV_HEADS = 3072, 8192, 24, 8
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json")


def make(folder: Path, model: Path, n_bytes: int) -> int:
    """Write `folder` with about `n_bytes` of weights and the tokenizer of `model`; the bytes of its largest tensor."""
    import numpy as np

    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    kv = HIDDEN * KV_HEADS // HEADS
    layer = {f"self_attn.{p}_proj": (HIDDEN if p == "q" else kv, HIDDEN) for p in "qkv"}
    layer |= {"self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN)}
    layer |= {"mlp.down_proj": (HIDDEN, FFN), "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
    ends = {"model.embed_tokens": (vocab, HIDDEN), "model.norm": (HIDDEN,), "lm_head": (vocab, HIDDEN)}
    n_layers = max(1, round((n_bytes / 2 - _count(ends)) / _count(layer)))
    shapes = dict(ends)
    for i in range(n_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    folder.mkdir()
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=HIDDEN, intermediate_size=FFN,
        num_hidden_layers=n_layers, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, vocab_size=vocab,
        max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False,
        hidden_act="silu", torch_dtype="bfloat16", bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for name in TOKENIZER:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    _write(folder, shapes, np.random.default_rng(0))
    return max(2 * _count({"": shape}) for shape in shapes.values())


def _count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(s[0] * (s[1] if len(s) > 1 else 1) for s in shapes.values())


def _write(folder: Path, shapes: dict[str, tuple[int, ...]], rng) -> None:
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if size and size + 2 * _count({"": shape}) > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += 2 * _count({"": shape})
    index = {}
    for k, names in enumerate(shards, 1):
        file = f"model-{k:05d}-of-{len(shards):05d}.safetensors"
        header, at = {}, 0
        for name in names:
            n = 2 * _count({"": shapes[name]})
            header[f"{name}.weight"] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [at, at + n]}
            index[f"{name}.weight"] = file
            at += n
        raw = json.dumps(header).encode()
        with open(folder / file, "wb") as f:
            f.write(len(raw).to_bytes(8, "little") + raw)
            for name in names:
                _write_random(f, _count({"": shapes[name]}), rng)
    index = {"metadata": {"total_size": 2 * _count(shapes)}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_random(f, n: int, rng, chunk: int = 1 << 24) -> None:
    """Random sign and mantissa under an exponent of 2^-6: finite, and no two alike."""
    import numpy as np

    while n:
        m = min(n, chunk)
        f.write(((rng.integers(0, 1 << 16, m, np.uint16) & 0x80FF) | 0x3C00).tobytes())
        n -= m
