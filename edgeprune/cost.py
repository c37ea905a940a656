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
from edgeprune._prior import Z
from edgeprune._rates import Rates, best_backend, find
from edgeprune._sizes import Caches, Matrices, Shapes, Sizes, caches, quants, sizes
from edgeprune.errors import UsageError
from edgeprune.types import Blocks, DeviceProfile, ModelSpec, Prediction

__all__ = ["Predictor", "best_backend", "compute_bytes", "kv_bytes", "predict", "quants", "runtime_bytes"]

DECODE_DEPTH_TOKENS = 64  # the mean over llama-bench's tg128; no thread waits for another's cells there
LLAMACPP_CELLS = 256  # n_ctx is rounded up to this
LLAMACPP_UBATCH = 512
SPLIT_CELLS = 512  # from so many on, its threads divide the cache for one token
# Families whose windows llama.cpp does not know or has switched off (src/models/*.cpp: swa_type): a cache of full length.
FULL_CACHE = frozenset({"mistral", "phi3", "qwen2", "qwen3", "smollm3"})
MIB = 1 << 20

Times = tuple[float, float, float]  # seconds: slow end of the 90 % interval, middle, fast end
NOT_KNOWN = (None, None, None)

# llama.cpp: process growth beside weights, cache and compute buffers, of llama-cpp-python 0.3.36 on generated models of
# 1k to 131k tokens and 2 to 32 blocks, each beside its load without allocation. A vocabulary with merges (byte-level
# BPE) takes 280 bytes a token, one with scores (SentencePiece) 160: the latter is gemma-3-270m's 45 MiB.
LLAMACPP_BASE_BYTES = 6 * MIB
LLAMACPP_BLOCK_BYTES = 75_000
LLAMACPP_VOCAB_BYTES = {"merges": 280, "scores": 160}
MERGES_FROM = 25  # bytes of GGUF metadata per token: 36 with merges (SmolLM2), 22 with scores (Gemma 3)
# onnxruntime 1.31.1, the same way: libraries and session, in which blocks do not show; the tokenizers library's tables.
ONNX_BASE_BYTES = 19_000_000
ONNX_VOCAB_BYTES = 293


def kv_bytes(
    spec: ModelSpec, blocks: Blocks, runtime: str, quant: str, context_tokens: int, kv_type: str | None = None
) -> int:
    """Bytes of the KV cache. Blocks without attention have none. `kv_type` None: what the runtime takes unasked.

    llama.cpp: cells rounded up to 256; a sliding window needs window + one micro-batch (src/llama-kv-cache-iswa.cpp,
    swa_full off as llama-bench sets it). onnxruntime: one array of the whole context per block, float32 (float16 in fp16).
    """
    element = _kv_types.ELEMENT_BYTES[kv_type or _kv_types.native(runtime, quant)]
    return _cache_bytes(spec, caches(spec, blocks), runtime, element, context_tokens)


def _cache_bytes(spec: ModelSpec, kept: Caches, runtime: str, element_bytes: float, context_tokens: int) -> int:
    windowed, total = runtime == "llamacpp" and spec.family not in FULL_CACHE, 0
    for (elements, window), n in kept.items():
        cells = _pad(context_tokens) if runtime == "llamacpp" else context_tokens
        if windowed and window is not None:
            cells = min(cells, _pad(window + min(LLAMACPP_UBATCH, context_tokens)))
        total += n * cells * elements
    return round(total * element_bytes)


def compute_bytes(
    spec: ModelSpec,
    runtime: str,
    backend: str,
    context_tokens: int,
    prompt_tokens: int,
) -> int:
    """Bytes of activations while the prompt is read, plus the output logits: what becomes resident.

    Depth does not matter: buffers are reused from block to block.

    llama.cpp, n_ubatch 512: 4·(3·ff + q + 3·d) per token and a float16 mask of context × micro-batch; read off its
    allocator for SmolLM2 (14.01 MiB at 512 tokens of context, 21.51 at 8192) and random shapes. A GPU holds what is
    committed. onnxruntime: its planner keeps a buffer for each output of a block, for which the next block's are
    waiting, and its arena hardly fills gaps: ONNX_FLOATS per prompt token; attention is in tiles, without a matrix of
    scores. Fitted to what eleven models of eight shapes grew by at 64, 256 and 700 tokens.
    """
    if runtime == "llamacpp" and backend != "cpu":
        return committed_compute_bytes(spec, runtime, context_tokens, prompt_tokens)
    logits = spec.vocab_size * 4
    if runtime == "llamacpp":
        tokens = min(LLAMACPP_UBATCH, context_tokens)
        return _activations(spec, tokens) + 2 * tokens * _pad(context_tokens) + logits
    tokens = min(prompt_tokens, context_tokens)
    widths = {"q": spec.n_heads * spec.head_dim, "kv": spec.n_kv_heads * spec.head_dim, "ffn": spec.intermediate_size}
    return round(4 * tokens * sum(ONNX_FLOATS[k] * n for k, n in widths.items())) + logits


