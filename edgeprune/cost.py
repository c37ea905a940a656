"""What a block list costs on a device: file, memory, decode speed, time to first token. Formulas only, no torch.

Decode of one token at batch 1, with `depth` tokens in the cache:

    t = streamed_bytes / (efficiency · bandwidth) + n_blocks · overhead + cache_bytes / cache_rate + operations / rate

the last two for attention over `depth`: devices differ in whether reading the cache or the arithmetic binds.

Removing blocks saves in all three terms, quantising only in the first. Terms and their intervals come from
edgeprune._rates, sizes from edgeprune._sizes.

Memory is what the model adds to a process, as edgeprune.bench measures it: resident weights, KV cache of the
whole context, compute buffers, and the runtime's own structures.
"""

from __future__ import annotations

import math

from edgeprune import _kv_types
from edgeprune._fit import Z
from edgeprune._rates import Rates, best_backend, find
from edgeprune._sizes import Shapes, quants, sizes
from edgeprune.errors import UsageError
from edgeprune.types import Blocks, DeviceProfile, ModelSpec, Prediction

__all__ = ["Predictor", "best_backend", "compute_bytes", "kv_bytes", "predict", "quants", "runtime_bytes"]

DECODE_DEPTH_TOKENS = 64  # the mean over llama-bench's tg128
LLAMACPP_CELLS = 256  # n_ctx is rounded up to this
LLAMACPP_UBATCH = 512
# Families whose windows llama.cpp does not know or has switched off (src/models/*.cpp: swa_type): a cache of full length.
FULL_CACHE = frozenset({"mistral", "phi3", "qwen2", "qwen3", "smollm3"})
MIB = 1 << 20

# llama.cpp: process growth beside weights, cache and compute buffers. Measured with llama-cpp-python 0.3.36 on
# SmolLM2-135M (49,152 tokens): 18-22 MiB over Q8_0 and Q4_K_M at 1k and 4k context. The slope is the vocabulary's
# maps, from an earlier reading of about 45 MiB for gemma-3-270m (262,144 tokens) that was not repeated.
LLAMACPP_BASE_BYTES = 15 * MIB
LLAMACPP_VOCAB_BYTES = 120
# onnxruntime 1.31.1 on SmolLM2's int8 and int4 folders: 30 MiB session and 35 MiB tokenizer. One vocabulary measured,
# so the split between fixed part and slope is a guess.
ONNX_BASE_BYTES = 40 * MIB
ONNX_VOCAB_BYTES = 540
# Resident weights over stored ones on CPU: MatMul repacks float32, and float16 is computed as float32 (same runs).
ONNX_RESIDENT = {"fp32": 1.15, "fp16": 2.4, "int8": 1.0, "int4-mixed": 1.0, "int4": 1.0}


def kv_bytes(
    spec: ModelSpec, blocks: Blocks, runtime: str, quant: str, context_tokens: int, kv_type: str | None = None
) -> int:
    """Bytes of the KV cache. Blocks without attention have none. `kv_type` None: what the runtime takes unasked.

    llama.cpp: cells rounded up to 256; a sliding window needs window + one micro-batch (src/llama-kv-cache-iswa.cpp,
    swa_full off as llama-bench sets it). onnxruntime: one array of the whole context per block, float32 (float16 in fp16).
    """
    element = _kv_types.ELEMENT_BYTES[kv_type or _kv_types.native(runtime, quant)]
    windowed = spec.family not in FULL_CACHE
    total = 0
    for b in blocks:
        if b.attn is None:
            continue
        block = spec.blocks[b.attn]
        if runtime == "llamacpp":
            cells = _pad(context_tokens)
            if windowed and block.sliding_window_tokens is not None:
                cells = min(cells, _pad(block.sliding_window_tokens + min(LLAMACPP_UBATCH, context_tokens)))
            total += cells * block.kv_elements_per_token
        else:
            total += context_tokens * block.kv_elements_per_token
    return round(total * element)


