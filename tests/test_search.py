"""The search engine against a brute force that builds every candidate and runs the whole model."""

from __future__ import annotations

import pytest
from conftest import FAMILIES, FAMILY_NAMES

from edgeprune import torch_model
from edgeprune.blocks import from_sublayers, is_portable, kept_sublayers, to_text, whole
from edgeprune.catalog import load
from edgeprune.errors import InputRejected
from edgeprune.metrics import _search
from edgeprune.metrics.block_pruner import single_halves
from edgeprune.metrics.greedy_kl import neighbours
from edgeprune.metrics.sleb import inner_blocks
from edgeprune.types import Block

SEARCHES = {"sleb": ("loss", inner_blocks), "block_pruner": ("loss", single_halves), "greedy_kl": ("kl", neighbours)}


PEERS = ("sleb", "block_pruner")
FAST = {("llama", "sleb"), ("llama", "greedy_kl"), ("gemma3", "greedy_kl"), ("qwen2", "block_pruner")}
CASES = [
    pytest.param(family, name, marks=() if (family, name) in FAST else pytest.mark.slow)
    for family in FAMILY_NAMES
    for name in SEARCHES
]


def quiet(*_args):
    pass


def random_windows() -> list[list[int]]:
    """Of two lengths, both longer than the tiny models' attention windows."""
    import random

    draw = random.Random(0)
    return [[draw.randrange(3, 300) for _ in range(n)] for n in (24, 32, 24)]


def measured(m, blocks, windows, kind) -> float:
    """Mean damage by transformers' own forward pass of a model that has only these blocks, in double precision."""
    import torch

    pruned, total, n = torch_model.view(m, blocks), 0.0, 0
    for w in windows:
        with torch.inference_mode():
            q = pruned(torch.tensor([w]), use_cache=False).logits[0, :-1].double().log_softmax(-1)
            p = m(torch.tensor([w]), use_cache=False).logits[0, :-1].double().log_softmax(-1)
        kl = (p.exp() * (p - q)).sum()
        total += (kl if kind == "kl" else -q.gather(1, torch.tensor(w)[1:, None]).sum()).item()
        n += len(w) - 1
    return total / n


def every_removal(name, kept):
    """What is left after each removal a search may choose, said here anew."""
    if name == "sleb":
        return [[half for half in kept if half[1] != i] for i in sorted({i for _, i in kept})[1:-1]]
    if name == "block_pruner":
        return [[half for half in kept if half != gone] for gone in kept]
    return [kept[:k] + kept[k + 2 :] for k in range(len(kept) - 1)]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_every_step_is_the_brute_forces(family, name, tiny_folder):
    """Two steps, so that the second starts from joined halves."""
    import torch

    kind, candidates = SEARCHES[name]
    m = torch_model.load(tiny_folder(family))
    windows = random_windows()
    with torch.inference_mode():
        search = _search.start(m, windows)
        kept = kept_sublayers(whole(5))
        for _ in range(2):
            after = every_removal(name, kept)
            brute = [measured(m, from_sublayers(halves), windows, kind) for halves in after]
            cut, damage = _search.least_damaging(search, candidates(kept), getattr(_search, kind), quiet)
            best = min(range(len(brute)), key=brute.__getitem__)
            search = _search.without(search, cut)
            assert search.kept == after[best]
            assert damage == pytest.approx(brute[best], abs=1e-5)
            kept = search.kept


@pytest.mark.parametrize("family", FAMILIES)
def test_halves_run_alone_make_up_the_layer(family, tiny_folder):
    import torch

    m = torch_model.load(tiny_folder(family))
    with torch.inference_mode():
        search = _search.start(m, [list(range(3, 40))])
        everything = _search._run(search, 0, search.kept, search.streams[0][0])
        assert everything.equal(search.whole[0])


def test_an_identity_block_and_an_identity_seam_go_first(tiny_folder):
    folder = tiny_folder("llama", identity=2)
    m = torch_model.load(folder)
    path = load("edgeprune.metrics", "greedy_kl").path(m, random_windows(), 1, quiet)
    assert to_text(path[1]) == "0-1 3-4"
    seam = torch_model.load(tiny_folder("llama"))
    seam.model.layers[1].mlp.down_proj.weight.zero_()
    seam.model.layers[2].self_attn.o_proj.weight.zero_()
    path = load("edgeprune.metrics", "greedy_kl").path(seam, random_windows(), 1, quiet)
    assert path[1] == (Block(attn=0, ffn=0), Block(attn=1, ffn=2), Block(attn=3, ffn=3), Block(attn=4, ffn=4))


@pytest.mark.parametrize("name", SEARCHES)
def test_paths_are_nested_and_end_where_nothing_may_go(name, tiny_folder):
    m = torch_model.load(tiny_folder("llama"))
    path = load("edgeprune.metrics", name).path(m, random_windows()[:2], 99, quiet)
    kept = [kept_sublayers(blocks) for blocks in path]
    assert kept[0] == kept_sublayers(whole(5))
    for before, after in zip(kept, kept[1:], strict=False):
        assert set(after) < set(before)
        assert len(before) - len(after) == (1 if name == "block_pruner" else 2)
    assert len(kept[-1]) == {"sleb": 4, "block_pruner": 1, "greedy_kl": 2}[name]
    assert name == "block_pruner" or all(is_portable(blocks) for blocks in path)
    assert name != "sleb" or to_text(path[-1]) == "0 4"


@pytest.mark.parametrize("name", ["greedy_kl", *(pytest.param(n, marks=pytest.mark.slow) for n in PEERS)])
def test_dropping_hopeless_cuts_and_storing_less_change_nothing(name, tiny_folder):
    """And hopeless cuts are dropped: fewer candidates are run."""
    kind, candidates = SEARCHES[name]
    m = torch_model.load(tiny_folder("gemma3"))
    windows = random_windows()
    runs, paths = [], []
    for options in ({}, {"early_stop": False}, {"cache_bytes": 1}, {"cache_bytes": 200_000}):
        seen = []

        def counting(*args, seen=seen):
            judge = getattr(_search, kind)(*args)
            return lambda stream: seen.append(1) or judge(stream)

        paths.append(_search.greedy(m, windows, 2, quiet, candidates=candidates, damage=counting, **options))
        runs.append(len(seen))
    assert paths[0] == paths[1] == paths[2] == paths[3]
    assert runs[0] <= runs[1] and (kind == "loss" or runs[0] < runs[1])


def test_the_model_is_left_as_it_was(tiny_folder):
    import torch

    m = torch_model.load(tiny_folder("gemma3"))
    tokens = torch.tensor([list(range(3, 40))])
    before, children = m(tokens).logits, [list(layer._modules) for layer in m.model.layers]
    load("edgeprune.metrics", "greedy_kl").path(m, tokens.tolist(), 2, quiet)
    assert m(tokens).logits.equal(before)
    assert [list(layer._modules) for layer in m.model.layers] == children


def test_progress_rises_to_its_end(tiny_folder):
    m = torch_model.load(tiny_folder("llama", n_blocks=3))
    told = []
    load("edgeprune.metrics", "greedy_kl").path(m, [list(range(3, 30))] * 2, 2, lambda *a: told.append(a))
    assert told == sorted(told) and told[-1] == (200, 200)


@pytest.mark.parametrize("name", SEARCHES)
def test_weights_that_are_not_finite_are_refused(name, tiny_folder):
    m = torch_model.load(tiny_folder("llama"))
    m.model.layers[3].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(InputRejected, match="not finite"):
        load("edgeprune.metrics", name).path(m, [list(range(3, 30))], 2, quiet)
