"""The searches against a brute force that builds every candidate and runs the whole model."""

from __future__ import annotations

import pytest
from conftest import FAMILIES, FAMILY_NAMES

from edgeprune import model, score, torch_model
from edgeprune.blocks import from_sublayers, is_portable, kept_sublayers, to_text, whole
from edgeprune.calibration import Windows
from edgeprune.catalog import load
from edgeprune.errors import InputRejected
from edgeprune.metrics import _halves, _race, _search, _sweep
from edgeprune.types import Block, Text
from edgeprune.work import Work

SEARCHES = ("sleb", "block_pruner", "kl_search")
FAST = {("llama", "sleb"), ("llama", "kl_search"), ("gemma3", "kl_search"), ("qwen2", "block_pruner")}
CASES = [
    pytest.param(family, name, marks=() if (family, name) in FAST else pytest.mark.slow)
    for family in FAMILY_NAMES
    for name in SEARCHES
]
SOME = Text(name="random", sha256="0", tokens=80, context_tokens=32, stride_tokens=32)


def random_windows() -> list[list[int]]:
    """Of two lengths, both longer than the tiny models' attention windows."""
    import random

    draw = random.Random(0)
    return [[draw.randrange(3, 300) for _ in range(n)] for n in (64, 96, 64)]


def children(kept):
    """Of a toy model, whose parts go one at a time."""
    return [tuple(x for x in kept if x != gone) for gone in kept]


def parents(kept, whole):
    return [tuple(x for x in whole if x in (*kept, y)) for y in whole if y not in kept]


