"""GGUF cuts against torch, against an independent writer's file of the same blocks, and against llama.cpp's own pruning."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from _gguf_models import (
    MODELS,
    contents,
    cut,
    llama_logits,
    prune_layers,
    recombined,
    rewritten,
    some_ids,
    to_blocks,
    torch_logits,
    torch_model,
    write_gguf,
)
from _shapes import plan_for

from edgeprune import export, gguf_prune, model, prune
from edgeprune.errors import InputRejected, UsageError, WrongWeights
from edgeprune.gguf_file import read_header

WHOLE_LAYERS = to_blocks(0, 2, 4)
SEAM = to_blocks(0, (1, 3), 4)


@pytest.fixture(scope="module")
def tiny_gguf(tiny_folder, tmp_path_factory):
    """Factory: the F32 GGUF our exporter writes of a tiny folder."""
    made = {}

    def make(family: str):
        if family not in made:
            folder = tiny_folder(family)
            path = tmp_path_factory.mktemp("gguf") / f"{family}.gguf"
            export.export(folder, "gguf", "F32", path, verify=False)
            made[family] = folder, path
        return made[family]

    return make


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_equals_the_export_of_the_pruned_folder(family, tiny_gguf, tmp_path):
    """Tensors and metadata to the byte, whole layers and seams; logits those of torch."""
    import torch
    from transformers import AutoModelForCausalLM

    folder, whole = tiny_gguf(family)
    spec, ids = model.inspect(folder), some_ids()
    for blocks in (WHOLE_LAYERS, SEAM):
        name = str(len({b.ffn for b in blocks} & {3}))
        ours = cut(whole, blocks, tmp_path / f"{name}.gguf")
        pruned = tmp_path / f"pruned{name}"
        prune.prune(folder, spec, plan_for(spec, blocks), pruned, base_model="tiny", command="edgeprune prune")
        theirs = tmp_path / f"theirs{name}.gguf"
        export.export(pruned, "gguf", "F32", theirs, verify=False)
        (keys, tensors), (want_keys, want_tensors) = contents(ours), contents(theirs)
        assert tensors == want_tensors
        kept = {k: v for k, v in keys.items() if not k.startswith(("general.", "edgeprune."))}
        assert kept == {k: v for k, v in want_keys.items() if not k.startswith(("general.", "edgeprune."))}
        assert keys["general.size_label"] == want_keys["general.size_label"]
        assert keys["edgeprune.kept"][1] == want_keys["edgeprune.kept"][1]
        with torch.inference_mode():
            want = (
                AutoModelForCausalLM.from_pretrained(pruned, dtype=torch.float32)(torch.tensor([ids])).logits[0].numpy()
            )
        assert np.abs(llama_logits(ours, ids) - want).max() < 1e-5


def arch_cases():
    fast = ("gemma3",)
    return [pytest.param(a, marks=() if a in fast else pytest.mark.slow) for a in MODELS]


@pytest.mark.parametrize("arch", arch_cases())
def test_equals_an_independent_file_of_the_kept_blocks(arch, tmp_path):
    """gguf-py's writer given the recombined torch model, windows spelt out: same tensors, same logits."""
    whole, ids = torch_model(arch, 8), some_ids()
    source = write_gguf(whole, arch, tmp_path / "whole.gguf")
    cuts = [to_blocks(0, 1, 3, 4, 6, 7)] + [to_blocks(0, (1, 3), 4, (5, 7))] * (arch != "cohere2")
    for i, blocks in enumerate(cuts):
        kept = recombined(whole, arch, blocks)
        windows = [t == "sliding_attention" for t in getattr(kept.config, "layer_types", None) or []]
        pattern = {f"{arch}.attention.sliding_window_pattern": windows} if any(windows) else {}
        theirs = write_gguf(kept, arch, tmp_path / f"theirs{i}.gguf", pattern)
        ours = cut(source, blocks, tmp_path / f"ours{i}.gguf")
        assert contents(ours)[1] == contents(theirs)[1]
        found = llama_logits(ours, ids)
        assert np.abs(found - llama_logits(theirs, ids)).max() < 1e-5
        if arch != "apertus":  # whose graph in llama.cpp and in transformers differ, whole or cut
            # llama.cpp looks GELU up in a float16 table, which Gemma's logits of up to 5 show
            assert np.abs(found - torch_logits(kept, ids)).max() < (2e-2 if arch.startswith("gemma") else 1e-5)


