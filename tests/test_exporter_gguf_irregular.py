"""Blocks without attention or feed-forward in llama.cpp: what is written, what it saves, and the traps around it.

That logits equal torch's is tested for every family in test_families_gguf.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from _exported import copy_of, cut, difference, edit_json, export, llama_logits, some_ids, torch_logits

from edgeprune.catalog import load
from edgeprune.errors import InputRejected
from edgeprune.families import refusal
from edgeprune.gguf_file import read_header
from edgeprune.runtimes import _llama_log, llamacpp
from exporters import gguf as exporter

HALVES = "0 1:- 3 -:4"  # attention in three of four blocks, feed-forward in three
KV_CELLS = 8192  # of 2 heads of 16: a MiB for each block with attention, in F16


def test_what_is_written(tiny_folder, tmp_path):
    """deci leaves attention out and has 256 zero columns for a feed-forward; openelm also has one head of zeros."""
    for family, arch, lone in (("llama", "deci", 0), ("qwen3", "openelm", 1)):
        path = export(cut(tiny_folder(family), tmp_path / family, HALVES), tmp_path / f"{family}.gguf")
        assert any("one head of zeros" in line for line in exporter.notes(tmp_path / family, "F16")) == bool(lone)
        header = read_header(path, arrays=True)
        assert header.metadata["general.architecture"] == arch
        assert header.metadata[f"{arch}.attention.head_count"] == (4, 4, 4, lone)
        assert header.metadata[f"{arch}.attention.head_count_kv"] == (2, 2, 2, lone)
        assert header.metadata[f"{arch}.feed_forward_length"] == (96, 256, 96, 96)
        attention = [n for n in header.tensors if n.startswith("blk.3.attn")]
        assert bool(attention) == bool(lone)
        assert header.tensors["blk.1.ffn_down.weight"].shape == (64, 256)


def test_attention_free_blocks_have_no_kv_cache(tiny_folder, tmp_path):
    """By llama.cpp's own account, in the memory that is reported. A zero head of openelm costs half of two."""
    for family, mib in (("llama", 3.0), ("qwen3", 3.5)):
        whole = export(copy_of(tiny_folder(family), tmp_path / f"{family}-whole"), tmp_path / f"{family}-whole.gguf")
        path = export(cut(tiny_folder(family), tmp_path / family, HALVES), tmp_path / f"{family}.gguf")
        assert llamacpp.memory_breakdown(whole, KV_CELLS, 1)["kv_bytes"] == 5 << 20
        assert llamacpp.memory_breakdown(path, KV_CELLS, 1)["kv_bytes"] == mib * (1 << 20)


@pytest.mark.slow
def test_kv_cache_without_flash_attention(tiny_folder, tmp_path):
    """llama.cpp then keeps V transposed and as wide as the widest block's, everywhere; K is still saved."""
    path = export(cut(tiny_folder("llama"), tmp_path / "cut", HALVES), tmp_path / "m.gguf")
    _llama_log.clear()
    llamacpp.open_session(path, n_ctx=KV_CELLS, n_threads=1, precise=True).close()
    sizes = [re.findall(r"([KV]) \(f32\): +([\d.]+) MiB", line) for line in _llama_log.lines()]
    k, v = (float(mib) for _, mib in next(s for s in sizes if s))
    assert (k, v) == (3.0, 4.0)


def test_attention_only_blocks_are_not_dropped(tiny_folder, tmp_path):
    """deci with feed_forward_length 0 would silently compute the model without block 1's attention."""
    folder = cut(tiny_folder("llama"), tmp_path / "kept", "0 1:- 4")
    dropped, ids = cut(tiny_folder("llama"), tmp_path / "dropped", "0 4"), some_ids()
    path = export(folder, tmp_path / "m.gguf")
    assert difference(path, folder, ids) < 1e-4
    assert np.abs(llama_logits(path, ids) - torch_logits(dropped, ids)).max() > 0.05


@pytest.mark.parametrize("family, blocks, tied, words", [
    ("llama", "-:0 1-4", True, "attention in the first block"),
    ("mistral", "-:0 1-4", False, "attention in the first block"),
    ("qwen3", "0 1:- 2-4", False, "output matrix of its own"),
    ("gemma3", "0 1:- 2-4", True, "no architecture for gemma3"),
])  # fmt: skip
def test_what_llama_cpp_cannot_run_is_refused(tiny_folder, tmp_path, family, blocks, tied, words):
    """Before any work, naming what would be allowed, and the planner is told the same."""
    folder = cut(tiny_folder(family, tie_word_embeddings=tied), tmp_path / "cut", blocks)
    with pytest.raises(InputRejected, match=words) as e:
        exporter.check(folder, "Q4_0")
    assert "allowed are" in str(e.value) and "\n" not in str(e.value)
    n = len(list(read_blocks(blocks)))
    halves = [(a, f) for a, f in read_blocks(blocks)]
    assert refusal(load("edgeprune.families", family), "llamacpp", [True] * n, halves, tied) == str(e.value)
    assert refusal(load("edgeprune.families", family), "onnxruntime", [True] * n, halves, tied) is None


def read_blocks(text: str):
    from edgeprune.blocks import from_text

    return [(b.attn is not None, b.ffn is not None) for b in from_text(text)]


def test_attention_in_the_first_block_where_openelm_needs_none(tiny_folder, tmp_path):
    folder = cut(tiny_folder("qwen3"), tmp_path / "cut", "-:0 1 2:- 4")
    assert difference(export(folder, tmp_path / "m.gguf"), folder, some_ids()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_quantised_halves(tiny_folder, tmp_path, family):
    """What stands in for a half quantises without falling back, and stays zero; odd widths fall back and load."""
    sizes = dict(hidden_size=256, intermediate_size=352, head_dim=64)
    folder = cut(tiny_folder(family, **sizes), tmp_path / "cut", HALVES)
    ids, want = some_ids(48), torch_logits(folder, some_ids(48))
    errors = {}
    for quant in ("Q8_0", "Q6_K", "Q4_K_M", "Q4_0", "IQ4_XS", "Q2_K", "TQ1_0"):
        path = export(folder, tmp_path / f"{quant}.gguf", quant)
        errors[quant] = float(np.sqrt(np.mean((llama_logits(path, ids) - want) ** 2)))
        assert np.isfinite(errors[quant])
        if quant == "Q4_K_M":
            types = {n: t.type for n, t in read_header(path).tensors.items()}
            assert types["blk.1.ffn_down.weight"] in ("Q4_K", "Q6_K")  # 256 columns
            assert types["blk.0.ffn_down.weight"] not in ("Q4_K", "Q6_K")  # 352
    assert errors["Q8_0"] < errors["Q6_K"] < errors["Q4_K_M"] < errors["Q2_K"] < 2 * np.std(want)


def test_folder_that_says_a_half_is_missing_but_holds_it(tiny_folder, tmp_path):
    folder = copy_of(tiny_folder("llama"), tmp_path / "m")
    (folder / "edgeprune.json").write_text("{}")
    edit_json(folder / "edgeprune.json", kept="0 1:- 2 3 4")
    with pytest.raises(InputRejected, match="mlp.down_proj.weight is not zero"):
        exporter.check(folder, "F16")