def compute_bytes(spec: ModelSpec, runtime: str, backend: str, context_tokens: int, prompt_tokens: int) -> int:
    """Bytes of activations while the prompt is read, plus the output logits.

    Depth does not matter: buffers are reused from block to block.

    llama.cpp, n_ubatch 512: 4·(3·ff + q + 3·d) per token and a float16 mask of context × micro-batch; read off its
    allocator for SmolLM2 (14.01 MiB at 512 tokens of context, 21.51 at 8192) and random shapes. On CPU that is what
    becomes resident. A GPU commits logits for every token of the micro-batch too.
    onnxruntime: (9·ff + 6·d) floats per prompt token, fitted on SmolLM2 int8 at 128-1000 tokens; one shape only.
    """
    d, ff, q = spec.hidden_size, spec.intermediate_size, spec.n_heads * spec.head_dim
    logits = spec.vocab_size * 4
    if runtime == "llamacpp":
        tokens = min(LLAMACPP_UBATCH, context_tokens)
        kv = spec.n_kv_heads * spec.head_dim
        live = max(3 * ff + q + 3 * d, 2 * q + 2 * kv + 2 * d)
        activations = 4 * live * tokens + 2 * tokens * _pad(context_tokens)
        if backend != "cpu":
            activations = max(activations, 4 * tokens * (spec.vocab_size + 2 * d))
        return activations + logits
    return 4 * (9 * ff + 6 * d) * min(prompt_tokens, context_tokens) + logits


def runtime_bytes(spec: ModelSpec, runtime: str, rates: Rates | None = None) -> int:
    """Bytes of the runtime's own structures: session, graph, vocabulary. A profile's measured figure wins."""
    if rates is not None and rates.runtime_memory is not None:
        return rates.runtime_memory
    if runtime == "llamacpp":
        return LLAMACPP_BASE_BYTES + LLAMACPP_VOCAB_BYTES * spec.vocab_size
    return ONNX_BASE_BYTES + ONNX_VOCAB_BYTES * spec.vocab_size


class Predictor:
    """Predictions for one model on one device × runtime × backend (× power mode); cheap to call for many block lists."""

    def __init__(
        self,
        spec: ModelSpec,
        device: DeviceProfile,
        runtime: str,
        backend: str,
        mode: str | None = None,
        shapes: Shapes | None = None,
    ):
        self.spec, self.device, self.runtime, self.backend, self.mode = spec, device, runtime, backend, mode
        self.shapes = shapes or Shapes(spec)
        self._isa = frozenset((device.isa or "").split()) if (runtime, backend) == ("llamacpp", "cpu") else frozenset()
        self._rates: dict[str, Rates | None] = {}

    def __call__(
        self, blocks: Blocks, quant: str, context_tokens: int, prompt_tokens: int, kv_type: str | None = None
    ) -> Prediction:
        """Raises UsageError for an unknown quantisation, an unknown mode or a context beyond the model's."""
        spec, runtime = self.spec, self.runtime
        _check_context(spec, context_tokens)
        size = sizes(self.shapes, blocks, runtime, quant, self._isa)
        if quant not in self._rates:
            self._rates[quant] = find(self.device, runtime, self.backend, self.mode, quant)
        rates = self._rates[quant]
        weights = size.tensor_bytes + size.repack_bytes
        if runtime == "onnxruntime" and self.backend == "cpu":
            weights = round(weights * ONNX_RESIDENT[quant])
        kv = kv_bytes(spec, blocks, runtime, quant, context_tokens, kv_type)
        compute = compute_bytes(spec, runtime, self.backend, context_tokens, prompt_tokens)
        base = runtime_bytes(spec, runtime, rates)
        times = [
            decode_seconds(spec, blocks, size.streamed_bytes, quant, runtime, rates, k, kv_type=kv_type)
            for k in range(3)
        ]
        slow, middle, fast = (None if t is None else 1 / t for t in times)
        return Prediction(
            file_bytes=size.file_bytes,
            weights_bytes=weights,
            kv_bytes=kv,
            compute_bytes=compute,
            runtime_bytes=base,
            memory_bytes=weights + kv + compute + base,
            streamed_bytes=size.streamed_bytes,
            decode_tok_per_s=middle,
            decode_low_tok_per_s=slow,
            decode_high_tok_per_s=fast,
            decode_depth_tokens=DECODE_DEPTH_TOKENS,
            ttft_s=self._ttft(blocks, prompt_tokens, rates, 1),
            ttft_low_s=self._ttft(blocks, prompt_tokens, rates, 2),
            ttft_high_s=self._ttft(blocks, prompt_tokens, rates, 0),
            basis=rates.basis if rates else f"no rate known for {runtime} on {self.backend}{self._in_mode()}",
        )

    def _in_mode(self) -> str:
        return f" in power mode {self.mode}" if self.mode else ""

    def _ttft(self, blocks: Blocks, prompt_tokens: int, rates: Rates | None, which: int) -> float | None:
        """Seconds to read the prompt: 2 operations per block parameter and token, the output head once, causal attention.

        The rate is what published prefills of ≥ 1 B models reached on this count; smaller models reach less.
        """
        if rates is None or rates.prefill_flops is None or rates.prefill_ends is None:
            return None
        spec = self.spec
        heads = 4 * spec.n_heads * spec.head_dim * sum(b.attn is not None for b in blocks)
        flops = 2 * self.shapes.block_params(blocks) * prompt_tokens + heads * prompt_tokens * (prompt_tokens + 1) / 2
        flops += 2 * spec.vocab_size * spec.hidden_size
        return flops / (rates.prefill_ends[0], rates.prefill_flops, rates.prefill_ends[1])[which]