def test_windows_stay_with_their_attention_where_prune_layers_moves_them(tmp_path):
    """Dropping layer 1 of a gemma2 turns every later window around in llama-quantize's file, not in ours."""
    whole, ids = torch_model("gemma2", 6), some_ids()
    source, blocks = write_gguf(whole, "gemma2", tmp_path / "w.gguf"), to_blocks(0, 2, 3, 4, 5)
    want = torch_logits(recombined(whole, "gemma2", blocks), ids)
    ours, theirs = cut(source, blocks, tmp_path / "o.gguf"), prune_layers(source, [1], tmp_path / "t.gguf")
    assert read_header(ours).metadata["gemma2.attention.sliding_window_pattern"] == (True, True, False, True, False)
    assert contents(ours)[1] == contents(theirs)[1]
    assert np.abs(llama_logits(ours, ids) - want).max() < 2e-2 < np.abs(llama_logits(theirs, ids) - want).max()


def deci_of(llama, out, widths, heads):
    """A deci with a feed-forward width and a number of query heads per block, made of a llama's first rows."""
    head_dim, tensors = 16, {}
    for t in read_tensors(llama):
        part = t.name.split(".")
        if part[0] == "blk":
            w, q = widths[int(part[1])], heads[int(part[1])] * head_dim
            if part[2] in ("ffn_gate", "ffn_up"):
                tensors[t.name] = t.data[:w]
            elif part[2] == "ffn_down":
                tensors[t.name] = t.data[:, :w]
            elif part[2] == "attn_q":
                tensors[t.name] = t.data[:q]
            elif part[2] == "attn_output":
                tensors[t.name] = t.data[:, :q]
    old = [k for k in contents(llama)[0] if k.startswith("llama.")]
    values = {k.replace("llama.", "deci."): contents(llama)[0][k][1] for k in old}
    values |= {"deci.feed_forward_length": widths, "deci.attention.head_count": heads}
    values |= {"deci.attention.head_count_kv": [2] * len(widths)}
    return rewritten(llama, out, {**dict.fromkeys(old), "general.architecture": "deci", **values}, tensors)


def read_tensors(path):
    import gguf

    return gguf.GGUFReader(path).tensors


def test_per_block_arrays_follow_their_halves_where_prune_layers_fails(tiny_gguf, tmp_path):
    """https://github.com/ggml-org/llama.cpp/issues/27976: its file keeps the arrays of the whole model and does not load."""
    llama, ids = tiny_gguf("llama")[1], some_ids()
    widths, heads = [96, 64, 32, 96, 64], [4, 2, 4, 2, 4]
    whole = deci_of(llama, tmp_path / "deci.gguf", widths, heads)
    spec = model.inspect(whole)
    assert [b.ffn.tensors["ffn_up.weight"][0] for b in spec.blocks] == widths and spec.family == "deci"
    ours = cut(whole, WHOLE_LAYERS, tmp_path / "o.gguf")
    kept = cut(llama, WHOLE_LAYERS, tmp_path / "llama.gguf")
    theirs = deci_of(kept, tmp_path / "t.gguf", [widths[i] for i in (0, 2, 4)], [heads[i] for i in (0, 2, 4)])
    assert contents(ours)[1] == contents(theirs)[1]
    assert np.array_equal(llama_logits(ours, ids), llama_logits(theirs, ids))
    seam = read_header(cut(whole, SEAM, tmp_path / "s.gguf")).metadata
    assert seam["deci.attention.head_count"] == (4, 2, 4) and seam["deci.feed_forward_length"] == (96, 96, 64)
    with pytest.raises(InputRejected, match="wrong array length"):
        llama_logits(prune_layers(whole, [1, 3], tmp_path / "bad.gguf"), ids)