def found(name, m, windows, max_steps, **options):
    method = score.Method(name, max_steps, **options)
    spec = type("Spec", (), {"n_blocks": len(m.model.layers), "name": "tiny"})
    return score.removals(m, spec, Windows(windows, SOME), method, Work())[0]


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
    """Greed alone; two steps, so that the second starts from joined halves."""
    m = torch_model.load(tiny_folder(family))
    windows = random_windows()
    kept, path = kept_sublayers(whole(5)), found(name, m, windows, 2, effort=0)
    for step in (1, 2):
        after = every_removal(name, kept)
        kind = load("edgeprune.metrics", name).DAMAGE
        brute = [measured(m, from_sublayers(halves), windows, kind) for halves in after]
        kept = after[min(range(len(brute)), key=brute.__getitem__)]
        assert path[step] == from_sublayers(kept)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sweep_measures_what_each_version_does_alone(family, tiny_folder):
    """Whole, without blocks, with joined and with missing halves, all in one sweep, in two batches of windows."""
    m = torch_model.load(tiny_folder(family))
    windows = [random_windows()[0], random_windows()[2]]
    every = _halves.all_halves(5)
    versions = [every, every[2:], every[:5] + every[7:], every[:-1], every[1:4] + every[8:], every[:3] + every[4:]]
    sums = _sweep.damages(m, versions, windows, ["kl", "loss"], n_segments=3)
    for k, kind in enumerate(("kl", "loss")):
        for v, version in enumerate(versions):
            total = sum(sum(sums[k][w][v]) for w in range(2)) / 126
            assert total == pytest.approx(measured(m, from_sublayers(list(version)), windows, kind), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_halves_run_alone_make_up_the_layer(family, tiny_folder):
    import torch

    m = torch_model.load(tiny_folder(family))
    tokens = torch.tensor([list(range(3, 40)), list(range(40, 77))])
    with torch.inference_mode():
        (everything,) = _sweep.sweep(m, [_halves.all_halves(5)], tokens)
        m.model.norm = torch.nn.Identity()
        assert everything.equal(m.model(input_ids=tokens, use_cache=False).last_hidden_state)


def test_an_identity_block_and_an_identity_seam_go_first(tiny_folder):
    m = torch_model.load(tiny_folder("llama", identity=2))
    assert to_text(found("kl_search", m, random_windows(), 1)[1]) == "0-1 3-4"
    seam = torch_model.load(tiny_folder("llama"))
    seam.model.layers[1].mlp.down_proj.weight.zero_()
    seam.model.layers[2].self_attn.o_proj.weight.zero_()
    path = found("kl_search", seam, random_windows(), 1)
    assert path[1] == (Block(attn=0, ffn=0), Block(attn=1, ffn=2), Block(attn=3, ffn=3), Block(attn=4, ffn=4))


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("effort", [1, 3])
def test_paths_are_nested_and_end_where_nothing_may_go(name, effort, tiny_folder):
    m = torch_model.load(tiny_folder("llama"))
    path = found(name, m, random_windows()[:2], 99, effort=effort)
    kept = [kept_sublayers(blocks) for blocks in path]
    assert kept[0] == kept_sublayers(whole(5))
    for before, after in zip(kept, kept[1:], strict=False):
        assert set(after) < set(before)
        assert len(before) - len(after) == (1 if name == "block_pruner" else 2)
    assert len(kept[-1]) == {"sleb": 4, "block_pruner": 1, "kl_search": 2}[name]
    assert name == "block_pruner" or all(is_portable(blocks) for blocks in path)
    assert name != "sleb" or to_text(path[-1]) == "0 4"


def fixed(damage):
    """A measure that answers from a table of kept -> damage, the same on every window, and counts what it is asked."""
    asked = []

    def measure(versions, windows, _tick):
        asked.extend(versions)
        return [[[damage(v) / 8] * 8 for v in versions] for _ in windows]

    return measure, asked


def test_a_race_drops_what_cannot_win_and_finds_the_best_of_noisy_ones():
    """40 candidates whose damage per stretch is their mean and noise: the winners are those of the full sums."""
    import random

    draw = random.Random(1)
    table = {(w, v): [v + draw.gauss(0, 3) for _ in range(8)] for w in range(16) for v in range(40)}
    asked = []

    def measure(versions, windows, _tick):
        asked.extend((w, v) for w in windows for v in versions)
        return [[table[w, v] for v in versions] for w in windows]

    full = sorted(range(40), key=lambda v: sum(sum(table[w, v]) for w in range(16)))
    races = _race.Races(measure, 16)
    assert [e.version for e in races.best(range(40), winners=3)][:3] == full[:3]
    assert len(asked) == len(set(asked)) < 0.4 * 16 * 40
    races.best(range(40))
    assert len(asked) == len(set(asked))  # what was measured is not measured again


def test_refinement_finds_what_greed_misses():
    """Four removals a, b, c, d of which greed takes a first; b and c together, a run, cost least."""
    costs = {"": 0, "a": 1, "b": 2, "c": 3, "d": 9, "ab": 8, "ac": 8, "ad": 9, "bc": 3, "bd": 9, "cd": 9}
    measure, _ = fixed(lambda kept: costs["".join(sorted(set("abcd") - set(kept)))])
    greedy, *refined = (_search.search(tuple("abcd"), children, measure, 4, 2, parents, effort) for effort in (0, 1, 3))
    assert greedy == [tuple("abcd"), tuple("bcd"), tuple("cd")]
    for path in refined:
        assert path == [tuple("abcd"), tuple("acd"), tuple("ad")]  # 2 × 3 beats 1 × 8


def test_what_the_first_text_favours_by_chance_is_judged_on_all_of_it():
    """Nine windows, of which the search races over three: "b" is better there and worse everywhere else."""
    damages = {"a": 1.0, "b": 0.9, "c": 5.0}

    def measure(versions, windows, _tick):
        gone = [[x for x in "abc" if x not in v] for v in versions]
        late = lambda w, g: 0.4 * (w >= 3) if g == ["b"] else 0  # noqa: E731
        return [[[sum(map(damages.get, g)) + late(w, g)] * 8 for g in gone] for w in windows]

    assert _search.search(tuple("abc"), children, measure, 9, 1, parents, 1)[1] == tuple("bc")
    assert _search.search(tuple("abc"), children, measure, 3, 1, parents, 1)[1] == tuple("ac")


def test_refinement_comes_near_the_best_of_all_nested_chains():
    """On random damages of the subsets of seven removals: against every order there is, by mean log damage."""
    import itertools
    import math
    import random

    whole = tuple("abcdefg")
    over = {0: [], 1: [], 2: []}
    for seed in range(12):
        draw = random.Random(seed)
        pair = {two: draw.uniform(-1, 1) for two in itertools.combinations(whole, 2)}
        one = {x: draw.uniform(1, 3) for x in whole}

        def damage(kept, one=one, pair=pair):
            gone = [x for x in whole if x not in kept]
            return 8 * max(0.1, sum(map(one.get, gone)) + sum(map(pair.get, itertools.combinations(gone, 2))))

        def cost(path, damage=damage):
            return sum(math.log(damage(kept)) for kept in path[1:])

        every = [
            [tuple(x for x in whole if x not in order[:k]) for k in range(5)]
            for order in itertools.permutations(whole, 4)
        ]
        best = min(map(cost, every))
        for effort, found in over.items():
            measure, _ = fixed(damage)
            found.append(cost(_search.search(whole, children, measure, 2, 4, parents, effort)) - best)
    assert min(map(min, over.values())) > -1e-9
    greedy, once, twice = (sum(found) / len(found) for found in over.values())
    assert once < 0.7 * greedy and twice < 0.4 * greedy


def test_the_model_is_left_as_it_was(tiny_folder):
    import torch

    m = torch_model.load(tiny_folder("gemma3"))
    tokens = torch.tensor([list(range(3, 40))])
    before, children = m(tokens).logits, [list(layer._modules) for layer in m.model.layers]
    found("kl_search", m, tokens.tolist(), 2)
    assert m(tokens).logits.equal(before)
    assert [list(layer._modules) for layer in m.model.layers] == children


def test_progress_rises_to_its_end(tiny_folder):
    folder = tiny_folder("llama", n_blocks=3)
    told, work = [], Work()
    work.progress = lambda *a: told.append(a)
    text = Windows([list(range(3, 30))] * 2, SOME)
    score.removals(torch_model.load(folder), model.inspect(folder), text, score.Method("kl_search", 2), work)
    assert told == sorted(told) and told[-1] == (1000, 1000)


def test_a_model_whose_output_is_not_finite_is_refused(tiny_folder):
    m = torch_model.load(tiny_folder("llama"))
    m.model.layers[3].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(InputRejected, match="not finite"):
        found("kl_search", m, [list(range(3, 30))], 2)
