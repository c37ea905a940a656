"""The torch Session against transformers used directly."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from edgeprune.errors import InputRejected, UsageError
from edgeprune.runtimes import transformers as runtime

TOKENS = np.random.default_rng(4).integers(0, 256, 40).tolist()


@pytest.fixture
def session(tiny_folder):
    session = runtime.open_session(tiny_folder("qwen3"), n_ctx=64, n_threads=1)
    yield session
    session.close()


def test_says_what_it_reads(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "copy")
    assert runtime.reads(folder) and not runtime.reads(tmp_path / "no")
    (folder / "model.onnx").touch()
    assert not runtime.reads(folder)
    assert runtime.version().startswith("transformers ") and "torch" in runtime.version()


@pytest.mark.parametrize(("dtype", "name"), [("float32", "F32"), ("bfloat16", "BF16"), ("float16", "F16")])
def test_quant_is_the_stored_type_and_arithmetic_is_float32(dtype, name, tiny_folder, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=getattr(torch, dtype))
    model.save_pretrained(tmp_path / "m")
    assert runtime.quant(tmp_path / "m") == name
    session = runtime.open_session(tmp_path / "m", n_ctx=64, n_threads=1)
    with torch.no_grad():
        want = model.float()(torch.tensor([TOKENS])).logits[0].numpy()
    np.testing.assert_allclose(session.logits(TOKENS), want, atol=1e-5)
    session.close()


def test_logits_equal_transformers(session, tiny_folder):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_folder("qwen3"), dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        want = model(torch.tensor([TOKENS]), use_cache=False).logits[0].numpy()
    np.testing.assert_allclose(session.logits(TOKENS), want, atol=1e-5)
    session.reset()
    np.testing.assert_allclose(session.prefill(TOKENS[:20]), want[19], atol=1e-5)
    np.testing.assert_allclose(session.prefill(TOKENS[20:30]), want[29], atol=1e-5)
    for i in range(30, 40):
        np.testing.assert_allclose(session.decode(TOKENS[i]), want[i], atol=1e-5)
    assert (session.n_vocab, session.n_blocks) == (want.shape[1], 5)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_sliding_windows_hold_in_the_cache(family, tiny_folder):
    window = {"sliding_window": 8} if family == "mistral" else {}
    session = runtime.open_session(tiny_folder(family, **window), n_ctx=64, n_threads=1)
    want = session.logits(TOKENS)
    np.testing.assert_allclose(session.prefill(TOKENS[:20]), want[19], atol=1e-5)
    for i in range(20, 40):
        np.testing.assert_allclose(session.decode(TOKENS[i]), want[i], atol=1e-5)
    session.close()


def test_context_is_a_limit_and_reset_forgets(session):
    first = session.prefill(TOKENS).copy()
    with pytest.raises(UsageError, match="context of 64"):
        session.prefill([1] * 25)
    session.reset()
    assert np.array_equal(session.prefill(TOKENS), first)
    with pytest.raises(UsageError):
        session.prefill([])


def test_threads_are_given_back(tiny_folder):
    import torch

    before = torch.get_num_threads()
    session = runtime.open_session(tiny_folder("llama"), n_ctx=8, n_threads=before + 1)
    assert torch.get_num_threads() == before + 1
    session.close()
    assert torch.get_num_threads() == before


def test_opening_is_silent(tiny_folder, capfd):
    runtime.open_session(tiny_folder("llama"), n_ctx=8, n_threads=1).close()
    assert capfd.readouterr() == ("", "")


def test_a_broken_folder_is_rejected(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "copy")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputRejected) as e:
        runtime.open_session(folder, n_ctx=8, n_threads=1)
    assert "\n" not in str(e.value)


def test_missing_weights_are_not_made_up(tiny_folder, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputRejected, match=r"layers\.1\.mlp\.up_proj"):
        runtime.open_session(folder, n_ctx=8, n_threads=1)
