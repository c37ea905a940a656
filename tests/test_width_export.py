"""Thinner models in the runtimes: the same logits as in torch, and smaller files."""

from __future__ import annotations

import json
import math

import pytest
from _onnx import genai_greedy
from _widths import TOKENS, logits
from test_width import thin

from edgeprune import model
from edgeprune.bench import measure
from edgeprune.catalog import load
from edgeprune.errors import InputRejected
from edgeprune.evaluate import evaluate
from edgeprune.export import export
from edgeprune.gguf_file import read_header

CASES = {  # family, method, uniform -> llama.cpp's architecture
    ("llama", "flap", False): "deci", ("llama", "flap", True): "llama", ("llama", "slicegpt", True): "llama",
    ("mistral", "taylor", False): "deci", ("qwen2", "wanda_sp", True): "deci", ("qwen2", "taylor", False): "deci",
    ("qwen3", "taylor", True): "qwen3", ("qwen3", "taylor", False): "openelm", ("granite", "flap", True): "granite",
    ("smollm3", "wanda_sp", True): "smollm3", ("qwen2", "slicegpt", True): "deci",
}  # fmt: skip
MARKED = [
    pytest.param(*c, arch, marks=() if c == ("llama", "flap", False) else pytest.mark.slow) for c, arch in CASES.items()
]


def difference(folder, artifact):
    return abs(logits(artifact) - logits(folder)).max()


@pytest.mark.parametrize("family, method, uniform, arch", MARKED)
def test_logits_agree(family, method, uniform, arch, tiny_folder, tmp_path, one_thread):
    out = tmp_path / "thin"
    thin(tiny_folder(family), method, 0.3, out, uniform=uniform)
    export(out, "gguf", "F32", tmp_path / "m.gguf", verify=False)
    export(out, "onnx", "fp32", tmp_path / "onnx", verify=False)
    assert difference(out, tmp_path / "m.gguf") < 1e-4
    assert difference(out, tmp_path / "onnx") < 1e-4
    header, spec = read_header(tmp_path / "m.gguf"), model.inspect(out)
    assert header.metadata["general.architecture"] == arch
    held = sum(math.prod(t.shape) for t in header.tensors.values())
    assert held <= spec.params  # biases of zeros are left out, nothing stands for what is gone
    assert not [n for n in header.tensors if n.endswith(("attn_q.bias", "ffn_up.bias"))] or family == "qwen2"


@pytest.mark.slow
def test_gemma_agrees_in_onnx_and_has_no_place_for_uneven_widths_in_gguf(tiny_folder, tmp_path):
    """llama.cpp's table for GELU alone moves gemma's logits by 1e-2, so only ONNX can be held to 1e-4 here."""
    thin(tiny_folder("gemma3"), "taylor", 0.3, tmp_path / "thin", uniform=False)
    export(tmp_path / "thin", "onnx", "fp32", tmp_path / "onnx", verify=False)
    assert difference(tmp_path / "thin", tmp_path / "onnx") < 1e-4
    with pytest.raises(
        InputRejected, match=r"gemma3 models whose blocks differ in width.*--uniform.*or export to ONNX"
    ):
        export(tmp_path / "thin", "gguf", "F32", tmp_path / "m.gguf")


@pytest.mark.slow
def test_what_llama_cpp_has_no_place_for(tiny_folder, tmp_path):
    thin(tiny_folder("phi3"), "wanda_sp", 0.3, tmp_path / "phi3")
    with pytest.raises(InputRejected, match="2 heads of 16: heads that make up hidden_size.*export to ONNX"):
        export(tmp_path / "phi3", "gguf", "F32", tmp_path / "m.gguf")
    thin(tiny_folder("smollm3"), "flap", 0.3, tmp_path / "smollm3")
    with pytest.raises(InputRejected, match="o_proj.bias cannot be held by llama.cpp's 'smollm3' arch; export to ONNX"):
        export(tmp_path / "smollm3", "gguf", "F32", tmp_path / "m.gguf")


@pytest.mark.slow
def test_odd_widths_say_which_rounding_int4_needs(tiny_folder, tmp_path):
    thin(tiny_folder("llama"), "taylor", 0.3, tmp_path / "odd", uniform=False)
    with pytest.raises(InputRejected, match="int4 needs widths divisible by 32.*prune with --round 32"):
        export(tmp_path / "odd", "onnx", "int4", tmp_path / "onnx")
    thin(tiny_folder("llama"), "taylor", 0.4, tmp_path / "even", rounding=32)
    export(tmp_path / "even", "onnx", "int4", tmp_path / "onnx")


@pytest.mark.slow
def test_genai_holds_caches_of_different_widths(tiny_folder, tmp_path):
    thin(tiny_folder("llama"), "taylor", 0.3, tmp_path / "thin", uniform=False)
    export(tmp_path / "thin", "onnx", "fp32", tmp_path / "onnx", verify=False)
    session = load("edgeprune.runtimes", "transformers").open_session(tmp_path / "thin", n_ctx=64, n_threads=1)
    try:
        greedy = [int(session.prefill(TOKENS).argmax())]
        while len(greedy) < 8:
            greedy.append(int(session.decode(greedy[-1]).argmax()))
    finally:
        session.close()
    assert genai_greedy(tmp_path / "onnx", TOKENS, 8) == greedy


@pytest.mark.slow
def test_measured_and_evaluated_like_any_other(tiny_folder, tmp_path, one_thread):
    from edgeprune.types import Workload

    thin(tiny_folder("llama"), "flap", 0.3, tmp_path / "thin", uniform=False)
    export(tmp_path / "thin", "gguf", "Q8_0", tmp_path / "m.gguf")
    load = Workload(n_prompt=16, n_gen=4, repetitions=2, n_threads=1)
    (found,) = measure({"m.gguf": tmp_path / "m.gguf"}, load, progress=lambda *_: None)
    assert found.runtime == "llamacpp" and all(found.decode_samples_ns)
    subjects = {p.name: p for p in (tmp_path / "thin", tmp_path / "m.gguf")}
    one, other = evaluate(
        subjects, whole=tiny_folder("llama"), n_windows=2, context_tokens=48, n_threads=1, progress=lambda *_: None
    )
    assert one.kl > 0.01 and abs(one.perplexity - other.perplexity) < 0.02 * one.perplexity
    said = json.loads((tmp_path / "thin" / "edgeprune.json").read_text())
    assert read_header(tmp_path / "m.gguf").metadata["edgeprune.width"] == said["width"] == "flap"
