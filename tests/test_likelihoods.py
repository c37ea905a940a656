"""Log-likelihoods of continuations in every runtime, against transformers, one text after another."""

from __future__ import annotations

import numpy as np
import pytest
from _exported import in_every_runtime

from edgeprune.catalog import load
from edgeprune.errors import InputRejected
from edgeprune.runtimes import _branches

FAMILIES = ("llama", pytest.param("gemma3", marks=pytest.mark.slow), pytest.param("qwen2", marks=pytest.mark.slow))


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def artifacts(tiny_folder, tmp_path_factory):
    """family -> the same tiny model for each runtime."""
    made = {}

    def make(family):
        if family not in made:
            made[family] = in_every_runtime(tiny_folder(family), tmp_path_factory.mktemp(family))
        return made[family]

    return make


def open_session(runtime, path, n_ctx=128):
    return load("edgeprune.runtimes", runtime).open_session(path, n_ctx=n_ctx, n_threads=1, precise=True)


def some_pairs(folder):
    """Choices after one context, contexts that begin alike, the same text cut at two places, one token, a long text; and
    what the model would say itself."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = np.random.default_rng(3).integers(3, 300, 120).tolist()
    a, b = ids[:20], [*ids[:12], *ids[40:45]]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    own = model.generate(torch.tensor([a]), max_new_tokens=4, do_sample=False, eos_token_id=None)[0, 20:].tolist()
    pairs = [(a, ids[50:54]), (a, ids[50:52] + ids[60:63]), (a, [7]), (a, [9]), (b, ids[50:54]), (a[:15], a[15:])]
    pairs += [(ids[:1], ids[1:101]), (b, [7]), (a, ids[50:54]), (a, own), (a, [*own[:3], (own[3] + 1) % 300])]
    return model, pairs


def expected(model, pairs):
    """A few lines of plain transformers: one text at a time, no cache, no batch."""
    import torch

    found = []
    for context, continuation in pairs:
        with torch.inference_mode():
            logits = model(torch.tensor([[*context, *continuation]])).logits[0, len(context) - 1 : -1]
        targets = torch.tensor(continuation)
        found.append((-torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item(),
                      logits.argmax(-1).tolist() == continuation))  # fmt: skip
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_likelihoods_are_transformers(artifacts, family):
    paths = artifacts(family)
    model, pairs = some_pairs(paths["transformers"])
    want = expected(model, pairs)
    assert [greedy for _, greedy in want] == [False] * 9 + [True, False]
    for runtime, path in paths.items():
        session, told = open_session(runtime, path), []
        found = session.log_likelihoods(pairs, told.append)
        session.close()
        assert told[-1] == len(pairs)
        tolerance = (
            2e-2 if (family, runtime) == ("gemma3", "llamacpp") else 1e-3
        )  # its GELU is a table of 16-bit floats
        assert [x for x, _ in found] == pytest.approx([x for x, _ in want], abs=tolerance), runtime
        assert [greedy for _, greedy in found] == [greedy for _, greedy in want], runtime


class Counted:
    """A session, and how many tokens it was given."""

    def __init__(self, session):
        self.session, self.tokens = session, 0
        self.reset, self.rewind = session.reset, session.rewind

    def append(self, tokens, n_last):
        self.tokens += len(tokens)
        return self.session.append(tokens, n_last)


def test_what_texts_share_is_computed_once(artifacts):
    ids = np.random.default_rng(4).integers(3, 300, 60).tolist()
    context = ids[:40]
    pairs = [(context, ids[40:44]), (context, ids[50:54]), (context, [5]), (context, [6])]
    for runtime in ("llamacpp", "onnxruntime"):
        session = open_session(runtime, artifacts("llama")[runtime])
        counted = Counted(session)
        _branches.log_likelihoods(counted, pairs, quiet)
        assert counted.tokens == 40 + 3 + 3  # a last token is only predicted
        session.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_goes_back_or_says_that_it_can_not(artifacts, family):
    ids = np.random.default_rng(5).integers(3, 300, 60).tolist()
    for runtime, path in artifacts(family).items():
        session = open_session(runtime, path)
        want = session.prefill([*ids[:12], *ids[50:]]).copy()
        session.reset()
        session.prefill(ids[:40])
        went = session.rewind(12)
        found = session.prefill(ids[50:] if went else [*ids[:12], *ids[50:]])
        assert went or (family, runtime) == ("gemma3", "transformers")  # a window of 16 tokens has moved on
        assert found == pytest.approx(want, abs=1e-2 if family == "gemma3" else 1e-4), runtime
        session.close()


def test_a_cache_that_can_not_go_back_is_filled_again(artifacts):
    """As llama.cpp's is, where a sliding window has moved on."""
    model, pairs = some_pairs(artifacts("llama")["transformers"])
    session = open_session("onnxruntime", artifacts("llama")["onnxruntime"])

    class Forgetful(Counted):
        def __init__(self, session):
            super().__init__(session)
            self.rewind = lambda n: session.reset() or False

    found = _branches.log_likelihoods(Forgetful(session), pairs, quiet)
    session.close()
    assert found == [(pytest.approx(x, abs=1e-3), greedy) for x, greedy in expected(model, pairs)]


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(InputRejected, match="not finite"):
        _branches.rate(np.full((2, 5), np.nan, np.float32), [1, 2])
