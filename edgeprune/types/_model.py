"""A model: its blocks, its shape, the scores of its removals."""

from __future__ import annotations

import math
from typing import Literal

from edgeprune.types._record import SCHEMA_VERSION, Record


class Block(Record):
    """Where this block's attention and feed-forward come from in the whole model; None leaves it out."""

    attn: int | None
    ffn: int | None


Blocks = tuple[Block, ...]


class SubLayerSpec(Record):
    """Tensor shapes by role, torch order (out, in): {"attn_q.weight": (576, 576), …}."""

    tensors: dict[str, tuple[int, ...]]

    @property
    def params(self) -> int:
        return sum(math.prod(s) for s in self.tensors.values())


class BlockSpec(Record):
    attn: SubLayerSpec
    ffn: SubLayerSpec
    sliding_window_tokens: int | None = None
    rotates: bool = True  # has a rotary embedding
    kv_elements_per_token: int  # K and V together: 2 * n_kv_heads * head_dim


class ModelSpec(Record):
    """A model's shape from its headers alone."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    format: Literal["safetensors", "gguf"]
    family: str  # key of edgeprune.families
    model_type: str  # config.json model_type, or GGUF general.architecture
    n_blocks: int
    hidden_size: int
    intermediate_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length_tokens: int
    tied_embeddings: bool
    blocks: tuple[BlockSpec, ...]
    globals: dict[str, tuple[int, ...]]  # token_embd.weight, output_norm.weight, output.weight
    dtypes: dict[str, int]  # stored type -> parameters
    weight_bytes: int  # tensor bytes as stored
    tokenizer_bytes: dict[str, int] | None = None  # format -> vocabulary and other metadata as it stores them
    fingerprint: str

    @property
    def params(self) -> int:
        return sum(math.prod(s) for s in self.globals.values()) + sum(b.attn.params + b.ffn.params for b in self.blocks)

    @property
    def kv_elements_per_token(self) -> int:
        return sum(b.kv_elements_per_token for b in self.blocks)


class Text(Record):
    """What was read: enough to tell two texts apart without storing them."""

    name: str
    sha256: str  # of all of it
    parts: tuple[str, ...] = ()  # SHA-256 of each text, where it was put together from several
    tokens: int
    context_tokens: int
    stride_tokens: int


class PathStep(Record):
    """The block list after this step and its damage against the whole model, in nats per token."""

    blocks: Blocks
    kl: float | None
    perplexity: float | None


class Scores(Record):
    """A removal path: step 0 is the whole model, each later step removes more. Knows no device."""

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    fingerprint: str
    n_blocks: int
    metric: str
    source: str  # the paper
    block_damage: tuple[float, ...] | None  # one number per block, low = remove first
    path: tuple[PathStep, ...]
    text: Text
    seed: int
    versions: dict[str, str]
