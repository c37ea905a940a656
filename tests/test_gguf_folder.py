"""A GGUF folder: named as gguf-py names, carded, licensed, summed, and opened by path."""

from __future__ import annotations

import json
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import yaml

from edgeprune import export, files, gguf_folder
from edgeprune.chat import Chat, Sampling
from edgeprune.gguf_file import read_header

pytestmark = pytest.mark.usefixtures("one_thread")
CARD = """---
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
license: apache-2.0
language:
- en
- de
model_name: Tiny-Chat-v1.2
tags:
- edgeprune
- pruned
---
# text
"""


PLAN = {"runtime": "llamacpp", "kv_type": "q8_0", "budget": {"context_tokens": 96}}


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    """(source folder with a card, a licence, provenance and a plan; the GGUF folder of it)."""
    root = tmp_path_factory.mktemp("folder")
    source = shutil.copytree(tiny_folder("llama"), root / "source")
    (source / "README.md").write_text(CARD)
    (source / "LICENSE").write_text("Do as you like.\n")
    (source / "plan.json").write_text(json.dumps(PLAN))
    (source / "edgeprune.json").write_text(json.dumps({"base_model": "tiny/base", "removed": "layers 3-4"}))
    artifact = export.export(source, "gguf", "q8_0", root / "out")
    return source, root / "out", artifact


def test_holds_what_its_readers_look_for(made):
    source, out, artifact = made
    (file,) = out.glob("*.gguf")
    names = {p.name for p in out.iterdir()}
    assert names == {file.name, "README.md", "LICENSE", "Modelfile", "SHA256SUMS", "plan.json", "edgeprune.json"}
    assert (out / "LICENSE").read_bytes() == (source / "LICENSE").read_bytes()
    assert artifact.bytes == files.tree_bytes(out) and artifact.quant == "Q8_0" and artifact.mean_kl < 0.2
    files.check_sums(out)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=out, check=True)


def test_is_named_by_what_the_file_says(made):
    _, out, _ = made
    (file,) = out.glob("*.gguf")
    said = read_header(file).metadata
    assert file.stem == f"Tiny-{said['general.size_label']}-Chat-v1.2-Q8_0"


@pytest.mark.parametrize(("said", "name"), [
    ({"basename": "Qwen2.5", "size_label": "0.5B", "finetune": "Instruct"}, "Qwen2.5-0.5B-Instruct-Q4_K_M"),
    ({"name": "Phi 3 Mini 4k Instruct", "size_label": "3.8B"}, "Phi-3-3.8B-4k-Instruct-Q4_K_M"),
    ({"basename": "../etc/passwd", "size_label": "1/K"}, "etc-passwd-1-K-Q4_K_M"),
    ({}, "ggml-model-Q4_K_M"),
])  # fmt: skip
def test_names(said, name):
    metadata = {"general.file_type": 15} | {f"general.{k}": v for k, v in said.items()}
    tensors = {"x": SimpleNamespace(shape=(3_800_000, 1000))}
    assert gguf_folder.conventional_name(SimpleNamespace(metadata=metadata, tensors=tensors)) == name


def test_the_card_flows_into_the_file_and_out_again(made):
    _, out, _ = made
    (file,) = out.glob("*.gguf")
    said = read_header(file).metadata
    assert said["general.base_model.0.repo_url"] == "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct"
    assert said["general.license"] == "apache-2.0" and said["general.languages"] == ("en", "de")
    assert {"edgeprune", "pruned"} <= set(said["general.tags"])
    text = (out / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "tiny/base" and front["license"] == "apache-2.0" and front["language"] == ["en", "de"]
    assert {"gguf", "pruned"} <= set(front["tags"]) and front["quantized_by"].startswith("edgeprune")
    assert "layers 3-4" in text and file.name in text
    assert f"llama-cli -m {file.name} -cnv -fa on -ctk q8_0 -ctv q8_0\n" in text


def test_the_modelfile_names_the_file_the_planned_context_and_the_licence(made):
    _, out, _ = made
    (file,) = out.glob("*.gguf")
    text = (out / "Modelfile").read_text()
    assert f"\nFROM ./{file.name}\n" in text and "\nPARAMETER num_ctx 96\n" in text
    assert "OLLAMA_KV_CACHE_TYPE=q8_0" in text
    assert 'PARAMETER stop "<|im_end|>"' in text and 'LICENSE """Do as you like."""' in text
    assert "<|im_start|>assistant\n" in text


def test_opens_as_a_folder(made):
    _, out, _ = made
    with Chat(out, n_ctx=32) as chat:
        assert chat.runtime == "llamacpp" and chat.has_template
        assert chat.generate([1, 5], max_tokens=3, sampling=Sampling(), emit=lambda part: None).generated_tokens <= 3


def test_a_gguf_of_a_gguf_keeps_what_the_file_says(made, tmp_path):
    _, out, _ = made
    (file,) = out.glob("*.gguf")
    export.export(file, "gguf", "F16", tmp_path / "again")
    front = yaml.safe_load((tmp_path / "again/README.md").read_text().split("---\n")[1])
    assert front["base_model"] == "tiny/base" and front["license"] == "apache-2.0"
    assert [p.stem for p in (tmp_path / "again").glob("*.gguf")] == [file.stem.replace("Q8_0", "F16")]
