"""A KV cache of another type, planned, opened and measured: llama.cpp's own allocator says how large it is."""

from __future__ import annotations

import pytest
from _shapes import make_spec

from edgeprune._kv_types import ELEMENT_BYTES, offered
from edgeprune.blocks import whole
from edgeprune.cost import kv_bytes
from edgeprune.errors import InputRejected, UsageError
from edgeprune.runtimes import _llama_log, cache_option, llamacpp, onnxruntime
from edgeprune.runtimes._llama_memory import _KV, _sum


def allocated() -> int:
    return _sum(_KV, _llama_log.lines())


@pytest.mark.slow
@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "q4_0"])
def test_the_cache_is_as_large_as_predicted_and_runs(smollm2_gguf, kv_type):
    from edgeprune.model import inspect

    spec = inspect(smollm2_gguf)
    session = llamacpp.open_session(smollm2_gguf, n_ctx=1000, n_threads=1, kv_type=kv_type)
    try:
        assert allocated() == pytest.approx(kv_bytes(spec, whole(30), "llamacpp", "Q4_1", 1000, kv_type), abs=6000)
        plain = llamacpp.open_session(smollm2_gguf, n_ctx=1000, n_threads=1)
        tokens = session.tokenize("The sky is blue because light is scattered by the air, and blue light most of all.")
        near = abs(session.logits(tokens) - plain.logits(tokens)).mean()
        plain.close()
        assert near == 0 if kv_type == "f16" else 0 < near < (0.3 if kv_type == "q8_0" else 1.5)
    finally:
        session.close()


def test_types_are_offered_where_llama_cpp_takes_them():
    spec = make_spec()
    assert offered(spec, "llamacpp", "cpu", "Q4_0") == ("f16", "q8_0", "q4_0")
    assert offered(spec, "llamacpp", "opencl", "Q4_0") == ("f16",)
    assert offered(make_spec(head_dim=80), "llamacpp", "cpu", "Q4_0") == ("f16",)
    assert offered(spec, "onnxruntime", "cpu", "int8") == ("f32",)
    assert offered(spec, "onnxruntime", "cpu", "fp16") == ("f16",)


def test_bytes_of_a_cache_by_hand():
    """30 blocks, 3 heads of 64 for keys and as many for values, 512 cells; 32 numbers take 34 bytes, or 18."""
    spec, numbers = make_spec(), 30 * 2 * 3 * 64 * 512
    for kv_type, per_32 in (("f32", 128), ("f16", 64), ("q8_0", 34), ("q4_0", 18)):
        assert kv_bytes(spec, whole(30), "llamacpp", "Q8_0", 512, kv_type) == numbers // 32 * per_32
    assert set(llamacpp.KV_TYPES) == set(ELEMENT_BYTES)


def test_windows_that_llama_cpp_does_not_cache_are_not_counted():
    windowed = make_spec(window=1024)
    full = kv_bytes(make_spec(), whole(30), "llamacpp", "Q8_0", 4096)
    for family, same in (("mistral", True), ("phi3", True), ("gemma2", False)):
        spec = windowed.model_copy(update={"family": family})
        assert (kv_bytes(spec, whole(30), "llamacpp", "Q8_0", 4096) == full) is same


def test_only_runtimes_with_a_choice_are_asked():
    assert cache_option(llamacpp, "q8_0") == {"kv_type": "q8_0"} and cache_option(llamacpp, None) == {}
    assert cache_option(onnxruntime, "q8_0") == {}


@pytest.mark.slow
def test_a_type_that_does_not_fit_is_refused(tiny_folder, tmp_path):
    """Heads of 16 hold no whole group of 32; llama.cpp says so."""
    from edgeprune.export import export

    path = tmp_path / "m.gguf"
    export(tiny_folder("llama"), "gguf", "F16", path, progress=lambda *_: None)
    with pytest.raises(InputRejected, match="q8_0 KV cache"):
        llamacpp.open_session(path, n_ctx=64, n_threads=1, kv_type="q8_0")
    with pytest.raises(UsageError, match="known: f32, f16"):
        llamacpp.open_session(path, n_ctx=64, n_threads=1, kv_type="q5_9")