def committed_compute_bytes(spec: ModelSpec, runtime: str, context_tokens: int, prompt_tokens: int) -> int:
    """Bytes reserved for the same, written to or not: llama.cpp reserves logits of every token of a micro-batch."""
    if runtime != "llamacpp":
        return compute_bytes(spec, runtime, "cpu", context_tokens, prompt_tokens)
    tokens = min(LLAMACPP_UBATCH, context_tokens)
    every_logit = 4 * tokens * (spec.vocab_size + 2 * spec.hidden_size)
    return max(_activations(spec, tokens) + 2 * tokens * _pad(context_tokens), every_logit) + spec.vocab_size * 4


def _activations(spec: ModelSpec, tokens: int) -> int:
    d, ff, q, kv = (
        spec.hidden_size, spec.intermediate_size, spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    )  # fmt: skip
    return 4 * max(3 * ff + q + 3 * d, 2 * q + 2 * kv + 2 * d) * tokens


def vocabulary_bytes(spec: ModelSpec, runtime: str) -> int:
    """Bytes of the tokens' texts, ids and merges in a runtime's own tables."""
    if runtime != "llamacpp":
        return ONNX_VOCAB_BYTES * spec.vocab_size
    stored = (spec.tokenizer_bytes or {}).get("gguf")
    kind = "scores" if stored and stored < MERGES_FROM * spec.vocab_size else "merges"
    return LLAMACPP_VOCAB_BYTES[kind] * spec.vocab_size


def runtime_bytes(spec: ModelSpec, runtime: str, n_blocks: int, measured: int | None = None) -> int:
    """Bytes of the runtime's own structures: session, graph, vocabulary. `measured`: a profile's
    figure for all but the blocks and the vocabulary."""
    base, per_block = {
        "llamacpp": (LLAMACPP_BASE_BYTES, LLAMACPP_BLOCK_BYTES),
        "onnxruntime": (ONNX_BASE_BYTES, 0),
    }[runtime]
    base = base if measured is None else measured
    return base + n_blocks * per_block + vocabulary_bytes(spec, runtime)


def weight_bytes(size: Sizes, runtime: str, backend: str) -> int:
    """Resident weights. onnxruntime's CPU kernels pack matrices anew (MatMulNBits: data, scales and a sum per block of
    32, 4 bytes each), read the scales and zero points of the file beside them, and free the rest of it."""
    stored = size.tensor_bytes
    if runtime == "onnxruntime" and backend == "cpu":
        stored = round(
            sum(ONNX_PACKED[m.type] * m.block_bytes + ONNX_HEAD[m.type] * m.head_bytes for m in size.matrices)
        )
    return stored + size.repack_bytes


# Resident bytes per stored byte, of the blocks' matrices and of the output matrix. Of integers by their layout, 1.375 for
# 1.125 bytes a weight and 0.891 for 0.641; of floats measured, where a tied head's table counts as part of it.
ONNX_PACKED = {"fp32": 1.0, "fp16": 3.0, "int8": 1.375 / 1.125, "int4": 0.890625 / 0.640625}
ONNX_HEAD = {**ONNX_PACKED, "fp32": 2.0, "fp16": 2.4}
ONNX_FLOATS = {"q": 6.75, "kv": 6.1, "ffn": 4.35}  # per prompt token and each of a width


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
        self._compute: dict[tuple[int, ...], tuple[int, int]] = {}

    def __call__(
        self, blocks: Blocks, quant: str, context_tokens: int, prompt_tokens: int, kv_type: str | None = None
    ) -> Prediction:
        """Raises UsageError for an unknown quantisation, an unknown mode or a context beyond the model's."""
        spec, runtime = self.spec, self.runtime
        _check_context(spec, context_tokens)
        size, kept = sizes(self.shapes, blocks, runtime, quant, self._isa), self.shapes.listed(blocks).caches
        if quant not in self._rates:
            self._rates[quant] = find(self.device, runtime, self.backend, self.mode, quant)
        rates = self._rates[quant]
        weights = weight_bytes(size, runtime, self.backend)
        element = _kv_types.ELEMENT_BYTES[kv_type or _kv_types.native(runtime, quant)]
        kv = _cache_bytes(spec, kept, runtime, element, context_tokens)
        compute, committed = self._buffers(context_tokens, prompt_tokens)
        base = runtime_bytes(spec, runtime, len(blocks), rates.runtime_memory if rates else None)
        times: Times | tuple[None, None, None] = NOT_KNOWN
        if rates:
            times = _decode(len(blocks), size, rates, _attention(spec, kept, DECODE_DEPTH_TOKENS, element))
        slow, middle, fast = (None if t is None else 1 / t for t in times)
        ttft = self._ttft(blocks, size, prompt_tokens, rates) if rates else NOT_KNOWN
        return Prediction(
            file_bytes=size.file_bytes,
            weights_bytes=weights,
            kv_bytes=kv,
            compute_bytes=compute,
            runtime_bytes=base,
            memory_bytes=weights + kv + compute + base,
            committed_bytes=weights + kv + committed + base,
            streamed_bytes=size.streamed_bytes,
            decode_tok_per_s=middle,
            decode_low_tok_per_s=slow,
            decode_high_tok_per_s=fast,
            decode_depth_tokens=DECODE_DEPTH_TOKENS,
            ttft_s=ttft[1],
            ttft_low_s=ttft[2],
            ttft_high_s=ttft[0],
            basis=rates.basis if rates else f"no rate known for {runtime} on {self.backend}{self._in_mode()}",
        )

    def _buffers(self, *tokens: int) -> tuple[int, int]:
        """Resident and committed compute buffers for (context, prompt) tokens, whatever the blocks."""
        if tokens not in self._compute:
            resident = compute_bytes(self.spec, self.runtime, self.backend, *tokens)
            self._compute[tokens] = resident, committed_compute_bytes(self.spec, self.runtime, *tokens)
        return self._compute[tokens]

    def _in_mode(self) -> str:
        return f" in power mode {self.mode}" if self.mode else ""

    def _ttft(self, blocks: Blocks, size: Sizes, prompt_tokens: int, rates: Rates) -> Times | tuple[None, None, None]:
        """Seconds to read the prompt: 2 operations per block parameter and token, the output head once, causal attention.

        One rate for all is what published prefills of ≥ 1 B models reached on this count; smaller models reach less.
        """
        if rates.prefill:
            return prefill_times(self.spec, blocks, size.matrices, self.runtime, rates, prompt_tokens)
        if rates.prefill_flops is None or rates.prefill_ends is None:
            return NOT_KNOWN
        listed = self.shapes.listed(blocks)
        flops = 2 * listed.params * prompt_tokens + _prompt_attention(self.spec, listed.caches.total(), prompt_tokens)
        flops += 2 * self.spec.vocab_size * self.spec.hidden_size
        return flops / rates.prefill_ends[0], flops / rates.prefill_flops, flops / rates.prefill_ends[1]


def attention_flops(spec: ModelSpec, blocks: Blocks, prompt_tokens: int) -> float:
    """Scores and values of a causal prompt: each token with itself and all before it."""
    return _prompt_attention(spec, sum(b.attn is not None for b in blocks), prompt_tokens)


def _prompt_attention(spec: ModelSpec, n_attention: int, prompt_tokens: int) -> float:
    return 4 * spec.n_heads * spec.head_dim * n_attention * prompt_tokens * (prompt_tokens + 1) / 2


