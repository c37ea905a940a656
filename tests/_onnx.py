"""What the tests of ONNX folders share: export, sessions in three runtimes, greedy text, KL."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeprune.runtimes import onnxruntime as ort_runtime
from edgeprune.runtimes import transformers as torch_runtime
from exporters import onnx


def exported(folder: Path, out: Path, quant: str = "fp32", **provenance: str) -> Path:
    onnx.export(folder, out, quant, provenance, lambda label, fraction: None)
    return out


def open_onnx(path: Path, n_ctx: int = 256):
    return ort_runtime.open_session(path, n_ctx=n_ctx, n_threads=1)


def open_torch(folder: Path, n_ctx: int = 256):
    return torch_runtime.open_session(folder, n_ctx=n_ctx, n_threads=1)


def prompt(n: int = 100, vocab: int = 256) -> list[int]:
    return np.random.default_rng(5).integers(0, vocab, n).tolist()


def greedy(session, tokens: list[int], n: int) -> list[int]:
    session.reset()
    logits, out = session.prefill(tokens), []
    for _ in range(n):
        out.append(int(np.argmax(logits)))
        logits = session.decode(out[-1])
    return out


def genai_greedy(folder: Path, tokens: list[int], n: int) -> list[int]:
    import onnxruntime_genai as genai

    model = genai.Model(str(folder))
    params = genai.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(tokens) + n, min_length=len(tokens) + n)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array([tokens], np.int32))
    out = []
    while len(out) < n:
        generator.generate_next_token()
        out.append(int(generator.get_next_tokens()[0]))
    return out


def kl(reference: np.ndarray, other: np.ndarray) -> float:
    """Mean KL(reference || other) in nats per token."""

    def log_probs(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

    p, q = log_probs(reference), log_probs(other)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())