def decode_seconds(
    spec: ModelSpec,
    blocks: Blocks,
    streamed_bytes: int,
    quant: str,
    runtime: str,
    rates: Rates | None,
    which: int,
    depth_tokens: int = DECODE_DEPTH_TOKENS,
    kv_type: str | None = None,
) -> float | None:
    """Seconds per token; `which` 0 = slow end of the 90 % interval, 1 = middle, 2 = fast end. None when no rate is known.

    The terms' errors are independent, so each counts by its share of the time and they add in squares, with the spread
    of one measurement about the formula.
    """
    if rates is None:
        return None
    element = _kv_types.ELEMENT_BYTES[kv_type or _kv_types.native(runtime, quant)]
    slow, middle, fast = (_parts(spec, blocks, streamed_bytes, rates, k, depth_tokens, element) for k in range(3))
    seconds = sum(middle)
    if which == 1:
        return seconds
    ends = zip(middle, slow if which == 0 else fast, strict=True)
    apart = [m / seconds * math.log(end / m) for m, end in ends if m > 0 and end > 0]
    return seconds * math.exp((1 if which == 0 else -1) * math.hypot(Z * rates.noise, *apart))


def _parts(
    spec: ModelSpec,
    blocks: Blocks,
    streamed_bytes: int,
    rates: Rates,
    which: int,
    depth_tokens: int,
    element_bytes: float,
) -> tuple[float, ...]:
    """Seconds for weights, the blocks' fixed cost, reading the cache, and attention's arithmetic."""
    cache_bytes, flops = attention_work(spec, blocks, depth_tokens, element_bytes)
    return (
        streamed_bytes / (rates.efficiency[which] * rates.bandwidth),
        len(blocks) * rates.overhead_us[which] * 1e-6,
        cache_bytes / rates.cache_bytes_per_s[which],
        flops / rates.attention_flops[which],
    )


def attention_work(spec: ModelSpec, blocks: Blocks, depth_tokens: int, element_bytes: float) -> tuple[float, float]:
    """(bytes of cache read, operations) for one token with `depth_tokens` before it; a window sees no more than itself."""
    elements = flops = 0
    for block in (spec.blocks[b.attn] for b in blocks if b.attn is not None):
        seen = min(depth_tokens, block.sliding_window_tokens or depth_tokens)
        elements += block.kv_elements_per_token * seen
        flops += 4 * spec.n_heads * spec.head_dim * seen
    return elements * element_bytes, flops


def predict(
    spec: ModelSpec,
    blocks: Blocks,
    device: DeviceProfile,
    runtime: str,
    backend: str,
    quant: str,
    context_tokens: int,
    prompt_tokens: int,
    mode: str | None = None,
    kv_type: str | None = None,
) -> Prediction:
    """Memory and speed foretold. For many block lists make one Predictor."""
    return Predictor(spec, device, runtime, backend, mode)(blocks, quant, context_tokens, prompt_tokens, kv_type)


def _check_context(spec: ModelSpec, context_tokens: int) -> None:
    if not 1 <= context_tokens <= spec.context_length_tokens:
        raise UsageError(
            f"a context of {context_tokens} tokens was asked; {spec.name} holds 1 to {spec.context_length_tokens}"
        )


def _pad(tokens: int) -> int:
    return -(-tokens // LLAMACPP_CELLS) * LLAMACPP_CELLS
