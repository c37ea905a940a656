"""The shipped shapes against what was published of the models, against transformers, and as people type their names."""

from __future__ import annotations

import json

import pytest

from edgeprune import known_models as known
from edgeprune.catalog import names
from edgeprune.errors import UsageError, WrongWeights
from edgeprune.plan import check_scores

ONE_OF_EACH_FAMILY = {known.load(name).family: name for name in known.names()}


def test_parameters_are_those_published_to_the_last():
    assert len(known.names()) >= 30
    for name in known.names():
        assert known.load(name).params == known.published_params(name), name


def test_every_family_is_there_and_says_where_its_facts_are_from():
    assert set(ONE_OF_EACH_FAMILY) == set(names("edgeprune.families"))
    for name in known.names():
        spec = known.load(name)
        assert known.source(name).count("/") == 1 and spec.name == known.source(name).split("/")[1]
        assert known.unread(spec) and spec.context_length_tokens >= 2048


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("llama-3.1-8b", "llama-3.1-8b"),
        ("Llama-3.1-8B", "llama-3.1-8b"),
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("hf://Meta-Llama/meta-llama-3.1-8b-instruct@main", "llama-3.1-8b"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "llama-3.1-8b"),
        ("Qwen/Qwen3-4B", "qwen3-4b"),
        ("qwen2.5_7b", "qwen2.5-7b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b-instruct"),
        ("gemma-3-1b-it", "gemma-3-1b"),
        ("SmolLM3-3B", "smollm3-3b"),
        ("phi 4 mini", "phi-4-mini"),
        ("somebody/else", None),
        ("", None),
    ],
)
def test_names_as_people_type_them(typed, meant):
    assert known.find(typed) == meant


def test_a_name_that_is_not_there_is_told_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'llama-3.1-8b'"):
        known.load("lama-3.1-8b")
    with pytest.raises(UsageError, match="Did you mean 'qwen3-14b'"):
        known.load("Qwen/Qwen-3-14B")


def test_no_two_models_share_a_spelling():
    said = [r.lower() for e in known._entries().values() for r in (e["source"], *e["same_shape"])]
    assert len(said) == len(set(said))


def test_windows_and_contexts():
    """As the configs have them: Gemma's alternate, Qwen's are switched off, Llama has none."""
    gemma = known.load("gemma-3-1b").blocks
    assert [b.sliding_window_tokens for b in gemma[:7]] == [512] * 5 + [None, 512]
    assert {b.sliding_window_tokens for b in known.load("gemma-2-2b").blocks[::2]} == {4096}
    assert {b.sliding_window_tokens for b in known.load("mistral-7b-v0.1").blocks} == {4096}
    for name in ("qwen2.5-7b", "llama-3.1-8b", "mistral-7b-v0.3", "phi-4"):
        assert {b.sliding_window_tokens for b in known.load(name).blocks} == {None}
    assert [b.rotates for b in known.load("smollm3-3b").blocks[:4]] == [True, True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("family", names("edgeprune.families"))
def test_a_config_alone_gives_the_shape_that_headers_give(family, tiny_folder):
    from edgeprune.model import inspect

    folder = tiny_folder(family)
    of_headers = inspect(folder)
    made = known.of_config(json.loads((folder / "config.json").read_text()), of_headers.name)
    apart = {"dtypes", "weight_bytes", "tokenizer_bytes", "fingerprint"}
    assert made.model_dump(exclude=apart) == of_headers.model_dump(exclude=apart)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ONE_OF_EACH_FAMILY.values()))
def test_transformers_counts_the_same_parameters(name):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = dict(known._entries()[name]["config"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    model.tie_weights()
    assert sum(p.numel() for p in model.parameters()) == known.published_params(name)


def test_scores_can_not_be_of_an_unread_model():
    from _shapes import make_scores

    spec = known.load("smollm2-135m")
    with pytest.raises(WrongWeights):
        check_scores(spec, make_scores(spec, [3], fingerprint="0" * 64))
