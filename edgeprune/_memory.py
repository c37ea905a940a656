"""Bytes that a model adds to a process, as edgeprune.bench measures them: formulas of both runtimes' allocations.

Resident weights, KV cache of the whole context, compute buffers, and the runtime's own structures.
"""

from __future__ import annotations

from edgeprune import _kv_types
from edgeprune._sizes import Caches, Sizes, caches
from edgeprune.types import Blocks, ModelSpec

LLAMACPP_CELLS = 256  # n_ctx is rounded up to this
LLAMACPP_UBATCH = 512
# Families whose windows llama.cpp does not know or has switched off (src/models/*.cpp: swa_type): a cache of full length.
FULL_CACHE = frozenset({"mistral", "phi3", "qwen2", "qwen3", "smollm3"})
MIB = 1 << 20

# llama.cpp: process growth beside weights, cache and compute buffers, of llama-cpp-python 0.3.36 on generated models of
# 1k to 131k tokens and 2 to 32 blocks, each beside its load without allocation. A vocabulary with merges (byte-level
# BPE) takes 280 bytes a token, one with scores (SentencePiece) 160: the latter is gemma-3-270m's 45 MiB. In them are hash
# tables, of tokens and of merges, whose slots go up in steps.
LLAMACPP_BASE_BYTES = 6 * MIB
LLAMACPP_BLOCK_BYTES = 75_000
LLAMACPP_VOCAB_BYTES = {"merges": 260, "scores": 150}  # without those slots
LLAMACPP_TABLES = {"merges": 2, "scores": 1}
SLOT_BYTES = 8
# Slots of a std::unordered_map that was filled one by one (libstdc++'s next prime of twice as many).
SLOTS = (1109, 2357, 5087, 10273, 20753, 42043, 85229, 172933, 351061, 712697)
# A prompt of more than one micro-batch: a second graph, with other outputs (0.67 to 0.89 MB, 2 to 16 blocks).
LLAMACPP_SECOND_BATCH_BYTES = 700_000
# What its kernels for K types keep for each thread (0.45, 0.92 and 1.80 MB with 1, 2 and 4, whatever the widths), for two.
LLAMACPP_K_BYTES = 2 * 450_000
# Bytes that an activation takes while it is multiplied by a type: blocks of 32 or 256 values with a scale (ggml's
# vec_dot_type); K types' by default. Float32 needs no conversion.
LLAMACPP_CONVERTED = {
    "F32": 0.0, "F16": 2.0, "BF16": 2.0, "Q8_0": 34 / 32, "Q5_0": 34 / 32, "Q4_0": 34 / 32, "IQ4_NL": 34 / 32,
    "Q5_1": 36 / 32, "Q4_1": 36 / 32,
}  # fmt: skip
LLAMACPP_CONVERTED_K = 292 / 256
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
    return cache_bytes(spec, caches(spec, blocks), runtime, element, context_tokens)


def cache_bytes(spec: ModelSpec, kept: Caches, runtime: str, element_bytes: float, context_tokens: int) -> int:
    windowed, total = runtime == "llamacpp" and spec.family not in FULL_CACHE, 0
    for (elements, window), n in kept.items():
        cells = padded(context_tokens) if runtime == "llamacpp" else context_tokens
        if windowed and window is not None:
            cells = min(cells, padded(window + min(LLAMACPP_UBATCH, context_tokens)))
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

    llama.cpp, n_ubatch 512: 4·(3·ff + q + 2·d) per token and a float16 mask of the tokens so far × micro-batch, as its
    page map shows; its allocator reserves more (`reserved_compute_bytes`). A GPU holds what is committed.

    onnxruntime: its planner keeps a buffer for each output of a block, for which the next block's are waiting, and its
    arena hardly fills gaps: ONNX_FLOATS per prompt token; attention is in tiles, without a matrix of scores. Fitted to
    what eleven models of eight shapes grew by at 64, 256 and 700 tokens.
    """
    if runtime == "llamacpp" and backend != "cpu":
        return committed_compute_bytes(spec, runtime, context_tokens, prompt_tokens)
    logits, tokens = spec.vocab_size * 4, min(prompt_tokens, context_tokens)
    if runtime == "llamacpp":
        batch = min(LLAMACPP_UBATCH, tokens)
        written = _activations(spec, batch) - 4 * batch * spec.hidden_size  # embeddings given in place of tokens
        return written + 2 * _mask_cells(tokens) + logits
    widths = {"q": spec.n_heads * spec.head_dim, "kv": spec.n_kv_heads * spec.head_dim, "ffn": spec.intermediate_size}
    return round(4 * tokens * sum(ONNX_FLOATS[k] * n for k, n in widths.items())) + logits


def reserved_compute_bytes(spec: ModelSpec, context_tokens: int) -> int:
    """What llama.cpp's allocator lays out for one output, with room for embeddings in place of tokens and for a mask over
    the whole context: read off it for SmolLM2 (14.01 MiB at 512 tokens of context, 21.51 at 8192) and random shapes."""
    tokens = min(LLAMACPP_UBATCH, context_tokens)
    return _activations(spec, tokens) + 2 * tokens * padded(context_tokens) + spec.vocab_size * 4


def _mask_cells(prompt_tokens: int) -> int:
    """Of the largest mask written for a prompt: a micro-batch's tokens × all tokens up to its end, padded."""
    full, rest = divmod(prompt_tokens, LLAMACPP_UBATCH)
    return max(LLAMACPP_UBATCH * full * LLAMACPP_UBATCH, rest * padded(prompt_tokens))


