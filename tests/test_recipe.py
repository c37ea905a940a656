"""Recipes against what the other tools do with them: mergekit's slices expanded, llama.cpp's quantiser run."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import yaml
from _gguf_models import contents, cut, prune_layers, to_blocks
from _shapes import plan_for

from edgeprune.errors import InputRejected, UsageError
from edgeprune.recipe import recipe


def plan(*pairs, n: int = 6):
    spec = SimpleNamespace(name="org/tiny: a 'model'", family="llama", fingerprint="0" * 64, n_blocks=n)
    return plan_for(spec, to_blocks(*pairs))


def expand(text: str) -> list[int]:
    """Layers that mergekit reads, in order: layer_range is half-open (mergekit/plan.py, range(*layer_range))."""
    config = yaml.safe_load(text)
    assert config["merge_method"] == "passthrough" and set(config) == {"slices", "merge_method"}
    sources = [s for slice_ in config["slices"] for s in slice_["sources"]]
    assert all(len(slice_["sources"]) == 1 for slice_ in config["slices"])
    assert {s["model"] for s in sources} == {"org/tiny: a 'model'"}
    return [i for s in sources for i in range(*s["layer_range"])]


def test_every_set_of_whole_layers():
    for n in range(1, 7):
        for kept in itertools.combinations(range(6), n):
            assert expand(recipe(plan(*kept), "mergekit")) == list(kept)
            if n < 6:
                gone = [int(i) for i in recipe(plan(*kept), "prune-layers").split(",")]
                assert sorted([*gone, *kept]) == list(range(6)) and gone == sorted(set(gone))


def test_the_model_to_load_can_be_named():
    assert yaml.safe_load(recipe(plan(0, 2), "mergekit", "./base"))["slices"][0]["sources"][0]["model"] == "./base"


@pytest.mark.parametrize(("pairs", "words"), [
    ((0, (1, 3), 4), "block 1 of the plan is attention from layer 1, feed-forward from layer 3"),
    ((0, 1, (None, 2)), "block 2 of the plan is attention missing"),
    (((0, None), 1), "block 0 of the plan is attention from layer 0, feed-forward missing"),
])  # fmt: skip
@pytest.mark.parametrize("fmt", ["mergekit", "prune-layers"])
def test_what_the_tools_cannot_say_is_refused(pairs, words, fmt):
    with pytest.raises(InputRejected, match=words):
        recipe(plan(*pairs), fmt)


def test_nothing_to_leave_out_and_an_unknown_recipe():
    with pytest.raises(InputRejected, match="removes nothing"):
        recipe(plan(*range(6)), "prune-layers")
    with pytest.raises(UsageError, match="mergekit, prune-layers"):
        recipe(plan(0), "ollama")


def test_llama_cpp_leaves_out_what_the_list_says(tiny_folder, tmp_path):
    """Its quantiser on the whole file, and our cut of it: every tensor byte-equal."""
    from exporters import gguf

    gguf.export(tiny_folder("llama"), tmp_path / "whole.gguf", "F16", {}, lambda stage, x: None)
    ours = cut(tmp_path / "whole.gguf", to_blocks(0, 2, 4), tmp_path / "ours.gguf")
    gone = [int(i) for i in recipe(plan(0, 2, 4, n=5), "prune-layers").split(",")]
    theirs = prune_layers(tmp_path / "whole.gguf", gone, tmp_path / "theirs.gguf")
    assert contents(ours)[1] == contents(theirs)[1]
