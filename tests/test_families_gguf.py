"""Every family, whole and pruned, to GGUF: against llama.cpp's converter, and against torch through llama.cpp.

Gemma's gates are made large here. llama.cpp looks GELU up in a table of 16-bit floats (ggml-cpu/vec.h) for |x| < 10, which
alone moves logits by 1e-2; past 10 it is exact, so everything else can be held to 1e-4.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from _exported import (
    assert_same,
    bfloat16,
    contents,
    convert,
    copy_of,
    cut,
    difference,
    edit_json,
    edit_weights,
    export,
    llama_logits,
    needs_converter,
    some_ids,
    torch_logits,
    torch_model,
)
from conftest import FAMILIES, FAMILY_NAMES
from test_exporter_gguf_tokenizer import sentencepiece_folder

from edgeprune import families
from edgeprune.blocks import from_text
from edgeprune.catalog import load
from edgeprune.errors import InputRejected
from edgeprune.gguf_file import read_header
from edgeprune.runtimes import llamacpp
from exporters import gguf as exporter


def model(tiny_folder, out: Path, family: str, **overrides) -> Path:
    """A copy under a plain name: llama.cpp's tokenizer takes hints from "phi3" in a model's name."""
    n_blocks = overrides.pop("n_blocks", 9 if hasattr(load("edgeprune.families", family), "NOPE_EVERY") else 5)
    folder = copy_of(tiny_folder(family, n_blocks, **overrides), out / "model")
    if families.decoder(json.loads((folder / "config.json").read_text())).activation == "gelu_tanh":
        edit_weights(folder, lambda name, x: x * 1000 if "gate_proj" in name else x)
    return folder


def plans(family: str) -> dict[str, str]:
    if hasattr(load("edgeprune.families", family), "NOPE_EVERY"):  # four neighbours, so that NoPE stays in place
        return {"layers": "0-1 6-8", "seam": "0 1:5 6-8", "irregular": "0 2:- 3:- -:4 6 8:-"}
    return {"layers": "0-1 4", "seam": "0 1:3 4", "irregular": "0 2:- 3:- -:4 4:-"}


def held(family: str, blocks: str, folder: Path) -> str | None:
    module, d = load("edgeprune.families", family), families.decoder(json.loads((folder / "config.json").read_text()))
    kept = from_text(blocks)
    rotates = [b.attn is None or d.ropes[b.attn] is not None for b in kept]
    return families.refusal(
        module, "llamacpp", rotates, [(b.attn is not None, b.ffn is not None) for b in kept], d.tied
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_torch(tiny_folder, tmp_path, family):
    """Whole and with each kind of cut; what llama.cpp can't run is refused, by the rule the planner asks."""
    folder, ids = model(tiny_folder, tmp_path, family), some_ids(200)
    assert difference(export(folder, tmp_path / "m.gguf"), folder, ids) < 1e-4
    for kind, blocks in plans(family).items():
        pruned = cut(folder, tmp_path / kind, blocks)
        reason = held(family, blocks, folder)
        if reason:
            assert kind == "irregular" and "allowed" in reason
            with pytest.raises(InputRejected) as e:
                exporter.check(pruned, "F16")
            assert str(e.value) == reason
            continue
        path = export(pruned, tmp_path / f"{kind}.gguf")
        assert difference(path, pruned, ids) < 1e-4, blocks
    assert sum(p.suffix == ".gguf" for p in tmp_path.iterdir()) == (3 if reason else 4)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_greedy_generation_and_reload(tiny_folder, tmp_path, family):
    """64 tokens with a cache, past the windows; a model saved again by transformers exports to the same bytes."""
    import torch

    whole, prompt = model(tiny_folder, tmp_path, family), some_ids(24)
    blocks = next(b for b in reversed(plans(family).values()) if not held(family, b, whole))
    folder = cut(whole, tmp_path / "pruned", blocks)
    path, torch_one = export(folder, tmp_path / "m.gguf"), torch_model(folder)
    with torch.no_grad():
        want = torch_one.generate(
            torch.tensor([prompt]), max_new_tokens=64, min_new_tokens=64, do_sample=False, eos_token_id=-1
        )[0].tolist()
    session = llamacpp.open_session(path, n_ctx=128, n_threads=1, precise=True)
    token, out = int(session.prefill(prompt).argmax()), list(prompt)
    for _ in range(64):
        out.append(token)
        token = int(session.decode(token).argmax())
    session.close()
    assert out == want
    again = copy_of(folder, tmp_path / "again")
    (again / "model.safetensors").unlink()
    torch_one.save_pretrained(again)
    assert contents(export(again, tmp_path / "again.gguf"))[1] == contents(path)[1]