def committed_compute_bytes(spec: ModelSpec, runtime: str, context_tokens: int, prompt_tokens: int) -> int:
    """Bytes reserved for the same, written to or not: llama.cpp reserves logits of every token of a micro-batch."""
    if runtime != "llamacpp":
        return compute_bytes(spec, runtime, "cpu", context_tokens, prompt_tokens)
    tokens = min(LLAMACPP_UBATCH, context_tokens)
    every_logit = 4 * tokens * (spec.vocab_size + 2 * spec.hidden_size)
    return max(reserved_compute_bytes(spec, context_tokens), every_logit + spec.vocab_size * 4)


def _activations(spec: ModelSpec, tokens: int) -> int:
    d, ff, q, kv = (
        spec.hidden_size, spec.intermediate_size, spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    )  # fmt: skip
    return 4 * max(3 * ff + q + 3 * d, 2 * q + 2 * kv + 2 * d) * tokens


def running_bytes(spec: ModelSpec, size: Sizes, runtime: str, backend: str, prompt_tokens: int) -> int:
    """Bytes that llama.cpp's CPU backend takes beside its graph: the widest activations of a micro-batch as the matrices'
    types need them, what kernels keep for a thread, and a second graph where the prompt takes more than one micro-batch.
    """
    if (runtime, backend) != ("llamacpp", "cpu"):
        return 0
    types = {m.type for m in size.matrices if m.block_bytes}
    converted = max((LLAMACPP_CONVERTED.get(t, LLAMACPP_CONVERTED_K) for t in types), default=0.0)
    widest = max(spec.intermediate_size, spec.n_heads * spec.head_dim, spec.hidden_size)
    work = converted * widest * min(LLAMACPP_UBATCH, prompt_tokens)
    scratch = LLAMACPP_K_BYTES if any(t not in LLAMACPP_CONVERTED for t in types) else 0
    return round(work) + scratch + (LLAMACPP_SECOND_BATCH_BYTES if prompt_tokens > LLAMACPP_UBATCH else 0)


def vocabulary_bytes(spec: ModelSpec, runtime: str) -> int:
    """Bytes of the tokens' texts, ids and merges in a runtime's own tables."""
    if runtime != "llamacpp":
        return ONNX_VOCAB_BYTES * spec.vocab_size
    stored = (spec.tokenizer_bytes or {}).get("gguf")
    kind = "scores" if stored and stored < MERGES_FROM * spec.vocab_size else "merges"
    slots = next((n for n in SLOTS if n >= spec.vocab_size), spec.vocab_size)
    return LLAMACPP_VOCAB_BYTES[kind] * spec.vocab_size + SLOT_BYTES * LLAMACPP_TABLES[kind] * slots


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


def padded(tokens: int) -> int:
    """Cells that llama.cpp's cache has, or looks at, for so many tokens."""
    return -(-tokens // LLAMACPP_CELLS) * LLAMACPP_CELLS
