"""Scores through llama.cpp against torch's on the same weights, and against files that were really cut."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from _exported import export, llama_logits, some_ids
from _gguf_models import cut, recombined, rewritten, to_blocks, torch_logits, write_gguf
from _gguf_models import torch_model as other_model
from conftest import FAMILIES
from test_families_gguf import model as folder_of

from edgeprune import model, score_gguf, torch_model
from edgeprune.blocks import from_sublayers, from_text, kept_sublayers, to_text, whole, without_block
from edgeprune.calibration import default_text
from edgeprune.errors import InputRejected, UsageError
from edgeprune.runtimes import _llama_graph, _llama_streams
from edgeprune.score import Method
from edgeprune.work import Work

N = 5
WHOLE = kept_sublayers(whole(N))
# Whole blocks, seams, single halves; the first and the last sub-layer; the same beginning, and the same list twice.
TEXTS = ("0-4", "0-1 3-4", "0 1:3 4", "1-4", "0-3", "0 1:- -:3 4", "-:2", "0:1 4", "0-1 3-4")
LISTS = [kept_sublayers(from_text(text)) for text in TEXTS]


@pytest.fixture
def opened():
    """Factory: a GGUF opened for scoring, closed after the test."""
    models = []

    def open_one(path, arch=None):
        arch = arch or model.inspect(path).model_type
        models.append(score_gguf.open_model(path, arch, n_ctx=256, n_threads=1))
        return models[-1]

    yield open_one
    for m in models:
        m.close()


def torch_logits_of(m, kept, window) -> np.ndarray:
    """Torch's own forward pass of the model that has only these halves."""
    import torch

    with torch.inference_mode():
        return torch_model.view(m, from_sublayers(kept))(torch.tensor([window]), use_cache=False).logits[0].numpy()


def damage_of(whole_logits, logits, window, kind) -> np.ndarray:
    """Of every predicted token, in double precision."""
    import torch

    p, q = (torch.from_numpy(x)[:-1].double().log_softmax(-1).numpy() for x in (whole_logits, logits))
    return -q[np.arange(len(q)), window[1:]] if kind == "loss" else (np.exp(p) * (p - q)).sum(-1)


def block_influence_of(m, windows) -> list[float]:
    import torch

    norm, m.model.norm = m.model.norm, torch.nn.Identity()  # which transformers' last hidden state has behind it
    with torch.inference_mode():
        states = [m(torch.tensor([w]), output_hidden_states=True).hidden_states for w in windows]
    m.model.norm = norm
    joined = [torch.cat([h[0].double() for h in of_layer]) for of_layer in zip(*states, strict=True)]
    return [1 - torch.nn.functional.cosine_similarity(x, y, dim=-1).mean().item() for x, y in pairwise(joined)]


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_torch(family, tiny_folder, tmp_path, opened, monkeypatch):
    """Logits, damages and block influence, of windows that llama.cpp takes in one step and in several."""
    folder = folder_of(tiny_folder, tmp_path, family, n_blocks=N)
    path, m = export(folder, tmp_path / "m.gguf"), torch_model.load(folder)
    windows = [some_ids(60, 1), some_ids(41, 2)]
    wanted = [torch_logits_of(m, kept, windows[0]) for kept in LISTS]
    influence = block_influence_of(m, windows)
    assert min(np.abs(x).max() for x in wanted) > 0.5
    for step_tokens in (512, 16):
        monkeypatch.setattr(_llama_streams, "STEP_TOKENS", step_tokens)
        g = opened(path)
        for kept, want in zip(LISTS, wanted, strict=True):
            assert np.abs(g.logits(windows[0], kept) - want).max() < 1e-4, kept
        found = g.damage(LISTS, windows[0], ["kl", "loss"], 3)
        for kind, of_kind in zip(("kl", "loss"), found, strict=True):
            for want, segments in zip(wanted, of_kind, strict=True):
                parts = np.array_split(damage_of(wanted[0], want, windows[0], kind), 3)
                assert segments == pytest.approx([part.sum() for part in parts], abs=2e-4, rel=1e-4)
        assert score_gguf.block_influence(g, windows, Work()) == pytest.approx(influence, abs=1e-6)


