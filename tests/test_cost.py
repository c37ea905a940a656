"""Memory against llama.cpp's allocator, speed against published rates."""

from __future__ import annotations

import re

import numpy as np
import pytest
from _llama import llama, write_gguf
from _shapes import make_spec

from edgeprune import devices
from edgeprune._memory import reserved_compute_bytes
from edgeprune._rates import find
from edgeprune._sizes import Shapes, Sizes
from edgeprune.blocks import whole
from edgeprune.cost import Predictor, compute_bytes, decode_times, kv_bytes, predict
from edgeprune.errors import UsageError
from edgeprune.types import Block

__all__ = ["llama"]  # a fixture


def test_tied_embedding_is_streamed_and_untied_is_not():
    tied, untied = make_spec(tied=True), make_spec(tied=False)
    table = 49152 * 576
    for quant, per in (("F16", 2), ("Q8_0", 34 / 32)):
        a, b = (Shapes(s).gguf(whole(30), quant) for s in (tied, untied))
        assert a.streamed_bytes == a.tensor_bytes
        assert b.tensor_bytes - b.streamed_bytes == table * per
        assert b.streamed_bytes == a.streamed_bytes
    onnx = Shapes(untied).onnx(whole(30), "int8")
    assert onnx.tensor_bytes - onnx.streamed_bytes > table


@pytest.mark.parametrize(("quant", "runtime"), [("Q4_K_M", "llamacpp"), ("int4", "onnxruntime")])
def test_removing_blocks_always_saves(quant, runtime):
    spec, device = make_spec(), devices.load("rpi5-8gb")
    seen = [predict(spec, whole(30)[:n], device, runtime, "cpu", quant, 2048, 512) for n in range(30, 0, -1)]
    for a, b in zip(seen, seen[1:], strict=False):
        assert b.file_bytes < a.file_bytes and b.memory_bytes < a.memory_bytes and b.kv_bytes < a.kv_bytes
        assert b.decode_tok_per_s > a.decode_tok_per_s
        assert b.compute_bytes == a.compute_bytes  # buffers are reused from block to block


def test_kv_cache():
    """SmolLM2: 30 blocks × 3 heads × 64 × 2 (K, V). llama.cpp printed 22.50 MiB at 1024 and 90.00 at 4096 tokens."""
    spec = make_spec()
    assert kv_bytes(spec, whole(30), "llamacpp", "Q8_0", 1024) == 22.5 * 2**20
    assert kv_bytes(spec, whole(30), "llamacpp", "Q8_0", 4096) == 90 * 2**20
    assert kv_bytes(spec, whole(30), "llamacpp", "Q8_0", 1000) == 22.5 * 2**20, "rounded up to 256 cells"
    assert kv_bytes(spec, whole(30), "onnxruntime", "int8", 1000) == 30 * 384 * 1000 * 4
    assert kv_bytes(spec, whole(30), "onnxruntime", "fp16", 1000) == 30 * 384 * 1000 * 2
    halves = (Block(attn=0, ffn=0), Block(attn=None, ffn=1))
    assert kv_bytes(spec, halves, "llamacpp", "Q8_0", 256) == 384 * 256 * 2
    windowed = make_spec(window=1024)
    assert kv_bytes(windowed, whole(30), "llamacpp", "Q8_0", 4096) == 30 * 384 * 2 * (1024 + 512)
    assert kv_bytes(windowed, whole(30), "llamacpp", "Q8_0", 512) == 30 * 384 * 2 * 512


@pytest.mark.parametrize("context", [512, 4096])
def test_memory_against_llama_cpp_allocator(llama, tmp_path, context):
    """Cache and compute buffer as llama.cpp reserves them without allocating (no_alloc), for a wide little model."""
    lib, lines = llama
    spec = make_spec(n_blocks=4, d=512, ff=1536, heads=8, kv=2, vocab=64, context=8192)
    path = tmp_path / "m.gguf"
    write_gguf(path, spec)
    model = lib.llama_model_default_params()
    model.no_alloc, model.load_mode = True, 0
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_outputs_max = context, 2048, 512, 1
    lines.clear()
    loaded = lib.llama_model_load_from_file(str(path).encode(), model)
    session = lib.llama_init_from_model(loaded, params)
    try:
        text = "".join(lines)
    finally:
        lib.llama_free(session)
        lib.llama_model_free(loaded)
    compute = float(re.findall(r"compute buffer size =\s*([\d.]+) MiB", text)[-1]) * 2**20
    kv = float(re.search(r"llama_kv_cache: size =\s*([\d.]+) MiB", text).group(1)) * 2**20
    assert reserved_compute_bytes(spec, context) == pytest.approx(compute, rel=0.02, abs=2**18)
    assert kv_bytes(spec, whole(4), "llamacpp", "Q8_0", context) == pytest.approx(kv, abs=2**13)


def test_gpu_commits_logits_of_the_micro_batch():
    """SmolLM2's reserve with outputs for every token: 98.25 MiB."""
    got = compute_bytes(make_spec(), "llamacpp", "cuda", 1024, 512) - 49152 * 4
    assert got == pytest.approx(98.25 * 2**20, rel=0.001)


