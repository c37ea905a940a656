"""GGUF export against llama.cpp's own converter, against torch through llama.cpp, and against bad folders."""

from __future__ import annotations

import numpy as np
import pytest
from _exported import (
    assert_same,
    bfloat16,
    contents,
    convert,
    copy_of,
    difference,
    edit_json,
    export,
    llama_logits,
    needs_converter,
    some_ids,
    torch_logits,
)

from edgeprune.errors import InputRejected, UsageError
from edgeprune.gguf_file import read_header
from edgeprune.runtimes import llamacpp
from exporters import Options
from exporters import gguf as exporter
from exporters._gguf_pre import pre_tokenizer
from exporters._gguf_quantize import NEED_IMATRIX


@pytest.mark.slow
@needs_converter
def test_equals_llama_cpps_converter(tiny_folder, tmp_path):
    """Every tensor byte and every metadata key and type, for each type written directly; see test_families_gguf."""
    jobs, pairs = [], []
    for family in ("llama", "qwen2"):
        folder = copy_of(tiny_folder(family), tmp_path / family)
        if family == "llama":
            (folder / "README.md").write_text(
                "---\nlicense: apache-2.0\nbase_model: someone/Whole-1B\ntags: [pruned, edgeprune]\nlanguage: [en]\n---\nHi\n"
            )
            edit_json(folder / "generation_config.json", temperature=0.7, top_k=20, repetition_penalty=1.5)
        for quant in ("F32", "F16", "BF16", "Q8_0"):
            out = tmp_path / f"{family}-{quant}.gguf"
            jobs.append((folder, out, quant, "gpt-2"))
            pairs.append((folder, quant, out))
    half = bfloat16(tiny_folder("llama"), tmp_path / "half")
    for quant in ("F32", "F16", "BF16"):
        jobs.append((half, tmp_path / f"half-{quant}.gguf", quant, "gpt-2"))
        pairs.append((half, quant, jobs[-1][1]))
    convert(jobs)
    for folder, quant, theirs in pairs:
        assert_same(export(folder, tmp_path / f"ours-{theirs.name}", quant), theirs)


LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
YARN = dict(factor=4.0, original_max_position_embeddings=64)
CASES = {
    "llama-biases": ("llama", dict(attention_bias=True, mlp_bias=True)),
    "llama-untied-mha": ("llama", dict(tie_word_embeddings=False, num_key_value_heads=4)),
    "llama-linear": ("llama", dict(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=5000.0))),
    "llama-llama3": ("llama", dict(rope_parameters=dict(rope_type="llama3", rope_theta=500.0, **LLAMA3))),
    "qwen2-yarn": ("qwen2", dict(rope_parameters=dict(rope_type="yarn", rope_theta=5000.0, **YARN))),
    "qwen3-yarn-attention-factor": (
        "qwen3", dict(rope_parameters=dict(rope_type="yarn", rope_theta=5000.0, attention_factor=1.6, **YARN)),
    ),
    "llama-yarn-mscale": (
        "llama", dict(rope_parameters=dict(rope_type="yarn", rope_theta=5000.0, mscale=2.0, mscale_all_dim=0.5, **YARN)),
    ),
    "qwen3-wide-heads": ("qwen3", dict(head_dim=32)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_torch(tiny_folder, tmp_path, case):
    family, overrides = CASES[case]
    folder, ids = tiny_folder(family, **overrides), some_ids(200)
    assert difference(export(folder, tmp_path / "m.gguf"), folder, ids) < 1e-4


@pytest.mark.slow
@needs_converter
def test_equals_the_converter_with_options(tiny_folder, tmp_path):
    jobs = []
    for case in ("llama-biases", "llama-llama3", "llama-linear", "qwen2-yarn"):
        family, overrides = CASES[case]
        jobs.append((tiny_folder(family, **overrides), tmp_path / f"{case}.gguf", "F32", "gpt-2"))
    convert(jobs)
    for folder, theirs, _, _ in jobs:
        assert_same(export(folder, tmp_path / "ours.gguf"), theirs)


@pytest.mark.slow
def test_every_quantisation_loads_and_more_bits_come_closer(tiny_folder, tmp_path):
    folder = tiny_folder("llama", hidden_size=256, intermediate_size=512, head_dim=64)
    ids, out, error = some_ids(64), tmp_path / "out", {}
    out.mkdir()
    want = torch_logits(folder, ids)
    quants = sorted(set(exporter.QUANTS) - NEED_IMATRIX - {"Q1_0"})  # its rows are multiples of 128, heads here are not
    for quant in quants:
        path = export(folder, out / f"{quant}.gguf", quant)
        assert llamacpp.quant(path) == quant
        error[quant] = float(np.sqrt(np.mean((llama_logits(path, ids) - want) ** 2)))
    assert sorted(p.stem for p in out.iterdir()) == quants  # no intermediate is left
    order = ["F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"]
    assert sorted(order, key=error.get) == order
    assert error["F32"] < 1e-5 and error["Q2_K"] < np.std(want)
    matrix = read_header(out / "Q4_K_M.gguf").tensors["blk.1.attn_q.weight"]
    assert matrix.type == "Q4_K" and matrix.shape == (256, 256)


def test_quantised_from_half_is_quantised_from_what_is_stored(tiny_folder, tmp_path):
    """A BF16 source goes through a BF16 intermediate: same file as from its exact F32 copy."""
    from safetensors.torch import load_file, save_file

    half = bfloat16(tiny_folder("qwen2"), tmp_path / "half")
    full = copy_of(half, tmp_path / "full")
    save_file({k: v.float() for k, v in load_file(half / "model.safetensors").items()}, full / "model.safetensors")
    a, b = export(half, tmp_path / "a.gguf", "Q4_0"), export(full, tmp_path / "b.gguf", "Q4_0")
    assert contents(a)[1] == contents(b)[1]


def test_same_input_same_bytes_and_progress(tiny_folder, tmp_path):
    folder, seen = tiny_folder("mistral"), []
    a = export(folder, tmp_path / "a.gguf", "Q4_K_M")
    exporter.export(folder, tmp_path / "b.gguf", "Q4_K_M", {"tool": "test", "plan": "none"}, lambda *s: seen.append(s))
    assert a.read_bytes() == (tmp_path / "b.gguf").read_bytes()
    stages = list(dict.fromkeys(s for s, _ in seen))
    assert len(stages) == 2 and seen[-1][1] == 1.0 and all(0 <= x <= 1 for _, x in seen)


def test_context_ends_at_the_sliding_window(tiny_folder, tmp_path):
    """llama.cpp attends to everything here, which equals the window only within it; torch agrees up to there."""
    folder, ids = tiny_folder("mistral", sliding_window=64), some_ids(100)
    path = export(folder, tmp_path / "m.gguf")
    assert read_header(path).metadata["llama.context_length"] == 64
    difference = np.abs(llama_logits(path, ids) - torch_logits(folder, ids)).max(axis=1)
    assert difference[:64].max() < 1e-4 < difference[70:].max()
    types = ["full_attention"] * 3 + ["sliding_attention"] * 2
    folder = tiny_folder("qwen2", use_sliding_window=True, sliding_window=32, layer_types=types)
    assert read_header(export(folder, tmp_path / "q.gguf")).metadata["qwen2.context_length"] == 32


BAD = {
    "hidden_act": (dict(hidden_act="gelu"), "hidden_act"),
    "rope dynamic": (dict(rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e4)), "dynamic"),
    "rope longrope": (dict(rope_parameters=dict(rope_type="longrope", rope_theta=1e4)), "longrope"),
    "yarn beta": (dict(rope_parameters=dict(rope_type="yarn", beta_fast=16, **YARN)), "beta_fast"),
    "partial rotary": (dict(rope_parameters=dict(rope_theta=1e4, partial_rotary_factor=0.5)), "partial_rotary"),
    "rope per layer type": (dict(rope_parameters=dict(full_attention=dict(rope_theta=1e4))), "layer type"),
    "fewer layers than tensors": (dict(num_hidden_layers=4), "model.layers.4"),
    "more layers than tensors": (dict(num_hidden_layers=6), "model.layers.5"),
    "other width": (dict(intermediate_size=128), "intermediate_size|gate_proj"),
    "no heads": (dict(num_attention_heads=0), "num_attention_heads"),
    "text for a number": (dict(hidden_size="64"), "hidden_size"),
    "untied without a head": (dict(tie_word_embeddings=False), "lm_head"),
    "quantised": (dict(quantization_config=dict(quant_method="gptq")), "quantised"),
    "unknown family": (dict(model_type="mamba"), "mamba"),
    "vocabulary too small": (dict(vocab_size=200), "token|vocab|embed"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_before_any_work(tiny_folder, tmp_path, name):
    config, word = BAD[name]
    folder = copy_of(tiny_folder("llama"), tmp_path / "bad", **config)
    with pytest.raises(InputRejected, match=word) as e:
        exporter.check(folder, "F16")
    assert "\n" not in str(e.value)


def test_refuses_layer_types_that_were_not_resliced(tiny_folder, tmp_path):
    folder = copy_of(tiny_folder("qwen3"), tmp_path / "bad", layer_types=["full_attention"] * 4)
    with pytest.raises(InputRejected, match="layer_types"):
        exporter.check(folder, "F16")


def test_refuses_an_unknown_quantisation(tiny_folder):
    with pytest.raises(UsageError, match="Q4_K_M"):
        exporter.check(tiny_folder("llama"), "Q4_K_XL")


@pytest.mark.parametrize("value, quant, word", [(np.nan, "F32", "NaN"), (np.inf, "Q8_0", "NaN"), (1e5, "F16", "65504")])
def test_refuses_values_that_do_not_fit(tiny_folder, tmp_path, value, quant, word):
    from safetensors.numpy import load_file, save_file

    folder = copy_of(tiny_folder("llama"), tmp_path / "bad")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"] = tensors["model.layers.2.mlp.up_proj.weight"].copy()
    tensors["model.layers.2.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputRejected, match=f"blk.2.ffn_up.weight.*{word}"):
        export(folder, tmp_path / "m.gguf", quant)


@pytest.mark.parametrize("card", ["---\na: [\n---\n", "---\nlicense: {a: 1}\ntags: 7\n---\n"])
def test_an_unusable_model_card(tiny_folder, tmp_path, card):
    folder = copy_of(tiny_folder("llama"), tmp_path / "bad")
    (folder / "README.md").write_text(card)
    try:
        path = export(folder, tmp_path / "m.gguf")
    except InputRejected as e:
        assert "README.md" in str(e) and "\n" not in str(e)
    else:
        read_header(path)


@pytest.mark.parametrize("file, content", [
    ("tokenizer.json", "{"), ("tokenizer.json", "[]"), ("tokenizer.json", '{"model": {"type": "BPE"}}'),
    ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}'),
    ("tokenizer.json", '{"model": {"type": "Unigram", "vocab": []}}'), ("tokenizer_config.json", "7"),
])  # fmt: skip
def test_a_damaged_tokenizer(tiny_folder, tmp_path, file, content):
    folder = copy_of(tiny_folder("llama"), tmp_path / "bad")
    (folder / file).write_text(content)
    with pytest.raises(InputRejected, match="tokenizer"):
        exporter.check(folder, "F16")


def test_unknown_pre_tokenizer_needs_a_name(tiny_folder, tmp_path):
    folder = copy_of(tiny_folder("llama"), tmp_path / "odd")
    edit_json(folder / "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    with pytest.raises(InputRejected, match="--tokenizer-pre"):
        exporter.check(folder, "F16")
    path = export(folder, tmp_path / "m.gguf", options=Options(tokenizer_pre="olmo"))
    assert read_header(path).metadata["tokenizer.ggml.pre"] == "olmo"


def test_chat_template_is_carried_byte_for_byte(tiny_folder, tmp_path):
    folder = copy_of(tiny_folder("llama"), tmp_path / "m")
    template = "{# \t\r\n ü \u2028 #}{{ bos_token }}\r\n"
    (folder / "chat_template.jinja").write_bytes(template.encode())
    assert read_header(export(folder, tmp_path / "m.gguf")).metadata["tokenizer.chat_template"] == template


@pytest.mark.slow
@needs_converter
def test_real_model_equals_the_converter(smollm2_folder, tmp_path):
    theirs = tmp_path / "theirs.gguf"
    convert([(smollm2_folder, theirs, "F16", None)])  # its own table of hashes names the pre-tokenizer
    ours = export(smollm2_folder, tmp_path / "ours.gguf", "F16")
    assert read_header(ours).metadata["tokenizer.ggml.pre"] == "smollm"
    assert_same(ours, theirs)


@pytest.mark.slow
def test_real_model_equals_torch(smollm2_folder, tmp_path):
    """Logits within 1e-4 and 64 greedy tokens equal."""
    import torch
    from transformers import AutoModelForCausalLM

    path = export(smollm2_folder, tmp_path / "m.gguf")
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    session = llamacpp.open_session(path, n_ctx=256, n_threads=2, precise=True)
    ids = session.tokenize("The capital of France is Paris. In 1789, the people of the city")
    with torch.no_grad():
        assert np.abs(session.logits(ids) - model(torch.tensor([ids])).logits[0].numpy()).max() < 1e-4
        want = model.generate(torch.tensor([ids]), max_new_tokens=64, min_new_tokens=64, do_sample=False)[0].tolist()
    session.reset()
    token, out = int(session.prefill(ids).argmax()), list(ids)
    for _ in range(64):
        out.append(token)
        token = int(session.decode(token).argmax())
    session.close()
    assert out == want


def test_known_pre_tokenizers_by_structure():
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    assert pre_tokenizer({"pre_tokenizer": byte_level, "model": {}}) == "gpt-2"
    with pytest.raises(InputRejected):
        pre_tokenizer({"pre_tokenizer": byte_level, "model": {"ignore_merges": True}})
    with pytest.raises(InputRejected):
        pre_tokenizer({"pre_tokenizer": byte_level | {"add_prefix_space": True}, "model": {}})
    with pytest.raises(InputRejected):
        pre_tokenizer({"pre_tokenizer": byte_level, "normalizer": {"type": "Lowercase"}, "model": {}})
