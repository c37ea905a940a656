"""Predicted sizes against llama.cpp's own choice of types and against the files that our exporters write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from _llama import chosen_types, file_type, llama, quantise, tensors, write_gguf
from _shapes import make_spec
from conftest import FAMILIES

from edgeprune import _gguf_mix as mix
from edgeprune import devices
from edgeprune._sizes import GGUF_QUANTS, ONNX_QUANTS, Shapes
from edgeprune.blocks import from_text, whole
from edgeprune.export import export
from edgeprune.files import tree_bytes, write_sums
from edgeprune.gguf_file import read_header
from edgeprune.model import inspect
from edgeprune.plan import make_plan
from edgeprune.prune import prune
from edgeprune.types import Budget
from exporters import gguf, onnx
from exporters._gguf_quantize import ALIASES, FILE_TYPE, NEED_IMATRIX

__all__ = ["llama"]  # a fixture


def quiet(*_) -> None:
    pass


def test_names_are_those_of_exporter_and_llama_cpp(llama):
    assert list(GGUF_QUANTS) == list(FILE_TYPE) == list(gguf.QUANTS)
    assert mix.NEED_IMATRIX == NEED_IMATRIX and mix.ALIASES == ALIASES
    assert {q: file_type(llama[0], q) for q in GGUF_QUANTS} == FILE_TYPE
    assert set(ONNX_QUANTS) == set(onnx.QUANTS)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 30, 47, 80, 126])
def test_positions_taken_together_get_one_type(n):
    """Sizes are counted by the positions that no rule tells apart, so each must get what the first of them gets."""
    first = mix.alike(n)
    for quant in GGUF_QUANTS:
        for imatrix in (False, True):
            facts = mix.Facts(gqa=1 + 3 * (n % 2), tied=n > 30, wide70=n == 80, imatrix=imatrix)
            for role in ("attn_v.weight", "ffn_down.weight", "ffn_up.weight", "attn_output.weight"):
                types = [mix.tensor_type(role, (256, 512), quant, i, n, facts) for i in range(n)]
                assert types == [types[i] for i in first], (quant, role)


# --- GGUF: the type of every tensor ---------------------------------------------------------------

SYNTHETIC = {
    "tied, rows of 256": dict(n_blocks=17, d=256, ff=512, heads=4, kv=2, head_dim=64, vocab=64, context=512),
    "untied, 4 heads per key head": dict(
        n_blocks=9, d=256, ff=256, heads=4, kv=1, head_dim=64, vocab=64, tied=False, context=512
    ),
    "rows not of 256": dict(n_blocks=9, d=96, ff=160, heads=3, kv=3, head_dim=32, vocab=64, tied=False, context=512),
    "tied, rows not of 32": dict(n_blocks=2, d=80, ff=112, heads=5, kv=5, head_dim=16, vocab=64, context=512),
    "80 blocks": dict(n_blocks=80, d=256, ff=256, heads=4, kv=2, head_dim=64, vocab=64, context=512),
}


def fused(spec):
    """Phi-3's matrices: query, key and value in one, gate and up in another."""
    block = spec.blocks[0]
    attn, ffn = dict(block.attn.tensors), dict(block.ffn.tensors)
    rows = sum(attn.pop(f"attn_{x}.weight")[0] for x in "qkv")
    attn["attn_qkv.weight"] = (rows, spec.hidden_size)
    ffn["ffn_up.weight"] = (2 * ffn.pop("ffn_gate.weight")[0], spec.hidden_size)
    block = block.model_copy(
        update={
            "attn": block.attn.model_copy(update={"tensors": attn}),
            "ffn": block.ffn.model_copy(update={"tensors": ffn}),
        }
    )
    return spec.model_copy(update={"blocks": (block,) * spec.n_blocks})


