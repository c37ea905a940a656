"""Exporting as the verb does it: sources, options, what is compared, what is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edgeprune import divergence, export
from edgeprune.catalog import load
from edgeprune.errors import InputRejected, UsageError
from exporters import Options

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "F32.gguf"
    export.export(tiny_folder("llama"), "gguf", "F32", out)
    return out


def test_mean_kl_is_torchs(tiny_folder):
    import torch

    rng = np.random.default_rng(0)
    p, q = (rng.normal(0, 3, (300, 50)).astype(np.float32) for _ in range(2))
    want = torch.nn.functional.kl_div(
        torch.tensor(q).log_softmax(-1), torch.tensor(p).log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert divergence.mean_kl(p, q) == pytest.approx(want.item(), rel=1e-5)
    tokens = torch.zeros(301, dtype=torch.long)
    whole = torch.tensor(np.concatenate([p, p[:1]])).log_softmax(-1)
    found = divergence.compare(whole, torch.tensor(np.concatenate([q, q[:1]])), tokens)
    assert divergence.mean_kl(p, q) == pytest.approx(found.kl / found.tokens, rel=1e-5)
    assert divergence.mean_kl(p, p) == 0 and np.isnan(divergence.mean_kl(p, q * np.nan))


def test_a_gguf_is_quantised_without_torch(whole, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom edgeprune import export\n"
        "a = export.export(Path(sys.argv[1]), 'gguf', 'Q8_0', Path(sys.argv[2]))\n"
        "assert a.n_blocks == 5 and 0 < a.mean_kl < 0.2 and a.max_logit_error > 0, a\n"
        "bad = [m for m in ('torch', 'transformers') if m in sys.modules]\nassert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code, whole, tmp_path / "q.gguf"], check=True)
    assert export.export(whole, "gguf", "F32", tmp_path / "same.gguf").max_logit_error == 0


def test_a_gguf_goes_to_onnx_through_torch(whole, tmp_path):
    artifact = export.export(whole, "onnx", "fp32", tmp_path / "onnx")
    assert artifact.n_blocks == 5 and artifact.max_logit_error < 1e-4


def test_a_result_that_is_not_its_source_is_not_kept(whole, tiny_folder, tmp_path, monkeypatch):
    module = load("exporters", "gguf")
    honest, other = module.export, tiny_folder("llama", seed=7)
    monkeypatch.setattr(module, "export", lambda source, *args: honest(other, *args))
    with pytest.raises(InputRejected, match=r"does not agree with F32\.gguf"):
        export.export(whole, "gguf", "F16", tmp_path / "out.gguf")
    with pytest.raises(InputRejected, match="does not agree"):
        export.export(whole, "gguf", "F16", tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_a_quantised_source_is_mentioned(whole, tmp_path):
    export.export(whole, "gguf", "Q8_0", tmp_path / "q8.gguf")
    assert export.notes(whole, "gguf", "Q4_0") == []
    (line,) = export.notes(tmp_path / "q8.gguf", "gguf", "Q4_0")
    assert "quantised already (Q8_0)" in line


def test_options_reach_the_exporter(tiny_folder, whole, tmp_path):
    from edgeprune.gguf_file import read_header

    named = tmp_path / "named.gguf"
    export.export(tiny_folder("llama"), "gguf", "F16", named, options=Options(tokenizer_pre="gpt-2"))
    assert read_header(named).metadata["tokenizer.ggml.pre"] == "gpt-2"
    with pytest.raises(InputRejected):
        export.export(whole, "gguf", "Q4_0", tmp_path / "q4.gguf", options=Options(imatrix=whole))
    with pytest.raises(UsageError, match="imatrix"):
        export.export(tiny_folder("llama"), "onnx", "int8", tmp_path / "onnx", options=Options(imatrix=whole))
    assert [p.name for p in tmp_path.iterdir()] == ["named.gguf"]


@pytest.mark.parametrize(("asked", "meant"), [("q8_0", "Q8_0"), ("Q4_K", "Q4_K_M"), ("F32", "F32")])
def test_names_of_quantisations(asked, meant):
    assert export.quant_name("gguf", asked) == meant
    with pytest.raises(UsageError, match="Did you mean"):
        export.quant_name("gguf", meant + "X")


def test_nominal_bits():
    found = {q: export.bits(q) for q in ("F32", "fp16", "BF16", "Q8_0", "int4", "IQ4_XS", "Q2_K", "TQ1_0")}
    assert found == {"F32": 32, "fp16": 16, "BF16": 16, "Q8_0": 8, "int4": 4, "IQ4_XS": 4, "Q2_K": 2, "TQ1_0": 1}