def prefill_times(
    spec: ModelSpec, blocks: Blocks, matrices: tuple[Matrices, ...], runtime: str, rates: Rates, prompt_tokens: int
) -> Times:
    """Seconds to read a prompt where rates are known by tensor type, with their 90 % interval.

    Matrices by their operations, and once for each micro-batch by their bytes, which kernels read or unpack before they
    multiply; what a block does to each token beside matrices; attention; the output matrix once.
    """
    batches = -(-prompt_tokens // LLAMACPP_UBATCH) if runtime == "llamacpp" else 1
    flops = attention_flops(spec, blocks, prompt_tokens)

    def parts(k: int) -> tuple[float, ...]:
        once = rates.prefill_weights
        return (
            *(2 * w.block_params * prompt_tokens / rates.prompt_rate(w.type, k) for w in matrices if w.block_params),
            *(batches * w.block_bytes / once[w.type][k] for w in matrices if w.type in once),
            *(w.head_bytes / rates.weight_rate(w.type, k) for w in matrices),
            len(blocks) * prompt_tokens * rates.prefill_overhead_us[k] * 1e-6 if rates.prefill_overhead_us else 0.0,
            flops / rates.prefill_attention[k] if rates.prefill_attention else 0.0,
        )

    return _together(parts(0), parts(1), parts(2), rates.noise)


def decode_times(
    spec: ModelSpec,
    blocks: Blocks,
    size: Sizes,
    quant: str,
    runtime: str,
    rates: Rates,
    depth_tokens: int = DECODE_DEPTH_TOKENS,
    kv_type: str | None = None,
) -> Times:
    """Seconds per token with `depth_tokens` in the cache, with their 90 % interval."""
    kv_type = kv_type or _kv_types.native(runtime, quant)
    cells = cells_waited_for(runtime, rates.backend, depth_tokens, kv_type)
    work = attention_work(spec, blocks, cells, _kv_types.ELEMENT_BYTES[kv_type])
    return _decode(len(blocks), size, rates, work)


def _decode(n_blocks: int, size: Sizes, rates: Rates, attention: tuple[float, float]) -> Times:
    slow, middle, fast = (_parts(n_blocks, size, rates, k, attention) for k in range(3))
    return _together(slow, middle, fast, rates.noise)


def _together(slow: tuple[float, ...], middle: tuple[float, ...], fast: tuple[float, ...], noise: float) -> Times:
    """Seconds of all parts, and both ends of their 90 % interval.

    The terms' errors are independent, so each counts by its share of the time and they add in squares, with the spread
    of one measurement about the formula.
    """
    seconds = sum(middle)

    def apart(ends: tuple[float, ...]) -> float:
        pairs = zip(middle, ends, strict=True)
        return math.hypot(Z * noise, *(m / seconds * math.log(e / m) for m, e in pairs if m > 0 and e > 0))

    return seconds * math.exp(apart(slow)), seconds, seconds * math.exp(-apart(fast))


def _parts(n_blocks: int, size: Sizes, rates: Rates, which: int, attention: tuple[float, float]) -> tuple[float, ...]:
    """Seconds for weights (by type where that is known), the blocks' fixed cost, reading the cache, attention's arithmetic."""
    cache_bytes, flops = attention
    if rates.weights and size.matrices:
        weights = [(w.block_bytes + w.head_bytes) / rates.weight_rate(w.type, which) for w in size.matrices]
    else:
        weights = [size.streamed_bytes / (rates.efficiency[which] * rates.bandwidth)]
    return (
        *weights,
        n_blocks * rates.overhead_us[which] * 1e-6,
        cache_bytes / rates.cache_bytes_per_s[which],
        flops / rates.attention_flops[which],
    )


def cells_waited_for(runtime: str, backend: str, depth_tokens: int, kv_type: str = "f16") -> int:
    """Tokens of a cache that holds `depth_tokens` which attention takes the time of, for one token.

    From 512 cells on, llama.cpp's CPU backend gives each thread an equal run of a float cache's cells, and of those there
    are as many as the next multiple of 256 (ggml_compute_forward_flash_attn_ext_f16 in ggml/src/ggml-cpu/ops.cpp,
    llama_kv_cache::get_n_kv; llama-cpp-python 0.3.36). Cells that hold nothing are skipped, but they are all in the last
    run, and every thread waits for the first, whose run is full: the time is that of a full cache with two threads or
    more. On fewer cells threads share the heads.
    """
    cells = _pad(depth_tokens)
    in_runs = (runtime, backend) == ("llamacpp", "cpu") and kv_type in ("f16", "f32") and cells >= SPLIT_CELLS
    return cells if in_runs else depth_tokens


def attention_work(spec: ModelSpec, blocks: Blocks, depth_tokens: int, element_bytes: float) -> tuple[float, float]:
    """(bytes of cache read, operations) for one token with `depth_tokens` before it; a window sees no more than itself."""
    return _attention(spec, caches(spec, blocks), depth_tokens, element_bytes)


def _attention(spec: ModelSpec, kept: Caches, depth_tokens: int, element_bytes: float) -> tuple[float, float]:
    elements = flops = 0
    for (each, window), n in kept.items():
        seen = n * min(depth_tokens, window or depth_tokens)
        elements += each * seen
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