def test_blocks_without_a_half_become_deci(tiny_gguf, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    folder, whole = tiny_gguf("llama")
    ours = cut(whole, to_blocks(0, (1, None), (2, None), (None, 3), 4), tmp_path / "o.gguf")
    want = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for i in (1, 2):
            want.model.layers[i].mlp.down_proj.weight.zero_()
        want.model.layers[3].self_attn.o_proj.weight.zero_()
    ids = some_ids()
    assert np.abs(llama_logits(ours, ids) - torch_logits(want, ids)).max() < 1e-5
    spec = model.inspect(ours)
    assert [b.kv_elements_per_token for b in spec.blocks] == [64, 64, 64, 0, 64]
    again = cut(ours, to_blocks(0, (1, 3), 4), tmp_path / "again.gguf")  # a deci is cut like any other
    assert contents(again)[1] == contents(cut(whole, SEAM, tmp_path / "seam.gguf"))[1]
    with pytest.raises(InputRejected, match="first block"):
        cut(whole, to_blocks((None, 0), 1), tmp_path / "no.gguf")
    with pytest.raises(InputRejected, match="qwen2"):
        cut(tiny_gguf("qwen2")[1], to_blocks(0, (1, None), 2), tmp_path / "no.gguf")
    assert not (tmp_path / "no.gguf").exists()


def test_split_files_are_one_model(tmp_path):
    whole = torch_model("olmo2", 4)
    single = write_gguf(whole, "olmo2", tmp_path / "m.gguf")
    write_gguf(whole, "olmo2", tmp_path / "s.gguf", split_tensors=20)
    parts = sorted(tmp_path.glob("s-*.gguf"))
    spec, blocks = model.inspect(parts[1]), to_blocks(0, (1, 2), 3)
    assert len(parts) == 3 and spec.name == "s"
    assert spec.fingerprint == model.inspect(single).fingerprint
    ours, want = cut(parts[2], blocks, tmp_path / "o.gguf"), cut(single, blocks, tmp_path / "w.gguf")
    assert contents(ours)[1] == contents(want)[1]
    assert not [k for k in contents(ours)[0] if k.startswith("split.")]
    assert np.array_equal(llama_logits(parts[2], some_ids()), llama_logits(single, some_ids()))


REFUSED = {
    "unknown array": ({"olmo2.attention.new_thing": [1, 2, 3, 4]}, "new_thing is an array"),
    "array of another length": ({"olmo2.feed_forward_length": [96] * 3}, "feed_forward_length"),
    "multi-token prediction": ({"olmo2.nextn_predict_layers": 1}, "nextn_predict_layers is 1"),
    "shared keys and values": ({"olmo2.attention.shared_kv_layers": 2}, "shared_kv_layers"),
    "expert steps": ({"olmo2.interleave_moe_layer_step": 2}, "interleave_moe_layer_step"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_is_refused(case, tmp_path):
    extra, words = REFUSED[case]
    source = write_gguf(torch_model("olmo2", 4), "olmo2", tmp_path / "m.gguf", extra)
    with pytest.raises(InputRejected, match=words) as e:
        cut(source, to_blocks(0, 2, 3), tmp_path / "o.gguf")
    assert "\n" not in str(e.value) and not (tmp_path / "o.gguf").exists()


def test_architectures_whose_blocks_depend_on_their_place(tiny_gguf, tmp_path):
    llama = tiny_gguf("llama")[1]
    old = {k: v[1] for k, v in contents(llama)[0].items() if k.startswith("llama.")}

    def as_arch(name, **more):
        values = {k.replace("llama.", f"{name}."): v for k, v in old.items()} | more
        out = tmp_path / f"{name}.gguf"
        return rewritten(llama, out, {**dict.fromkeys(old), "general.architecture": name, **values})

    smollm3 = as_arch("smollm3")  # every fourth block does not rotate
    with pytest.raises(InputRejected, match="cuts of 4 neighbouring layers"):
        cut(smollm3, to_blocks(0, 1, 3, 4), tmp_path / "o.gguf")
    cut(smollm3, to_blocks(0), tmp_path / "last.gguf")
    with pytest.raises(InputRejected, match="residual_scale"):
        cut(as_arch("minicpm"), WHOLE_LAYERS, tmp_path / "o.gguf")
    with pytest.raises(InputRejected, match="side by side; allowed are cuts of whole layers"):
        cut(as_arch("phi2"), SEAM, tmp_path / "o.gguf")
    mamba = as_arch("grok")
    assert model.inspect(mamba).family == "grok"  # inspected and planned for, not cut
    with pytest.raises(InputRejected, match="what grok takes from a block's position"):
        cut(mamba, WHOLE_LAYERS, tmp_path / "o.gguf")


def test_a_tensor_of_no_half_is_refused(tiny_gguf, tmp_path):
    odd = rewritten(tiny_gguf("llama")[1], tmp_path / "m.gguf", {}, {"blk.1.laurel_l.weight": np.zeros(4, "f4")})
    with pytest.raises(InputRejected, match="laurel_l.weight' is neither attention nor feed-forward"):
        model.inspect(odd)


def test_other_weights_existing_output_and_a_full_disk(tiny_gguf, tmp_path):
    source, out = tiny_gguf("llama")[1], tmp_path / "o.gguf"
    spec = model.inspect(source)
    with pytest.raises(WrongWeights):
        plan = plan_for(spec, WHOLE_LAYERS).model_copy(update={"fingerprint": "0" * 64})
        gguf_prune.prune_gguf(source, spec, plan, out, base_model="tiny")
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="--force"):
        cut(source, WHOLE_LAYERS, out)
    assert out.read_bytes() == b"mine"
    (tmp_path / "plan.json").write_text(plan_for(spec, WHOLE_LAYERS).to_json())
    code = (  # no file may grow past 64 kB
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\nfrom edgeprune.cli import main\nmain()\n"
    )
    done = run(code, ["prune", source, "--plan", tmp_path / "plan.json", "-o", tmp_path / "full.gguf"])
    assert done.returncode == 6 and "no space left" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.gguf", "plan.json"]


def run(code, args):
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)


def test_the_command_needs_no_torch(tiny_gguf, tmp_path):
    source = tiny_gguf("qwen3")[1]
    (tmp_path / "plan.json").write_text(plan_for(model.inspect(source), SEAM).to_json())
    code = (
        "import sys\nfrom edgeprune.cli import main\ntry:\n    main()\nfinally:\n"
        "    print([m for m in ('torch', 'transformers', 'llama_cpp') if m in sys.modules], file=sys.stderr)\n"
    )
    args = ["prune", source, "--plan", tmp_path / "plan.json", "-o", tmp_path / "o.gguf", "--json"]
    done = run(code, args)
    assert done.returncode == 0 and done.stderr.rstrip().endswith("[]"), done.stderr
    assert json.loads(done.stdout)["n_blocks"] == 3
    assert contents(tmp_path / "o.gguf")[1] == contents(cut(source, SEAM, tmp_path / "same.gguf"))[1]


@pytest.mark.slow
def test_a_real_quantised_model_equals_llama_cpps_own_pruning(smollm2_gguf, tmp_path):
    gone = [9, 10, 11, 20]
    blocks = to_blocks(*(i for i in range(30) if i not in gone))
    ours = cut(smollm2_gguf, blocks, tmp_path / "o.gguf")
    theirs = prune_layers(smollm2_gguf, gone, tmp_path / "t.gguf")
    (keys, tensors), (want_keys, want_tensors) = contents(ours), contents(theirs)
    assert tensors == want_tensors and {t[0] for t in tensors.values()} == {"F32", "Q4_1", "Q8_0"}
    changed = {k for k in keys | want_keys if keys.get(k) != want_keys.get(k) and not k.startswith("edgeprune.")}
    assert changed <= {"general.name", "general.size_label", "general.file_type", "general.quantization_version"}
    assert read_header(ours).metadata["general.file_type"] == read_header(smollm2_gguf).metadata["general.file_type"]
    ids = some_ids(8)
    assert np.array_equal(llama_logits(ours, ids), llama_logits(theirs, ids))