@pytest.mark.slow
@needs_converter
def test_equal_llama_cpps_converter(tiny_folder, tmp_path):
    """Every tensor byte, every metadata key and type: each family whole in float32, and pruned in bfloat16."""
    spm = sentencepiece_folder(tiny_folder, tmp_path / "spm")
    jobs, pairs = [], []
    for family in FAMILY_NAMES:
        scale = {"query_pre_attn_scalar": 16} if "gemma" in family else {}  # theirs holds for the released sizes only
        whole = model(tiny_folder, tmp_path / family, family, vocab_size=512, **scale)
        if family in ("gemma2", "gemma3", "phi3"):  # whose converters want SentencePiece
            for name in ("tokenizer.json", "chat_template.jinja"):
                (whole / name).unlink()
            for name in ("tokenizer.model", "tokenizer_config.json"):
                shutil.copy(spm / name, whole)
            edit_json(whole / "tokenizer_config.json", add_prefix_space=None if family == "phi3" else False)
        pruned = cut(whole, whole.parent / "pruned", plans(family)["layers"])
        half = bfloat16(pruned, whole.parent / "half")
        if "head_dim" not in load("edgeprune.families", family).DEFAULTS:  # as released models leave it out
            edit_json(half / "config.json", head_dim=None)
        for folder, quants in ((whole, ("F32", "Q8_0")), (half, ("F16", "BF16"))):
            for quant in quants:
                theirs = folder.parent / f"{folder.name}-{quant}.gguf"
                jobs.append((folder, theirs, quant, "gpt-2"))
                pairs.append((folder, quant, theirs))
    convert(jobs)
    for folder, quant, theirs in pairs:
        assert_same(export(folder, folder.parent / "ours.gguf", quant), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
@pytest.mark.parametrize("layers", ["sf", "ss", "ff"])
@pytest.mark.parametrize("swa_full", [False, True])
def test_windows_by_block(tiny_folder, tmp_path, monkeypatch, family, layers, swa_full):
    """Written for each block, not taken from its position: past the window too, with either size of cache."""
    types = [{"s": "sliding_attention", "f": "full_attention"}[x] for x in layers]
    folder = model(tiny_folder, tmp_path, family, n_blocks=2, layer_types=types, sliding_window=16)
    params = llamacpp.context_params

    def with_cache(*args, **more):
        out = params(*args, **more)
        out.swa_full = swa_full
        return out

    monkeypatch.setattr(llamacpp, "context_params", with_cache)
    path = export(folder, tmp_path / "m.gguf")
    metadata = read_header(path, arrays=True).metadata
    assert metadata[f"{family}.context_length"] == 512
    if "s" in layers:
        assert metadata[f"{family}.attention.sliding_window_pattern"] == tuple(x == "s" for x in layers)
    assert difference(path, folder, some_ids(120)) < 1e-4


WIDE = dict(hidden_size=64, head_dim=32)  # 4 heads of 32 where hidden / heads is 16, as 27B has 128 and 144 or 168
SCALED = {
    "gemma2 27B, whole": ("gemma2", 46, 16, WIDE),
    "gemma2 27B, pruned": ("gemma2", 4, 16, WIDE),
    "gemma3, pruned to the 62 of 27B": ("gemma3", 62, 32, WIDE),
    "gemma3 27B, pruned": ("gemma3", 4, 16, WIDE),
    "any other": ("gemma3", 4, 7, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SCALED)
def test_the_scale_of_scores_is_not_taken_from_the_number_of_blocks(tiny_folder, tmp_path, case):
    family, n, scalar, sizes = SCALED[case]
    types = ["full_attention" if i % 3 == 2 else "sliding_attention" for i in range(n)]
    folder = model(tiny_folder, tmp_path, family, n_blocks=n, layer_types=types, query_pre_attn_scalar=scalar, **sizes)
    idle = tuple(f"layers.{i}.{x}" for i in range(4, n) for x in ("self_attn.o_proj", "mlp.down_proj"))
    edit_weights(folder, lambda name, x: x * 0 if any(part in name for part in idle) else x)
    assert difference(export(folder, tmp_path / "m.gguf"), folder, some_ids(64)) < 1e-4


LONG = dict(
    rope_type="longrope", rope_theta=10000.0,
    long_factor=[1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0], short_factor=[1.0, 1.0, 1.1, 1.1, 1.2, 1.2, 1.3, 1.3],
)  # fmt: skip
TRAITS = {
    "phi3 longrope, past the original context": ("phi3", dict(rope_parameters=LONG, original_max_position_embeddings=64)),
    "phi3 longrope, within it": ("phi3", dict(rope_parameters=LONG, original_max_position_embeddings=512)),
    "phi3 partial rotary": ("phi3", dict(rope_parameters=dict(rope_theta=1e4, partial_rotary_factor=0.5))),
    "phi3 tied": ("phi3", dict(tie_word_embeddings=True)),
    "olmo2 tied": ("olmo2", dict(tie_word_embeddings=True)),
    "olmo2 fewer key heads": ("olmo2", dict(num_key_value_heads=1, rope_theta=500000.0)),
    "gemma3 rotations": ("gemma3", dict(rope_parameters=dict(
        full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
        sliding_attention=dict(rope_type="default", rope_theta=5e3),
    ))),
    "gemma3 capped logits": ("gemma3", dict(final_logit_softcapping=3.0)),
    "gemma2 other caps and base": ("gemma2", dict(
        final_logit_softcapping=3.0, attn_logit_softcapping=2.0, rope_parameters=dict(rope_type="default", rope_theta=5e3),
    )),
    "granite llama3": ("granite", dict(rope_parameters=dict(
        rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64,
    ))),
    "granite biases": ("granite", dict(attention_bias=True, mlp_bias=True)),
    "smollm3 yarn": ("smollm3", dict(rope_parameters=dict(
        rope_type="yarn", rope_theta=5e3, factor=4.0, original_max_position_embeddings=64,
    ))),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAITS)
def test_traits(tiny_folder, tmp_path, case):
    family, overrides = TRAITS[case]
    folder = model(tiny_folder, tmp_path, family, **overrides)
    assert difference(export(folder, tmp_path / "m.gguf"), folder, some_ids(200)) < 1e-4


REFUSED = {
    "gemma3 capped scores": ("gemma3", dict(attn_logit_softcapping=50.0), "cap on attention"),
    "gemma2 uncapped scores": ("gemma2", dict(attn_logit_softcapping=None), "cap on attention"),
    "gemma3 yarn with windows": ("gemma3", dict(rope_parameters=dict(
        full_attention=dict(rope_type="yarn", factor=4.0, rope_theta=1e6), sliding_attention=dict(rope_theta=1e4),
    )), "yarn"),
    "gemma3 encoder": ("gemma3", dict(use_bidirectional_attention=True), "bidirectional"),
    "two activations": ("gemma2", dict(hidden_activation="silu"), "hidden_act"),
    "qwen2 narrow heads": ("qwen2", dict(head_dim=8), "q_proj|heads of 8"),
    "llama3 rope in qwen2": ("qwen2", dict(rope_parameters=dict(rope_type="llama3", rope_theta=1e4)), "llama3"),
    "phi3 factors of another size": ("phi3", dict(rope_parameters=dict(LONG, long_factor=[1.0])), "long_factor"),
    "smollm3 NoPE elsewhere": ("smollm3", dict(no_rope_layers=[1, 0] + [1] * 7), "block 1"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_any_work(tiny_folder, tmp_path, case):
    family, config, word = REFUSED[case]
    folder = model(tiny_folder, tmp_path, family)
    edit_json(folder / "config.json", **config)
    with pytest.raises(InputRejected, match=word) as e:
        exporter.check(folder, "F16")
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_gelu_is_off_by_llama_cpps_rounding_only(tiny_folder, tmp_path):
    """With ordinary gates: no further from torch than a few times what 16-bit GELU does to torch itself."""
    import torch

    folder, ids = copy_of(tiny_folder("gemma3"), tmp_path / "model"), some_ids(120)
    exact, rounded = torch_model(folder), torch_model(folder)
    for layer in rounded.model.layers:
        layer.mlp.act_fn.forward = lambda x: (
            torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        )
    with torch.no_grad():
        want, other = (m(torch.tensor([ids])).logits[0].numpy() for m in (exact, rounded))
    found = llama_logits(export(folder, tmp_path / "m.gguf"), ids)
    assert np.abs(found - want).max() < 4 * np.abs(other - want).max() < 0.2
    assert np.abs(found - torch_logits(folder, ids)).mean() < 2e-3
