"""What quantising alone is expected to cost: a prior, until a model's own quantisations are evaluated."""

from __future__ import annotations

_LLAMA = "Llama 3 8B, wikitext-2, no importance matrix: llama.cpp tools/perplexity/README.md"
_MATRIX = "Llama 3 8B, wikitext-2, with an importance matrix: llama.cpp tools/perplexity/README.md"
_ONNX = "as llama.cpp {0}"
_EXACT = "the reference itself"

# (runtime, quant) -> (KL(float ‖ quantised) in nats per token for an 8 B model, source)
QUANT_KL_PRIOR: dict[tuple[str, str], tuple[float, str]] = {
    ("llamacpp", "F32"): (0.0, _EXACT),
    ("llamacpp", "BF16"): (0.0001, "SmolLM2-135M, 768 tokens: 0.00016"),
    ("llamacpp", "F16"): (0.0001, "SmolLM2-135M, 768 tokens: 0.00001"),
    ("llamacpp", "Q8_0"): (0.00136, _LLAMA),
    ("llamacpp", "Q6_K"): (0.00545, _LLAMA),
    ("llamacpp", "Q5_K_M"): (0.0108, _LLAMA),
    ("llamacpp", "Q5_K_S"): (0.0166, _LLAMA),
    ("llamacpp", "Q4_K_M"): (0.0313, _LLAMA),
    ("llamacpp", "Q4_K_S"): (0.0431, _LLAMA),
    ("llamacpp", "IQ4_NL"): (0.0357, _MATRIX),
    ("llamacpp", "IQ4_XS"): (0.0363, _MATRIX),
    ("llamacpp", "Q4_1"): (0.0717, _LLAMA),
    ("llamacpp", "Q4_0"): (0.0719, _LLAMA),
    ("llamacpp", "Q3_K_M"): (0.102, _LLAMA),
    ("llamacpp", "Q2_K"): (0.445, _LLAMA),
    ("onnxruntime", "fp32"): (0.0, _EXACT),
    ("onnxruntime", "fp16"): (0.0001, "SmolLM2-135M, 768 tokens: 0.00002"),
    ("onnxruntime", "int8"): (0.00155, _ONNX.format("Q8_0") + ", times 1.14 measured on SmolLM2-135M (768 tokens)"),
    ("onnxruntime", "int4"): (0.0683, _ONNX.format("Q4_0") + ", times 0.95 measured on SmolLM2-135M (768 tokens)"),
}

# Smaller models lose more. SmolLM2-135M (768 tokens) lost 1.6 (Q3_K_M) to 4.1 (Q4_0) times the figures above, 3 in the
# middle; between 135 M and 8 B parameters a power law joins the two.
_LARGE, _EXPONENT, _MOST = 8.0e9, 0.27, 3.0


def quant_kl(runtime: str, quant: str, params: int) -> float:
    """Expected KL in nats per token of a model with `params` parameters, four digits."""
    factor = min(_MOST, max(1.0, (_LARGE / params) ** _EXPONENT))
    return round(QUANT_KL_PRIOR[runtime, quant][0] * factor, 5)