def test_equals_the_file_that_is_cut(tiny_folder, tmp_path, opened):
    """The same arithmetic, so the same floats; and leaving nodes idle changes nothing but the time."""
    path, ids = export(tiny_folder("llama"), tmp_path / "m.gguf"), some_ids(60)
    g = opened(path)
    loss = g.damage(LISTS, ids, ["loss"])
    for idles in (True, False):
        g._idles = idles
        assert np.array_equal(g.damage(LISTS, ids, ["loss"]), loss)
        for blocks in (to_blocks(0, 2, 4), to_blocks(0, (1, 3), 4)):
            really = llama_logits(cut(path, blocks, tmp_path / f"{to_text(blocks)}{idles}.gguf"), ids)
            assert np.array_equal(g.logits(ids, kept_sublayers(blocks)), really)
    assert np.array_equal(g.logits(ids), llama_logits(path, ids))
    alone = [g.damage([kept], ids, ["loss"])[0, 0, 0] for kept in LISTS]
    assert alone == loss[0, :, 0].tolist()  # beginning from another list's stream gives what running all of it gives


def test_a_path_of_each_metric(tiny_folder, tmp_path):
    """Every step's damage is what torch says of its blocks; block 2 adds nothing, so it goes first at no damage."""
    folder = tiny_folder("llama", identity=2)
    path, m = export(folder, tmp_path / "m.gguf"), torch_model.load(folder)
    spec, text = model.inspect(path), tmp_path / "t.txt"
    text.write_text("the lazy dog and then the other quick one jumps over a brown fox " * 9)
    ids = torch_model.tokenizer(folder).encode(text.read_text(), add_special_tokens=False)
    windows = [ids[i : i + 24] for i in (0, len(ids) // 24 // 2 * 24)]
    assert {"block_influence", "perplexity", "kl_search", "sleb", "block_pruner"} <= set(score_gguf.metrics())
    for metric in score_gguf.metrics():
        found = score_gguf.score_gguf(
            path, spec, Method(metric, 1), files=[text], n_windows=2, context_tokens=24, n_threads=1
        )
        for step in found.path:
            logits = [[torch_logits_of(m, kept_sublayers(b), w) for w in windows] for b in (whole(5), step.blocks)]
            for kind, value in (("kl", step.kl), ("loss", math.log(step.perplexity))):
                tokens = [damage_of(p, q, w, kind) for p, q, w in zip(*logits, windows, strict=True)]
                assert value == pytest.approx(np.mean(tokens), abs=1e-5), metric
        if metric in ("block_influence", "kl_search"):
            assert to_text(found.path[1].blocks) == "0-1 3-4" and found.path[1].kl < 1e-6
    assert found.fingerprint == spec.fingerprint and "llama.cpp" in found.versions["llamacpp"]
    assert (found.text.tokens, found.text.stride_tokens) == (48, 24)


def test_perplexity_by_removal_equals_torchs(tiny_folder, tmp_path, opened):
    folder, windows = tiny_folder("qwen2"), [some_ids(30, 1), some_ids(20, 2)]
    path, m = export(folder, tmp_path / "m.gguf"), torch_model.load(folder)
    wanted = []
    for i in range(N):
        logits = [torch_logits_of(m, kept_sublayers(without_block(whole(N), i)), w) for w in windows]
        tokens = [damage_of(x, x, w, "loss") for x, w in zip(logits, windows, strict=True)]
        wanted.append(math.exp(np.concatenate(tokens).mean()))
    assert score_gguf.perplexity(opened(path), windows, Work()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("arch", ["cohere2", "qwen3moe"])
def test_architectures_without_a_family(arch, tmp_path, opened):
    """Files by gguf-py: halves side by side, experts. The graph itself shows where the stream is."""
    m, ids = other_model(arch, 6), some_ids(60)
    g = opened(write_gguf(m, arch, tmp_path / "m.gguf"), arch)
    cuts = [to_blocks(0, 1, 3, 5), to_blocks(1, 2, 3, 4)]
    if arch == "cohere2":
        assert g.sublayers == [("B", i) for i in range(6)]
        assert len(g.streams(ids)) == 7
        with pytest.raises(UsageError, match="block 1 has no stream between attention and feed-forward"):
            g.logits(ids, kept_sublayers(to_blocks(0, (1, 2), 3, 4, 5)))
    else:
        assert g.sublayers == kept_sublayers(whole(6))
        cuts.append(to_blocks(0, (1, 3), 4, 5))
    for blocks in cuts:
        want = torch_logits(recombined(m, arch, blocks), ids)
        assert np.abs(g.logits(ids, kept_sublayers(blocks)) - want).max() < 1e-4


def test_what_cannot_be_scored_is_refused(tiny_folder, tmp_path, opened):
    folder, ids = tiny_folder("llama"), some_ids(20)
    path = export(folder, tmp_path / "m.gguf")
    spec, g = model.inspect(path), opened(path)
    with pytest.raises(UsageError, match="taylor needs torch.*choose block_influence,"):
        score_gguf.score_gguf(path, spec, Method("taylor", 1), n_windows=1, context_tokens=16)
    for kept in ([("F", 0), ("A", 0)], [("A", 5)], [("A", 1), ("A", 1)]):
        with pytest.raises(UsageError, match="blocks 0 to 4, ascending"):
            g.logits(ids, kept)
    with pytest.raises(UsageError, match="300 tokens"):
        g.streams([1] * 300)
    with pytest.raises(InputRejected, match="has recurrent blocks"):
        opened(mamba(tmp_path / "mamba.gguf"), "mamba")
    infinite = {"blk.3.ffn_down.weight": np.full((64, 96), np.inf, np.float32)}
    g = opened(rewritten(path, tmp_path / "broken.gguf", {}, infinite))
    for ask in (lambda: g.damage([WHOLE], ids, ["kl"]), lambda: score_gguf.block_influence(g, [ids], Work())):
        with pytest.raises(InputRejected, match="block 3 gives values that are not finite"):
            ask()
    loss = g.damage([[half for half in WHOLE if half != gone] for gone in (("F", 3), ("A", 3))], ids, ["loss"])
    assert np.isfinite(loss).ravel().tolist() == [True, False]


def mamba(path):
    import gguf

    w, d = gguf.GGUFWriter(path, "mamba"), 32
    for key, value in {
        "context_length": 64, "embedding_length": d, "block_count": 1, "vocab_size": 320, "ssm.conv_kernel": 4,
        "ssm.inner_size": 2 * d, "ssm.state_size": 8, "ssm.time_step_rank": 4,
    }.items():  # fmt: skip
        w.add_uint32(f"mamba.{key}", value)
    w.add_float32("mamba.attention.layer_norm_rms_epsilon", 1e-5)
    w.add_string("tokenizer.ggml.model", "none")
    shapes = {
        "token_embd.weight": (320, d), "output_norm.weight": (d,), "blk.0.attn_norm.weight": (d,),
        "blk.0.ssm_in.weight": (4 * d, d), "blk.0.ssm_conv1d.weight": (2 * d, 4), "blk.0.ssm_conv1d.bias": (2 * d,),
        "blk.0.ssm_x.weight": (4 + 16, 2 * d), "blk.0.ssm_dt.weight": (2 * d, 4), "blk.0.ssm_dt.bias": (2 * d,),
        "blk.0.ssm_a": (2 * d, 8), "blk.0.ssm_d": (2 * d,), "blk.0.ssm_out.weight": (d, 2 * d),
    }  # fmt: skip
    for name, shape in shapes.items():
        w.add_tensor(name, np.zeros(shape, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def test_blocks_that_share_more_than_the_stream_are_refused():
    """A drawn graph: e, then blocks x + f(x). When block 1 also reads what block 0 keeps in a cache, none can go alone."""

    def graph(reads_cache: bool):
        made = [
            ("e", (), ("token_embd.weight",)), ("f0", ("e",), ("blk.0.w",)), ("kept0", ("f0",), ()), ("x0", ("e", "f0"), ()),
            ("f1", ("x0", "kept0") if reads_cache else ("x0",), ("blk.1.w",)), ("x1", ("x0", "f1"), ()), ("out", ("x1",), ()),
        ]  # fmt: skip
        at = {name: k for k, (name, *_) in enumerate(made)}
        nodes = [_llama_graph.Node(n, at[n], at[n], tuple(at[r] for r in reads), w, (4, 8), 16) for n, reads, w in made]
        return _llama_graph.find(nodes, 2, lambda tensor: ("B", int(tensor[4])) if tensor.startswith("blk.") else None)

    found = graph(reads_cache=False)
    assert [found.nodes[found.stream(k)].name for k in range(3)] == ["e", "x0", "x1"]
    assert [[found.nodes[k].name for k in s.idle] for s in found.sublayers] == [["f0", "kept0", "x0"], ["f1", "x1"]]
    with pytest.raises(InputRejected, match="blocks 0 to 1 share more than the stream"):
        graph(reads_cache=True)


def test_torch_is_never_imported(tiny_folder, tmp_path):
    path = export(tiny_folder("llama"), tmp_path / "m.gguf")
    code = (
        "import sys\nfrom pathlib import Path\nfrom edgeprune import model, score_gguf\nfrom edgeprune.score import Method\n"
        "path, options = Path(sys.argv[1]), dict(n_windows=1, context_tokens=16, n_threads=1)\n"
        "for metric in ('block_influence', 'perplexity', 'kl_search'):\n"
        "    score_gguf.score_gguf(path, model.inspect(path), Method(metric, 1), **options)\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "[]\n", done.stderr


@pytest.mark.slow
def test_a_real_model_as_it_is_and_dequantised(smollm2_gguf, smollm2_folder, opened, tmp_path):
    """On the same float32 weights llama.cpp and torch agree closely. On Q4_1, for which llama.cpp rounds activations to
    8 bits, block influence is within 1 % and damages within 0.06 nats per token, in the same order."""
    m, ids = torch_model.load(smollm2_folder), None
    blocks = to_blocks(*range(10), (10, 11), *range(12, 20), *range(22, 30))
    lists = [kept_sublayers(b) for b in (whole(30), without_block(whole(30), 29), without_block(whole(30), 12), blocks)]
    text = default_text("evaluation")[1][:2000]
    for path, close in ((smollm2_gguf, False), (export(smollm2_folder, tmp_path / "f32.gguf"), True)):
        g = opened(path)
        if ids is None:
            ids = g.tokenize(text)[:64]
            wanted = [torch_logits_of(m, kept, ids) for kept in lists]
            influence = block_influence_of(m, [ids])
        found = score_gguf.block_influence(g, [ids], Work())
        assert found == pytest.approx(influence, rel=1e-4 if close else 1e-2)
        assert np.argsort(found)[:8].tolist() == np.argsort(influence)[:8].tolist()
        for kind, damages in zip(("kl", "loss"), g.damage(lists, ids, ["kl", "loss"])[..., 0], strict=True):
            want = [damage_of(wanted[0], x, ids, kind).mean() for x in wanted]
            assert damages / (len(ids) - 1) == pytest.approx(want, abs=5e-4 if close else 0.06)
        really = llama_logits(cut(path, blocks, tmp_path / "cut.gguf"), ids)
        assert np.array_equal(g.logits(ids, lists[-1]), really)
        (tmp_path / "cut.gguf").unlink()
