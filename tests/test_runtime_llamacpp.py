"""The llama.cpp session against itself (cache or no cache), against torch, and against what the system measures."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import FAMILY_NAMES

from edgeprune.errors import EdgepruneError, InputRejected, UsageError
from edgeprune.runtimes import llamacpp


@pytest.fixture(scope="module")
def tiny_gguf(tiny_folder, tmp_path_factory):
    from exporters import gguf

    made = {}

    def make(family: str = "llama", quant: str = "F32", **overrides):
        key = (family, quant, *sorted(overrides.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("gguf") / f"{family}-{quant}.gguf"
            gguf.export(tiny_folder(family, **overrides), made[key], quant, {}, lambda stage, x: None)
        return made[key]

    return make


@pytest.fixture
def open_session():
    sessions = []

    def make(path, n_ctx=256, n_threads=1, **options):
        sessions.append(llamacpp.open_session(path, n_ctx=n_ctx, n_threads=n_threads, **options))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


def ids(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 300, n).tolist()


# 1e-4: llama.cpp takes Gemma's GELU from a 16-bit table, so a step's rounding can cross one of its entries.
@pytest.mark.parametrize("precise, tolerance", [(True, 1e-4), (False, 2e-2)])
@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILY_NAMES if f != "llama")]
)
def test_cached_decoding_equals_one_pass(tiny_gguf, open_session, family, precise, tolerance):
    session, tokens = open_session(tiny_gguf(family), precise=precise), ids(40)
    whole = session.logits(tokens)
    assert whole.shape == (40, 320) and whole.dtype == np.float32
    session.reset()
    seen = [session.prefill(tokens[:25]).copy()]
    seen.append(session.prefill(tokens[25:30]).copy())  # appended to what is there
    seen += [session.decode(t).copy() for t in tokens[30:]]
    assert np.abs(np.array(seen) - whole[[24, *range(29, 40)]]).max() < tolerance


def test_precise_is_closer_to_torch_than_the_default(tiny_folder, tiny_gguf, open_session):
    import torch
    from transformers import AutoModelForCausalLM

    tokens = ids(120)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=torch.float32)
        want = model(torch.tensor([tokens])).logits[0].numpy()
    sessions = [open_session(tiny_gguf(), n_threads=2, precise=p) for p in (True, False)]
    error = [np.abs(session.logits(tokens) - want).max() for session in sessions]
    assert error[0] < 1e-5 < error[1] < 0.1


def test_reset_in_the_middle_forgets(tiny_gguf, open_session):
    session, tokens = open_session(tiny_gguf()), ids(12)
    fresh = session.prefill(tokens).copy()
    session.decode(5)
    with_past = session.prefill(tokens).copy()
    session.reset()
    session.prefill(ids(7, seed=3))
    session.reset()
    assert np.array_equal(session.prefill(tokens), fresh)
    assert not np.allclose(with_past, fresh, atol=1e-3)


def test_long_texts_run_in_steps(tiny_gguf, open_session, monkeypatch):
    tokens = ids(300)
    session = open_session(tiny_gguf(), n_ctx=512, precise=True)
    whole = session.logits(tokens)
    monkeypatch.setattr(llamacpp, "_LOGITS_BYTES", 4 * 320 * 7)
    assert np.abs(session.logits(tokens) - whole).max() < 1e-5
    monkeypatch.setattr(llamacpp, "N_BATCH", 64)
    session.reset()
    assert np.abs(session.prefill(tokens) - whole[-1]).max() < 1e-5


def test_what_a_session_knows(tiny_gguf, open_session, tmp_path):
    path = tiny_gguf("qwen3", "Q8_0")
    session = open_session(path)
    assert (session.n_vocab, session.n_blocks, session.bos_token) == (320, 5, None)
    import llama_cpp

    assert (session.backend == "cpu") == (not llama_cpp.llama_supports_gpu_offload())
    assert llamacpp.quant(path) == "Q8_0" and llamacpp.reads(path)
    assert "llama-cpp-python" in llamacpp.version() and "CPU: " in llamacpp.version()
    assert not llamacpp.reads(tmp_path)


def test_a_folder_is_read_for_the_one_gguf_in_it(tiny_gguf, open_session, tmp_path):
    shutil.copyfile(tiny_gguf("qwen3", "Q8_0"), tmp_path / "m.gguf")
    assert llamacpp.reads(tmp_path) and llamacpp.quant(tmp_path) == "Q8_0"
    assert open_session(tmp_path).n_blocks == 5
    shutil.copyfile(tmp_path / "m.gguf", tmp_path / "other.gguf")
    assert not llamacpp.reads(tmp_path)  # a choice
    (tmp_path / "other.gguf").rename(tmp_path / "config.json")
    assert not llamacpp.reads(tmp_path)  # a transformers folder


def test_tokenize_parses_special_tokens_and_adds_none(tiny_folder, tiny_gguf, open_session):
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(tiny_folder("llama"))
    session = open_session(tiny_gguf())
    for text in ("", "the quick brown fox", "<|im_start|>user\nthe dog<|im_end|>", "  é 12\n\n"):
        assert session.tokenize(text) == reference.encode(text, add_special_tokens=False)
    assert session.tokenize("<|im_end|>") == [2]


@pytest.mark.parametrize("call", [
    lambda s: s.prefill([]), lambda s: s.prefill([320]), lambda s: s.prefill([-1]), lambda s: s.decode(10**6),
    lambda s: s.prefill([1] * 257), lambda s: s.logits([1] * 257), lambda s: [s.prefill([1] * 256), s.decode(1)],
])  # fmt: skip
def test_impossible_tokens_are_refused_and_the_session_lives(tiny_gguf, open_session, call):
    session = open_session(tiny_gguf(), n_ctx=256)
    with pytest.raises(UsageError):
        call(session)
    session.reset()
    assert np.isfinite(session.prefill([1, 2, 3])).all()


def test_a_closed_session_says_so(tiny_gguf):
    session = llamacpp.open_session(tiny_gguf(), n_ctx=64, n_threads=1)
    session.close()
    session.close()
    for call in (session.reset, lambda: session.prefill([1]), lambda: session.tokenize("a")):
        with pytest.raises(EdgepruneError, match="closed"):
            call()


@pytest.mark.parametrize("n_ctx, n_threads", [(0, 1), (64, 0)])
def test_no_room_or_thread(tiny_gguf, n_ctx, n_threads):
    with pytest.raises(UsageError):
        llamacpp.open_session(tiny_gguf(), n_ctx=n_ctx, n_threads=n_threads)


def broken(path, out, what):
    data = path.read_bytes()
    if what == "unknown arch":
        at = data.index(b"general.architecture") + 20 + 4 + 8
        data = data[:at] + b"lxxma" + data[at + 5 :]
    elif what == "missing tensor":
        data = data.replace(b"blk.2.ffn_up.weight", b"blk.2.ffn_xx.weight")
    else:
        data = data[:-100]
    assert data != path.read_bytes()
    out.write_bytes(data)
    return out


@pytest.mark.parametrize("what, word", [
    ("truncated", "truncated"), ("missing tensor", "blk.2.ffn_up.weight"), ("unknown arch", "architecture"),
])  # fmt: skip
def test_a_file_that_does_not_load_gives_llama_cpps_reason(tiny_gguf, tmp_path, capfd, what, word):
    bad = broken(tiny_gguf(), tmp_path / "bad.gguf", what)
    with pytest.raises(InputRejected, match=word) as e:
        llamacpp.open_session(bad, n_ctx=64, n_threads=1)
    assert "\n" not in str(e.value) and "bad.gguf" in str(e.value)
    out = capfd.readouterr()
    assert out.out == "" and out.err == ""  # llama.cpp is silent


MEASURE = """
import sys, psutil
from edgeprune.runtimes import _llama_log, llamacpp
_llama_log.library()
before = psutil.Process().memory_info().rss
session = llamacpp.open_session(sys.argv[1], n_ctx=int(sys.argv[2]), n_threads=2)
session.prefill([5] * 512)
for _ in range(4):
    session.decode(7)
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("n_ctx, quant", [(1024, None), (4096, None), (1024, "Q4_0")])
def test_memory_breakdown_foretells_what_a_load_takes(smollm2_gguf, smollm2_folder, tmp_path, n_ctx, quant):
    """Q4_0 is what most processors keep a second, repacked copy of."""
    path = smollm2_gguf
    if quant:
        from exporters import gguf

        path = tmp_path / "m.gguf"
        gguf.export(smollm2_folder, path, quant, {}, lambda stage, x: None)
    parts = llamacpp.memory_breakdown(path, n_ctx, 2)
    assert parts["kv_bytes"] == 2 * 30 * n_ctx * 3 * 64 * 2  # K and V, blocks, tokens, heads, head size, F16
    assert parts["compute_bytes"] < parts["compute_committed_bytes"]
    assert parts["repack_bytes"] is not None
    predicted = sum(v for k, v in parts.items() if k != "compute_committed_bytes")
    run = subprocess.run([sys.executable, "-c", MEASURE, path, str(n_ctx)], capture_output=True, check=True)
    measured = int(run.stdout)
    assert abs(predicted - measured) < max(0.03 * measured, 8e6)


def test_memory_breakdown_of_a_file_that_does_not_load(tiny_gguf, tmp_path):
    bad = broken(tiny_gguf(), tmp_path / "bad.gguf", "missing tensor")
    with pytest.raises(InputRejected, match="ffn_up"):
        llamacpp.memory_breakdown(bad, 256, 1)
