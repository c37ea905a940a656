"""What quantising alone is expected to cost: a prior, until a model's own quantisations are evaluated."""

from __future__ import annotations

import functools

_LLAMA = "Llama 3 8B, wikitext-2, no importance matrix: llama.cpp tools/perplexity/README.md"
_MATRIX = "Llama 3 8B, wikitext-2, with an importance matrix: llama.cpp tools/perplexity/README.md"
_ONNX = "as llama.cpp {0}"
_EXACT = "the reference itself"

# Those without a published figure (TQ1_0, TQ2_0, Q1_0, Q2_0: made for models trained so) are left out.
# (runtime, quant) -> (KL(float ‖ quantised) in nats per token for an 8 B model, source)
QUANT_KL_PRIOR: dict[tuple[str, str], tuple[float, str]] = {
    ("llamacpp", "F32"): (0.0, _EXACT),
    ("llamacpp", "BF16"): (0.0001, "SmolLM2-135M, 768 tokens: 0.00016"),
    ("llamacpp", "F16"): (0.0001, "SmolLM2-135M, 768 tokens: 0.00001"),
    ("llamacpp", "Q8_0"): (0.00136, _LLAMA),
    ("llamacpp", "Q6_K"): (0.00545, _LLAMA),
    ("llamacpp", "Q5_K_M"): (0.0108, _LLAMA),
    ("llamacpp", "Q5_K_S"): (0.0166, _LLAMA),
    ("llamacpp", "Q5_1"): (0.018, _LLAMA),
    ("llamacpp", "Q5_0"): (0.0222, _LLAMA),
    ("llamacpp", "Q4_K_M"): (0.0313, _LLAMA),
    ("llamacpp", "Q4_K_S"): (0.0431, _LLAMA),
    ("llamacpp", "IQ4_NL"): (0.0357, _MATRIX),
    ("llamacpp", "IQ4_XS"): (0.0363, _MATRIX),
    ("llamacpp", "Q4_1"): (0.0717, _LLAMA),
    ("llamacpp", "Q4_0"): (0.0719, _LLAMA),
    ("llamacpp", "Q3_K_L"): (0.0872, _LLAMA),
    ("llamacpp", "Q3_K_M"): (0.102, _LLAMA),
    ("llamacpp", "IQ3_M"): (0.103, _MATRIX),
    ("llamacpp", "IQ3_S"): (0.111, _MATRIX),
    ("llamacpp", "IQ3_XS"): (0.139, _MATRIX),
    ("llamacpp", "IQ3_XXS"): (0.184, _MATRIX),
    ("llamacpp", "Q3_K_S"): (0.228, _LLAMA),
    ("llamacpp", "IQ2_M"): (0.326, _MATRIX),
    ("llamacpp", "Q2_K_S"): (0.403, _MATRIX),
    ("llamacpp", "IQ2_S"): (0.439, _MATRIX),
    ("llamacpp", "Q2_K"): (0.445, _LLAMA),
    ("llamacpp", "IQ2_XS"): (0.546, _MATRIX),
    ("llamacpp", "IQ2_XXS"): (0.812, _MATRIX),
    ("llamacpp", "IQ1_M"): (1.39, _MATRIX),
    ("llamacpp", "IQ1_S"): (2.21, _MATRIX),
    ("onnxruntime", "fp32"): (0.0, _EXACT),
    ("onnxruntime", "fp16"): (0.0001, "SmolLM2-135M, 768 tokens: 0.00002"),
    ("onnxruntime", "int8"): (0.00155, _ONNX.format("Q8_0") + ", times 1.14 measured on SmolLM2-135M (768 tokens)"),
    ("onnxruntime", "int4-mixed"): (
        0.0213,
        _ONNX.format("Q4_0") + ", times 0.3 measured on SmolLM2-135M (2048 tokens)",
    ),
    ("onnxruntime", "int4"): (0.0936, _ONNX.format("Q4_0") + ", times 1.3 measured on SmolLM2-135M (2048 tokens)"),
}

# Smaller models lose more. SmolLM2-135M (768 tokens) lost 1.6 (Q3_K_M) to 4.1 (Q4_0) times the figures above, 3 in the
# middle; between 135 M and 8 B parameters a power law joins the two.
_LARGE, _EXPONENT, _MOST = 8.0e9, 0.27, 3.0


@functools.cache
def quant_kl(runtime: str, quant: str, params: int) -> float | None:
    """Expected KL in nats per token of a model with `params` parameters, five decimals; None without a figure."""
    if (runtime, quant) not in QUANT_KL_PRIOR:
        return None
    return round(QUANT_KL_PRIOR[runtime, quant][0] * _small(params), 5)


# KV cache type -> (KL against a float cache, nats per token, for an 8 B model; source)
KV_KL_PRIOR: dict[str, tuple[float, str]] = {
    "f32": (0.0, _EXACT),
    "f16": (0.0, "what every figure above was measured with"),
    "q8_0": (
        0.0008,
        "Llama 3 8B, wikitext-2: https://github.com/ggml-org/llama.cpp/pull/7412, less that run's own f16",
    ),
    "q4_0": (0.0088, "as q8_0, times 11 measured on SmolLM2-135M (wikitext-2, 8 windows of 512, llama-perplexity)"),
}


@functools.cache
def kv_kl(kv_type: str, params: int) -> float | None:
    """Expected KL in nats per token that a typed KV cache adds, as `quant_kl` for weights."""
    if kv_type not in KV_KL_PRIOR:
        return None
    return round(KV_KL_PRIOR[kv_type][0] * _small(params), 5)


def _small(params: int) -> float:
    """How much more a smaller model loses than one of 8 B parameters."""
    return min(_MOST, max(1.0, (_LARGE / params) ** _EXPONENT))


def assumes_matrix(runtime: str, quant: str) -> bool:
    """Whether the figure was published for files made with an importance matrix; without one they lose more."""
    return QUANT_KL_PRIOR.get((runtime, quant), (0.0, ""))[1] == _MATRIX