@pytest.mark.parametrize("case", [*SYNTHETIC, "fused"])
@pytest.mark.parametrize("imatrix", [False, True])
def test_tensor_types_are_those_of_llama_cpp(case, imatrix, llama, tmp_path):
    """Every tensor's type for every quantisation, with a dry run of llama.cpp's quantiser as judge."""
    spec = fused(make_spec(**SYNTHETIC["rows not of 256"])) if case == "fused" else make_spec(**SYNTHETIC[case])
    source = tmp_path / "f32.gguf"
    write_gguf(source, spec)
    weights = {"blk.0.attn_q.weight": np.ones(spec.hidden_size, np.float32)} if imatrix else None
    facts = mix.Facts(spec.n_heads // spec.n_kv_heads, spec.tied_embeddings, spec.n_blocks == 80, imatrix)
    for quant in GGUF_QUANTS if spec.n_blocks < 80 else ("Q2_K", "Q3_K_S", "Q4_K_S", "IQ3_M"):
        found = chosen_types(llama, source, quant, weights)
        if found is None:  # no type to fall back to; the exporter refuses by the same rule
            assert quant == "Q1_0" and (spec.hidden_size % 128 or spec.intermediate_size % 128)
            continue
        assert len(found) >= 4 * spec.n_blocks or quant == "F32"
        total = 0
        for name, shape in tensors(spec).items():
            role = name.split(".", 2)[2] if name.startswith("blk.") else name
            if role == name:
                kind = mix.global_type(role, shape, quant, tied=spec.tied_embeddings)
            else:
                kind = mix.tensor_type(role, shape, quant, int(name.split(".")[1]), spec.n_blocks, facts)
            assert kind.upper() == found.get(name, "F32"), f"{quant} {name}"
            size = mix.type_bytes(kind, shape)
            total += size + -size % 32
        assert Shapes(spec).gguf(whole(spec.n_blocks), quant, imatrix=imatrix).tensor_bytes == total, quant


def check_gguf(predicted, path: Path) -> None:
    """Tensors to the byte, the file within 1 %."""
    real = path.stat().st_size
    assert predicted.tensor_bytes == real - read_header(path).data_offset
    assert predicted.file_bytes == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_of_every_family(family, tiny_folder, tmp_path):
    folder = tiny_folder(family)
    shapes = Shapes(inspect(folder))
    for quant in ("F32", "Q8_0", "Q4_K_M", "Q3_K_L", "IQ4_NL"):
        out = tmp_path / f"{quant}.gguf"
        gguf.export(folder, out, quant, {}, quiet)
        check_gguf(shapes.gguf(whole(5), quant), out)
    again = Shapes(inspect(out))  # from a .gguf its own header is known exactly
    gguf.export(out, tmp_path / "again.gguf", "Q5_K_S", {}, quiet)
    check_gguf(again.gguf(whole(5), "Q5_K_S"), tmp_path / "again.gguf")
    assert again.gguf(whole(5), "Q5_K_S").file_bytes == pytest.approx((tmp_path / "again.gguf").stat().st_size, abs=64)


def without_halves(folder: Path, kept: str, family: str) -> None:
    """Make a folder say that blocks lack halves: `kept` in edgeprune.json, zeros where the output projections are."""
    from safetensors.numpy import load_file, save_file

    from edgeprune.catalog import load

    module = load("edgeprune.families", family)
    weights = load_file(folder / "model.safetensors")
    for i, b in enumerate(from_text(kept)):
        for half, output in zip((b.attn, b.ffn), module.OUTPUTS, strict=True):
            if half is None:
                weights[f"{module.LAYER.format(i=i)}{output}.weight"][:] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "edgeprune.json").write_text(json.dumps({"kept": kept, "blocks_whole": 7}), encoding="utf-8")


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_gguf_of_blocks_without_a_half(family, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder(family), tmp_path / "folder")
    without_halves(folder, "0 1:- -:3 4 5:-", family)
    shapes = Shapes(inspect(folder))
    for quant in ("F16", "Q4_K_M"):
        out = tmp_path / f"{quant}.gguf"
        gguf.export(folder, out, quant, {}, quiet)
        check_gguf(shapes.gguf(whole(5), quant), out)


# --- ONNX -----------------------------------------------------------------------------------------


def check_onnx(predicted, folder: Path) -> None:
    """The data file to the byte, the folder within 1 %."""
    assert predicted.tensor_bytes == (folder / "model.onnx.data").stat().st_size
    assert predicted.file_bytes == pytest.approx(tree_bytes(folder), rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_of_every_family(family, tiny_folder, tmp_path):
    folder = tiny_folder(family)
    shapes = Shapes(inspect(folder))
    for quant in ONNX_QUANTS:
        out = tmp_path / quant
        onnx.export(folder, out, quant, {}, quiet)
        write_sums(out)
        check_onnx(shapes.onnx(whole(5), quant), out)


def test_onnx_of_a_larger_vocabulary(tiny_folder, tmp_path):
    folder = tiny_folder("llama", vocab_size=20_000, tie_word_embeddings=False)
    shapes = Shapes(inspect(folder))
    for quant in ("fp16", "int4"):
        onnx.export(folder, tmp_path / quant, quant, {}, quiet)
        write_sums(tmp_path / quant)
        check_onnx(shapes.onnx(whole(5), quant), tmp_path / quant)


def test_predicted_from_the_whole_model(tiny_folder, tmp_path):
    """As a planner does: the files of a cut, before it is made."""
    folder = tiny_folder("llama", n_blocks=7)
    spec = inspect(folder)
    plan = make_plan(spec, None, devices.load("m2"), Budget(context_tokens=64, prompt_tokens=32))
    plan = plan.model_copy(update={"blocks": from_text("0-1 2:3 5-6"), "removed": "F2 A3; layer 4"})
    prune(folder, spec, plan, tmp_path / "pruned", base_model="tiny", command="edgeprune prune")
    shapes = Shapes(spec)
    for quant in ("Q8_0", "Q4_K_M"):
        export(tmp_path / "pruned", "gguf", quant, tmp_path / f"{quant}.gguf", verify=False)
        check_gguf(shapes.gguf(plan.blocks, quant), tmp_path / f"{quant}.gguf")
    export(tmp_path / "pruned", "onnx", "int4", tmp_path / "int4", verify=False)
    check_onnx(shapes.onnx(plan.blocks, "int4"), tmp_path / "int4")


# --- the real model -------------------------------------------------------------------------------


@pytest.mark.slow
def test_gguf_of_smollm2(smollm2_gguf, llama, tmp_path):
    """Quantisations that take seconds."""
    spec = inspect(smollm2_gguf)
    shapes, lossless = Shapes(spec), tmp_path / "F32.gguf"
    assert quantise(llama[0], smollm2_gguf, lossless, "F32", nthread=0)
    check_gguf(shapes.gguf(whole(30), "F32"), lossless)
    for quant in ("F16", "Q6_K", "Q4_K_M", "Q3_K_L", "TQ1_0"):
        out = tmp_path / "out.gguf"
        assert quantise(llama[0], lossless, out, quant, nthread=0)
        check_gguf(shapes.gguf(whole(30), quant), out)
    header = read_header(lossless)
    assert spec.tokenizer_bytes["gguf"] == pytest.approx(header.data_offset - 272 * 60, rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["fp32", "fp16", "int8", "int4"])
def test_onnx_of_smollm2(quant, smollm2_folder, tmp_path):
    out = tmp_path / quant
    onnx.export(smollm2_folder, out, quant, {}, quiet)
    write_sums(out)
    check_onnx(Shapes(inspect(smollm2_folder)).onnx(whole(30), quant), out)
