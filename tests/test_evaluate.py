"""Evaluation against plain torch, and the three runtimes against each other on the real model."""

from __future__ import annotations

import math

import pytest
from test_prune import SEAM, cut

from edgeprune import evaluate as evaluating
from edgeprune import export, model, torch_model
from edgeprune.blocks import whole
from edgeprune.catalog import load
from edgeprune.errors import InputRejected
from edgeprune.types import Block

pytestmark = pytest.mark.usefixtures("one_thread")


def quiet(*_args):
    pass


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog and then the other one sleeps " * 20)
    return path


def test_perplexity_and_kl_are_torchs(tiny_folder, text, tmp_path):
    import torch

    folder = tiny_folder("qwen3")
    pruned = cut(folder, SEAM, tmp_path / "pruned")
    (q,) = evaluating.evaluate(
        {"pruned": pruned}, whole=folder, files=[text], n_windows=3, context_tokens=64, progress=quiet
    )
    tok = torch_model.tokenizer(folder)
    ids = tok.encode(text.read_text(), add_special_tokens=False)
    a, b = torch_model.load(folder), torch_model.load(pruned)
    losses, kls = [], []
    for k in range(3):
        w = torch.tensor([ids[64 * k : 64 * (k + 1)]])
        with torch.inference_mode():
            losses.append(b(w, labels=w).loss.item())
            p, r = a(w).logits[0, :-1].log_softmax(-1), b(w).logits[0, :-1].log_softmax(-1)
        kls.append(torch.nn.functional.kl_div(r, p, log_target=True, reduction="batchmean").item())
    assert q.perplexity == pytest.approx(math.exp(sum(losses) / 3), rel=1e-4)
    assert q.kl == pytest.approx(sum(kls) / 3, rel=1e-4)
    assert q.kl_stderr == pytest.approx(torch.tensor(kls).std().item() / math.sqrt(3), rel=1e-3)
    assert q.windows == 3 and q.text.tokens == 192 and q.text.stride_tokens == 64


def test_the_whole_model_has_no_damage(tiny_folder, text):
    folder = tiny_folder("llama")
    (q,) = evaluating.evaluate(
        {"it": folder}, whole=folder, files=[text], n_windows=2, context_tokens=32, progress=quiet
    )
    assert q.kl == 0 and q.top1_agreement == 1 and q.perplexity == q.perplexity_whole


def test_models_of_different_vocabularies_are_refused(tiny_folder, text):
    with pytest.raises(InputRejected, match="tokens"):
        evaluating.evaluate(
            {"it": tiny_folder("llama", vocab_size=384)},
            whole=tiny_folder("llama"),
            files=[text],
            context_tokens=32,
            progress=quiet,
        )


@pytest.mark.slow
def test_pruned_smollm2_is_the_same_model_in_every_runtime(smollm2_folder, tmp_path):
    """Torch, GGUF F32 (F32 cache, flash attention off) and ONNX fp32: logits within 1e-4, 64 greedy tokens equal."""
    blocks = (*whole(30)[:12], Block(attn=12, ffn=15), *whole(30)[16:])
    pruned = cut(smollm2_folder, blocks, tmp_path / "pruned")
    paths = {"transformers": pruned}
    for fmt, quant, out in (("gguf", "F32", "m.gguf"), ("onnx", "fp32", "onnx")):
        artifact = export.export(pruned, fmt, quant, tmp_path / out)
        assert artifact.n_blocks == 27 and artifact.max_logit_error < 1e-3
        paths[export.exporter(fmt).RUNTIME] = tmp_path / out
    prompt, logits, continuations = None, {}, {}
    for runtime, path in paths.items():
        session = load("edgeprune.runtimes", runtime).open_session(path, n_ctx=256, n_threads=2, precise=True)
        prompt = prompt or session.tokenize("The capital of France is Paris. The three primary colours are")
        assert session.tokenize("The capital of France is Paris. The three primary colours are") == prompt
        logits[runtime] = session.logits(prompt).copy()
        session.reset()
        tokens, last = [], session.prefill(prompt)
        for _ in range(64):
            tokens.append(int(last.argmax()))
            last = session.decode(tokens[-1])
        continuations[runtime] = tokens
        session.close()
    for runtime in ("llamacpp", "onnxruntime"):
        assert abs(logits[runtime] - logits["transformers"]).max() < 1e-4, runtime
        assert continuations[runtime] == continuations["transformers"]


@pytest.mark.slow
def test_a_gguf_and_the_folder_made_from_it_are_the_same_model(smollm2_gguf, smollm2_folder):
    found = evaluating.evaluate(
        {"gguf": smollm2_gguf}, whole=smollm2_folder, n_windows=2, context_tokens=256, progress=quiet
    )
    assert found[0].kl < 0.01  # what llama.cpp's 8-bit activations cost
    assert model.inspect(smollm2_gguf).params == model.inspect(smollm2_folder).params == 134_515_008


def test_an_export_that_disagrees_with_torch_is_not_kept(tiny_folder, tmp_path, monkeypatch):
    """A converter that swaps two layers' tensors writes a file that loads; comparing logits must catch it."""
    folder = tiny_folder("llama")
    module = load("exporters", "onnx")
    honest = module.export
    other = tiny_folder("llama", seed=7)
    monkeypatch.setattr(module, "export", lambda f, *args: honest(other, *args))
    with pytest.raises(InputRejected, match="does not agree with torch"):
        export.export(folder, "onnx", "fp32", tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []
