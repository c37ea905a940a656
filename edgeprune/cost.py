"""What a block list costs on a device: file, memory, decode speed, time to first token. Formulas only, no torch.

Decode of one token at batch 1, with `depth` tokens in the cache:

    t = streamed_bytes / (efficiency · bandwidth) + n_blocks · overhead + cache_bytes / cache_rate + operations / rate

the last two for attention over `depth`: devices differ in whether reading the cache or the arithmetic binds.

Removing blocks saves in all three terms, quantising only in the first. Terms and their intervals come from
edgeprune._rates, sizes from edgeprune._sizes, memory from edgeprune._memory.
"""

from __future__ import annotations

import math

from edgeprune import _kv_types
from edgeprune._memory import (
    LLAMACPP_CELLS,
    LLAMACPP_UBATCH,
    MIB,
    cache_bytes,
    committed_compute_bytes,
    compute_bytes,
    kv_bytes,
    padded,
    running_bytes,
    runtime_bytes,
    weight_bytes,
)
from edgeprune._prior import Z
from edgeprune._rates import Rates, best_backend, find
from edgeprune._sizes import Caches, Matrices, Shapes, Sizes, caches, quants, sizes
from edgeprune.errors import UsageError
from edgeprune.types import Blocks, DeviceProfile, ModelSpec, Prediction

__all__ = [
    "LLAMACPP_CELLS", "LLAMACPP_UBATCH", "MIB", "Predictor", "best_backend", "compute_bytes", "kv_bytes", "predict", "quants",
    "running_bytes", "runtime_bytes", "weight_bytes",
]  # fmt: skip

DECODE_DEPTH_TOKENS = 64  # the mean over llama-bench's tg128; no thread waits for another's cells there
TILE = 64  # queries, and keys, that its attention multiplies at once
ACTIVATION_BYTES = 4
SPLIT_CELLS = 512  # from so many on, its threads divide the cache for one token

Times = tuple[float, float, float]  # seconds: slow end of the 90 % interval, middle, fast end
NOT_KNOWN = (None, None, None)


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
        self,
        blocks: Blocks,
        quant: str,
        context_tokens: int,
        prompt_tokens: int,
        kv_type: str | None = None,
        timed: bool = True,
    ) -> Prediction:
        """`timed` False: without the speeds, for a search that does not ask for them.

        Raises UsageError for an unknown quantisation, an unknown mode or a context beyond the model's.
        """
        spec, runtime = self.spec, self.runtime
        _check_context(spec, context_tokens)
        size, kept = sizes(self.shapes, blocks, runtime, quant, self._isa), self.shapes.listed(blocks).caches
        if quant not in self._rates:
            self._rates[quant] = find(self.device, runtime, self.backend, self.mode, quant)
        rates = self._rates[quant]
        weights = weight_bytes(size, runtime, self.backend)
        element = _kv_types.ELEMENT_BYTES[kv_type or _kv_types.native(runtime, quant)]
        kv = cache_bytes(spec, kept, runtime, element, context_tokens)
        compute, committed = self._buffers(context_tokens, prompt_tokens)
        base = runtime_bytes(spec, runtime, len(blocks), rates.runtime_memory if rates else None)
        base += running_bytes(spec, size, runtime, self.backend, min(prompt_tokens, context_tokens))
        slow = middle = fast = None
        ttft: Times | tuple[None, None, None] = NOT_KNOWN
        if rates and timed:
            times = _decode(len(blocks), size, rates, _attention(spec, kept, DECODE_DEPTH_TOKENS, element))
            slow, middle, fast = (1 / t for t in times)
            ttft = self._ttft(blocks, size, prompt_tokens, rates)
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
        heads = 4 * self.spec.n_heads * self.spec.head_dim * listed.caches.total()
        flops = 2 * listed.params * prompt_tokens + heads * prompt_tokens * (prompt_tokens + 1) / 2
        flops += 2 * self.spec.vocab_size * self.spec.hidden_size
        return flops / rates.prefill_ends[0], flops / rates.prefill_flops, flops / rates.prefill_ends[1]


def prompt_pairs(runtime: str, backend: str, prompt_tokens: int) -> tuple[int, int]:
    """Pairs of a query and a key of a causal prompt: (taken many at once, taken query by query as in decode).

    llama.cpp's CPU backend multiplies tiles of 64 queries × 64 keys, in full where the mask leaves a part of one, and takes
    fewer queries than that one by one (ggml_compute_forward_flash_attn_ext_f16 in ggml/src/ggml-cpu/ops.cpp, of
    llama-cpp-python 0.3.36). Elsewhere: each token with itself and all before it.
    """
    if (runtime, backend) != ("llamacpp", "cpu"):
        return prompt_tokens * (prompt_tokens + 1) // 2, 0
    tiled = single = 0
    for start in range(0, prompt_tokens, LLAMACPP_UBATCH):
        end = min(start + LLAMACPP_UBATCH, prompt_tokens)
        if end - start < TILE:
            single += sum(range(start + 1, end + 1))
        else:
            lasts = (min(query + TILE, end) for query in range(start, end, TILE))
            tiled += sum(TILE * TILE * -(-last // TILE) for last in lasts)
    return tiled, single


def prefill_times(
    spec: ModelSpec, blocks: Blocks, matrices: tuple[Matrices, ...], runtime: str, rates: Rates, prompt_tokens: int
) -> Times:
    """Seconds to read a prompt where rates are known by tensor type, with their 90 % interval.

    Matrices by their operations, and once for each micro-batch by their bytes, which kernels read or unpack before they
    multiply; activations into and out of them, which kernels convert, sum up and write; attention; the output matrix once.
    """
    batches = -(-prompt_tokens // LLAMACPP_UBATCH) if runtime == "llamacpp" else 1
    tiled, single = prompt_pairs(runtime, rates.backend, prompt_tokens)
    cache, flops = attention_work(spec, blocks, 1, _kv_types.ELEMENT_BYTES["f16"])  # of a pair in every head
    values = sum(w.block_values for w in matrices)

    def parts(k: int) -> tuple[float, ...]:
        once, activations, attention = rates.prefill_weights, rates.prefill_activations, rates.prefill_attention
        return (
            *(2 * w.block_params * prompt_tokens / rates.prompt_rate(w.type, k) for w in matrices if w.block_params),
            *(batches * w.block_bytes / once[w.type][k] for w in matrices if w.type in once),
            *(w.head_bytes / rates.weight_rate(w.type, k) for w in matrices),
            ACTIVATION_BYTES * values * prompt_tokens / activations[k] if activations else 0.0,
            tiled * flops / attention[k] if attention else 0.0,
            single * (cache / rates.cache_bytes_per_s[k] + flops / rates.attention_flops[k]),
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
    cells = padded(depth_tokens)
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
