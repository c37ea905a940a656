"""What was asked, what is foretold, what was decided."""

from __future__ import annotations

from typing import Literal

from edgeprune.types._model import Blocks
from edgeprune.types._record import SCHEMA_VERSION, Record


class Budget(Record):
    """What was asked. None = no limit."""

    max_mem_bytes: int | None = None
    min_decode_tok_per_s: float | None = None
    max_ttft_s: float | None = None
    max_file_bytes: int | None = None
    max_kl: float | None = None  # of removal and quantisation together, nats per token
    max_ppl_ratio: float | None = None  # perplexity over the whole, unquantised model's
    prompt_tokens: int = 512  # what max_ttft_s is for
    context_tokens: int = 2048  # KV cache reserved
    quant: str = "auto"
    kv_type: str = "auto"  # llama.cpp's type of the KV cache: f16, q8_0 or q4_0
    runtime: str = "auto"
    objective: Literal["quality", "speed", "size", "memory"] = "quality"  # what is best among all that meets the limits


class Prediction(Record):
    """Memory and speed foretold for one block list × quantisation × runtime on one device."""

    file_bytes: int
    weights_bytes: int  # resident weights
    kv_bytes: int
    compute_bytes: int
    runtime_bytes: int
    memory_bytes: int  # the sum of the four above: what becomes resident
    committed_bytes: int | None = None  # what is reserved, written to or not; an accelerator must have it all
    streamed_bytes: int  # read for each decoded token
    decode_tok_per_s: float | None
    decode_low_tok_per_s: float | None
    decode_high_tok_per_s: float | None
    decode_depth_tokens: int = 64  # tokens in the cache at that speed; 64 is the mean of llama-bench's tg128
    ttft_s: float | None
    ttft_low_s: float | None = None
    ttft_high_s: float | None = None
    basis: str  # "prior", "fitted" or "host-calibrated", and from what


class Alternative(Record):
    """A candidate the planner looked at, and why it lost or what it gives for what."""

    runtime: str
    quant: str
    kv_type: str = "f16"
    n_blocks: int
    removed: str
    damage_kl: float | None  # removal, measured
    quant_kl: float | None  # quantisation, prior
    kv_kl: float | None = 0.0  # KV cache type, prior
    prediction: Prediction
    reason: str


class Plan(Record):
    """Small, reviewable, deterministic: same inputs, same bytes."""

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    family: str
    fingerprint: str
    n_blocks_whole: int
    device: str
    mode: str | None
    runtime: str
    backend: str
    quant: str
    kv_type: str = "f16"  # of the KV cache, as the runtime calls it; f32 in onnxruntime
    budget: Budget
    memory_limit_bytes: int | None
    memory_limit_from: str  # "--max-mem" or "device"
    blocks: Blocks
    removed: str
    damage_kl: float | None
    damage_perplexity: float | None
    whole_perplexity: float | None
    quant_kl: float | None
    kv_kl: float | None = 0.0  # prior
    expected_kl: float | None = None  # removal, quantisation and KV cache together
    expected_ppl_ratio: float | None = None
    prediction: Prediction
    prediction_whole: Prediction  # same quantisation, cache and runtime, nothing removed
    alternatives: tuple[Alternative, ...]  # the best of every other runtime × quantisation
    front: tuple[Alternative, ...] = ()  # damage × memory × speed: none is beaten in all three
    scores_sha256: str | None
    metric: str | None
