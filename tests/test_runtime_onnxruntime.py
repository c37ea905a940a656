"""The onnxruntime Session: cache bookkeeping, faults, foreign folders."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from edgeprune.errors import EdgepruneError, InputRejected, UsageError
from edgeprune.runtimes import onnxruntime as runtime
from exporters import onnx as exporter

TOKENS = np.random.default_rng(3).integers(0, 256, 40).tolist()


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("ort") / "onnx"
    exporter.export(tiny_folder("llama"), out, "int8", {}, lambda label, fraction: None)
    return out


@pytest.fixture
def session(folder):
    session = runtime.open_session(folder, n_ctx=64, n_threads=1)
    yield session
    session.close()


def test_says_what_it_reads(folder, tiny_folder, tmp_path):
    import onnxruntime

    assert runtime.reads(folder) and not runtime.reads(tiny_folder("llama")) and not runtime.reads(tmp_path / "no")
    assert onnxruntime.__version__ in runtime.version()


@pytest.mark.parametrize("quant", exporter.QUANTS)
def test_quant_is_read_from_metadata_and_from_operators(quant, tiny_folder, tmp_path):
    import onnx

    exporter.export(tiny_folder("llama"), tmp_path / "out", quant, {}, lambda label, fraction: None)
    assert runtime.quant(tmp_path / "out") == quant
    model = onnx.load(str(tmp_path / "out/model.onnx"), load_external_data=False)
    del model.metadata_props[:]
    (tmp_path / "out/model.onnx").write_bytes(model.SerializeToString())
    assert runtime.quant(tmp_path / "out") == quant


def test_shape_of_the_model(session):
    config_vocab = session.logits(TOKENS[:3]).shape[1]
    assert (session.backend, session.n_blocks, session.n_vocab) == ("cpu", 5, config_vocab)
    assert session.bos_token is None


def test_prefill_decode_and_logits_agree(session):
    whole = session.logits(TOKENS).copy()
    session.reset()
    parts = [
        session.prefill(TOKENS[:10]).copy(),
        session.prefill(TOKENS[10:20]).copy(),
        session.decode(TOKENS[20]).copy(),
    ]
    for got, i in zip(parts, (9, 19, 20), strict=True):
        assert got.shape == (session.n_vocab,) and got.dtype == np.float32
        np.testing.assert_allclose(got, whole[i], atol=2e-2)  # 8-bit activations are rounded per batch of rows


def test_reset_forgets(session):
    first = session.prefill(TOKENS[:30]).copy()
    for t in TOKENS[30:]:
        session.decode(t)
    session.reset()
    assert np.array_equal(session.prefill(TOKENS[:30]), first)


def test_context_is_a_limit(session):
    session.prefill(TOKENS)
    for _ in range(24):
        session.decode(1)
    with pytest.raises(UsageError, match="context of 64"):
        session.decode(1)
    session.reset()
    with pytest.raises(UsageError, match="context of 64"):
        session.prefill([1] * 65)
    with pytest.raises(UsageError):
        session.prefill([])


def test_a_token_outside_the_vocabulary_is_one_line(folder, tiny_folder, tmp_path):
    exporter.export(tiny_folder("llama"), tmp_path / "fp32", "fp32", {}, lambda label, fraction: None)
    session = runtime.open_session(tmp_path / "fp32", n_ctx=8, n_threads=1)
    with pytest.raises(EdgepruneError, match="failed in onnxruntime") as e:
        session.prefill([10**6])
    assert "\n" not in str(e.value)


def test_tokenize_parses_specials_and_adds_none(session, folder):
    from transformers import AutoTokenizer

    text = "<|im_start|>the fox<|im_end|> é\n"
    assert session.tokenize(text) == AutoTokenizer.from_pretrained(folder).encode(text, add_special_tokens=False)
    assert session.tokenize(text)[0] == 1


def test_bos_is_reported_when_the_tokenizer_adds_it(folder, tmp_path):
    from tokenizers import Tokenizer, processors

    copy = shutil.copytree(folder, tmp_path / "copy")
    tok = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tok.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tok.save(str(copy / "tokenizer.json"))
    session = runtime.open_session(copy, n_ctx=8, n_threads=1)
    assert session.bos_token == 1
    assert session.tokenize("the") == runtime.open_session(folder, n_ctx=8, n_threads=1).tokenize("the")


def test_an_open_head_size_is_read_from_genai_config(folder, session, tmp_path):
    """onnxruntime-genai's own builder leaves that dimension symbolic."""
    import onnx

    copy = shutil.copytree(folder, tmp_path / "copy")
    model = onnx.load(str(copy / "model.onnx"), load_external_data=False)
    for value in [*model.graph.input, *model.graph.output]:
        if "key" in value.name or "value" in value.name:
            value.type.tensor_type.shape.dim[3].dim_param = "kv_cache_dim"
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    other = runtime.open_session(copy, n_ctx=64, n_threads=1)
    assert np.array_equal(other.prefill(TOKENS), session.prefill(TOKENS))
    (copy / "genai_config.json").unlink()
    with pytest.raises(InputRejected, match="head size"):
        runtime.open_session(copy, n_ctx=64, n_threads=1)


def _truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: _truncate(f / "model.onnx", 1000),
        lambda f: (f / "model.onnx").write_bytes(b""),
        lambda f: (f / "model.onnx").write_bytes(b"not a model at all"),
        lambda f: (f / "model.onnx.data").unlink(),
        lambda f: _truncate(f / "model.onnx.data", 5000),
        lambda f: (f / "tokenizer.json").write_text("{"),
    ],
    ids=["half", "empty", "text", "no weights", "half weights", "tokenizer"],
)
def test_a_broken_folder_is_rejected_in_one_line(damage, folder, tmp_path, capfd):
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)
    with pytest.raises(InputRejected) as e:
        runtime.open_session(copy, n_ctx=8, n_threads=1)
    assert "\n" not in str(e.value) and str(copy) in str(e.value)
    assert capfd.readouterr() == ("", "")


def test_a_model_that_is_no_decoder_is_rejected(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "model.onnx"
    )
    with pytest.raises(InputRejected, match="not a decoder"):
        runtime.open_session(tmp_path, n_ctx=8, n_threads=1)


def test_weights_outside_the_folder_are_not_read(folder, tmp_path):
    """A model file that points at other files of the machine is refused."""
    import onnx

    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.onnx.data").rename(tmp_path / "model.onnx.data")
    model = onnx.load(str(copy / "model.onnx"), load_external_data=False)
    for t in model.graph.initializer:
        for entry in t.external_data:
            if entry.key == "location":
                entry.value = "../model.onnx.data"
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputRejected):
        runtime.open_session(copy, n_ctx=8, n_threads=1)