# --- speed --------------------------------------------------------------------------------------


def llama2_7b():
    return make_spec(32, 4096, 11008, 32, 32, 128, 32000, False, 4096, name="llama-2-7b")


@pytest.mark.parametrize(
    ("device", "backend", "quant", "published"),
    [  # llama-bench tg128 of Llama-2-7B: ggml-org/llama.cpp discussion #4167; llm-tracker for the last
        ("m2", "metal", "Q4_0", 21.91),
        ("m4-pro", "metal", "Q4_0", 50.74),
        ("m4-pro", "metal", "Q8_0", 30.69),
        ("m4-pro", "metal", "F16", 17.18),
        ("amd-aimax395", "vulkan", "Q4_0", 52.73),
        ("amd-aimax395", "cpu", "Q4_0", 28.94),
    ],
)
def test_decode_interval_covers_published_rates(device, backend, quant, published):
    p = predict(llama2_7b(), whole(32), devices.load(device), "llamacpp", backend, quant, 512, 512)
    assert p.decode_low_tok_per_s < published < p.decode_high_tok_per_s
    assert p.decode_tok_per_s == pytest.approx(published, rel=0.25)


def test_prefill_time_of_a_known_rate():
    """M2: Llama-2-7B pp512 at 179-181 tok/s in #4167 (10 cores)."""
    p = predict(llama2_7b(), whole(32), devices.load("m2"), "llamacpp", "metal", "Q4_0", 512, 512)
    assert 512 / p.ttft_s == pytest.approx(180, rel=0.15)


def test_every_speed_has_an_interval_and_a_basis():
    for name in devices.names()[:-1]:
        device = devices.load(name)
        for runtime in ("llamacpp", "onnxruntime"):
            for backend in device.runtimes.get(runtime, ()):
                quant = "Q4_K_M" if runtime == "llamacpp" else "int4"
                p = predict(llama2_7b(), whole(32), device, runtime, backend, quant, 512, 512)
                if p.decode_tok_per_s is None:
                    assert p.basis.startswith("no rate known")
                else:
                    assert p.decode_low_tok_per_s < p.decode_tok_per_s <= p.decode_high_tok_per_s
                    assert re.match(r"prior|fitted", p.basis)
                    assert "onnx" not in runtime or "llama.cpp" in p.basis


def test_fewer_blocks_help_beyond_their_bytes():
    """Per-block overhead: of two models that stream alike, the shallow one decodes faster."""
    spec, device = make_spec(), devices.load("rtx3060-12gb")
    rates = find(device, "llamacpp", "cuda", None, "Q8_0")
    size = Sizes(0, 0, 10**8, 0)
    deep, shallow = (decode_times(spec, whole(n), size, "Q8_0", "llamacpp", rates, 0)[1] for n in (30, 15))
    assert deep - shallow == pytest.approx(15 * rates.overhead_us.middle * 1e-6)
    assert 30 < rates.overhead_us.middle < 80, "an independent fit of the same card says 38"


def test_power_modes():
    orin, spec = devices.load("jetson-agx-orin-64gb"), llama2_7b()

    def at(mode, quant="Q4_K_M"):
        return predict(spec, whole(32), orin, "llamacpp", "cuda", quant, 512, 512, mode)

    # the README of jetson-llm-maxperf: 27.1 tok/s at MAXN, 8.1 at 30 W
    assert at("MAXN").decode_tok_per_s / at("30W").decode_tok_per_s == pytest.approx(27.1 / 8.1, rel=0.1)
    assert at(None) == at("MAXN")
    unmeasured = at("50W")
    assert "50W" in unmeasured.basis
    assert unmeasured.decode_low_tok_per_s < at("30W").decode_tok_per_s < unmeasured.decode_high_tok_per_s
    assert (
        predict(
            spec, whole(32), devices.load("jetson-orin"), "llamacpp", "cuda", "Q4_0", 512, 512, "7W"
        ).decode_tok_per_s
        is None
    )
    with pytest.raises(UsageError, match="known: MAXN"):
        at("900W")


def test_repacked_copies_count_on_cpu_only():
    """Llama-2-7B Q4_0 on AVX2 is kept twice but for the embedding and the output head (Q6_K, not repacked there)."""
    spec, device = llama2_7b(), devices.load("amd-aimax395")
    cpu, gpu = (predict(spec, whole(32), device, "llamacpp", b, "Q4_0", 512, 512) for b in ("cpu", "vulkan"))
    matrices = sum(
        18 / 32 * np.prod(s)
        for b in spec.blocks
        for sub in (b.attn, b.ffn)
        for s in sub.tensors.values()
        if len(s) == 2
    )
    assert cpu.weights_bytes - gpu.weights_bytes == matrices


def test_what_can_not_be_asked():
    predictor = Predictor(make_spec(), devices.load("rpi5"), "llamacpp", "cpu")
    with pytest.raises(UsageError, match="Q4_K_M"):
        predictor(whole(30), "Q4_K_XXL", 512, 512)
    for context in (0, 8193):
        with pytest.raises(UsageError, match="8192"):
            predictor(whole(30), "Q8_0", context, 512)
