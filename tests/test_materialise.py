"""A GGUF as a transformers folder, against transformers' own dequantised load."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgeprune import export, materialise, model
from edgeprune.checkpoint import open_checkpoint, read_tensor


@pytest.mark.slow
def test_weights_are_those_transformers_reads(smollm2_gguf, smollm2_folder):
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    theirs = AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent,
        gguf_file=smollm2_gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).state_dict()
    ours = open_checkpoint(smollm2_folder)
    assert set(ours.tensors) == set(theirs) - {"lm_head.weight"}
    for name in ours.tensors:
        assert np.array_equal(read_tensor(ours, name), theirs[name].numpy()), name


@pytest.mark.slow
def test_the_folder_opens_plainly_and_its_tokenizer_splits_digits(smollm2_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, info = AutoModelForCausalLM.from_pretrained(smollm2_folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tok = AutoTokenizer.from_pretrained(smollm2_folder)
    assert tok.chat_template and len(tok.encode("1234567")) >= 7
    assert json.loads((smollm2_folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_export_and_back_is_the_identity(family, tiny_folder, tmp_path):
    """Our GGUF of a folder, dequantised again: the same tensors, through permutation and back."""
    from transformers import AutoConfig

    from edgeprune import families
    from edgeprune.gguf_file import read_header

    folder = tiny_folder(family)
    export.export(folder, "gguf", "F32", tmp_path / "x.gguf", verify=False)
    header = read_header(tmp_path / "x.gguf")
    config = AutoConfig.from_pretrained(folder)
    (tmp_path / "back").mkdir()
    module = families.for_model_type(family)
    materialise.write_weights(header, module, config, tmp_path / "back" / "model.safetensors")
    (tmp_path / "back" / "config.json").write_text((folder / "config.json").read_text())
    one, other = open_checkpoint(folder), open_checkpoint(tmp_path / "back")
    for name in one.tensors:
        assert np.array_equal(read_tensor(one, name), read_tensor(other, name)), name
    assert model.inspect(tmp_path / "x.gguf").params == model.inspect(folder).params


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gemma3", "phi3"])
def test_torch_computes_what_llama_cpp_does(family, tiny_folder, tmp_path):
    """Head sizes, windows and attention scales that transformers' GGUF reading leaves at its defaults."""
    import torch
    from _gguf_models import llama_logits, some_ids, torch_logits
    from transformers import AutoModelForCausalLM

    path, ids = tmp_path / "x.gguf", some_ids()
    export.export(tiny_folder(family), "gguf", "F32", path, verify=False)
    materialise.materialise(path, tmp_path / "back")
    found = torch_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32), ids)
    # llama.cpp's GELU is a float16 table
    assert np.abs(found - llama_logits(path, ids)).max() < (2e-2 if family.startswith("gemma") else 1e-5)


def test_a_split_model_is_read_from_all_its_parts(tiny_folder, tmp_path):
    from _gguf_models import split

    from edgeprune.gguf_file import read_header

    folder = tiny_folder("llama")
    export.export(folder, "gguf", "F32", tmp_path / "x.gguf", verify=False)
    parts = split(tmp_path / "x.gguf", tmp_path / "s.gguf", 20)
    materialise.materialise(parts[1], tmp_path / "back")
    one, other = open_checkpoint(folder), open_checkpoint(tmp_path / "back")
    for name in one.tensors:
        assert np.array_equal(read_tensor(one, name), read_tensor(other, name)), name
    assert len(read_header(parts[0]).paths) == len(parts) == 3
