"""What would have to go, against counting one block at a time; and the prior of losses against its rows."""

from __future__ import annotations

import math

import pytest
from _shapes import make_spec

from edgeprune import _depth_prior as prior
from edgeprune import devices, known_models
from edgeprune._kv_types import offered
from edgeprune.cost import Predictor
from edgeprune.errors import InfeasibleBudget, UsageError
from edgeprune.plan import LADDER, make_plan
from edgeprune.types import Budget
from edgeprune.what_if import fewest, needs, typical_removal, what_if

SPEC = make_spec(n_blocks=12)
MIB = 2**20


def fits(p, device, budget) -> bool:
    memory = min(budget.max_mem_bytes or 10**18, device.memory_available.value)
    fast = budget.min_decode_tok_per_s is None or (p.decode_tok_per_s or 0) >= budget.min_decode_tok_per_s
    return p.memory_bytes <= memory and p.file_bytes <= (budget.max_file_bytes or 10**18) and fast


@pytest.mark.parametrize(
    "budget",
    [
        Budget(max_mem_bytes=110 * MIB),
        Budget(max_mem_bytes=90 * MIB, context_tokens=8192),
        Budget(max_file_bytes=60 * MIB, kv_type="f16"),
        Budget(min_decode_tok_per_s=120),
    ],
)
def test_blocks_needed_are_the_fewest(budget):
    device = devices.load("rpi5-8gb")
    found = needs(SPEC, device, budget)
    assert [(n.runtime, n.quant) for n in found] == [(r, q) for r in ("llamacpp", "onnxruntime") for q in LADDER[r]]
    for need in found:
        foretold = Predictor(SPEC, device, need.runtime, need.backend)
        types = offered(SPEC, need.runtime, need.backend, need.quant)
        types = types if budget.kv_type == "auto" else types[:1]

        def there(n, t, foretold=foretold, quant=need.quant):
            p = foretold(typical_removal(12, n), quant, budget.context_tokens, budget.prompt_tokens, t)
            return fits(p, device, budget)

        enough = [(n, t) for n in range(12) for t in types if there(n, t)]
        assert (need.blocks_to_remove, need.kv_type) == (enough[0] if enough else (None, need.kv_type))


@pytest.mark.parametrize(
    "name", ["phi-3-mini-4k", *(pytest.param(n, marks=pytest.mark.slow) for n in ("llama-3.1-70b", "gemma-2-2b"))]
)
def test_less_takes_less(name):
    """What the bisection rests on: with every block that goes, memory and file shrink and decoding is no slower."""
    spec, device = known_models.load(name), devices.load("rpi5-16gb")
    for runtime in ("llamacpp", "onnxruntime"):
        foretold = Predictor(spec, device, runtime, "cpu")
        for quant in LADDER[runtime]:
            made = [foretold(typical_removal(spec.n_blocks, n), quant, 2048, 512) for n in range(spec.n_blocks)]
            for more, less in zip(made, made[1:], strict=False):
                assert less.memory_bytes < more.memory_bytes and less.file_bytes < more.file_bytes, (quant, name)
                assert less.decode_tok_per_s >= more.decode_tok_per_s


def test_fewest_by_bisection():
    for n in range(1, 9):
        for first in range(n + 1):
            for guess in range(-1, n + 2):
                looked: list[int] = []

                def fits(k, first=first, looked=looked):
                    looked.append(k)
                    return k >= first

                assert fewest(n, fits, guess) == (first if first < n else None)
                assert len(looked) == len(set(looked)) and set(looked) <= set(range(n))


def test_typical_removal_keeps_the_ends():
    assert [b.attn for b in typical_removal(6, 2)] == [0, 1, 4, 5]
    assert [len(typical_removal(6, n)) for n in range(6)] == [6, 5, 4, 3, 2, 1]


def test_scores_are_asked_for_when_blocks_must_go():
    device, budget = devices.load("rpi5-8gb"), Budget(max_mem_bytes=95 * MIB)
    with pytest.raises(UsageError, match="edgeprune score MODEL -o scores.json") as e:
        make_plan(SPEC, None, device, budget)
    for need in needs(SPEC, device, budget):
        assert need.quant in str(e.value)


def test_a_known_model_on_a_small_device():
    spec = known_models.load("llama-3.1-8b")
    found = what_if(spec, devices.load("jetson-orin"), Budget(max_mem_bytes=8 * 10**9, min_decode_tok_per_s=15))
    by_quant = {n.quant: n for n in found.needs}
    assert by_quant["Q8_0"].blocks_to_remove > by_quant["Q4_K_M"].blocks_to_remove > 0
    best = found.needs[found.best]
    assert best.expected_kl == min(n.expected_kl for n in found.needs if n.expected_kl is not None)
    for n in found.needs:
        share = (n.blocks_to_remove or 0) / 32
        assert (n.removal_ratio is None) == (share > prior.MOST)
        if n.removal_ratio is not None:
            assert n.removal_ratio_low <= n.removal_ratio <= n.removal_ratio_high
            parts = math.log(n.removal_ratio) + n.quant_kl + n.kv_kl
            assert n.expected_kl == pytest.approx(parts)
    assert "prior" in found.basis and any(text.startswith("another device") for text in found.instead)


def test_a_shorter_context_and_a_larger_device_are_named_and_work():
    spec, device = known_models.load("llama-3.2-1b"), devices.load("rpi4-4gb")
    budget = Budget(context_tokens=131072, max_mem_bytes=1_100_000_000, runtime="llamacpp")
    found = what_if(spec, device, budget)
    text = next(t for t in found.instead if t.startswith("a context of"))
    shorter = budget.model_copy(update={"context_tokens": int(text.split()[3])})
    assert not make_plan(spec, None, device, shorter).removed
    text = next(t for t in found.instead if t.startswith("another device"))
    larger = devices.load(text.split("fits on ")[1].split()[0])
    assert not make_plan(spec, None, larger, budget.model_copy(update={"max_mem_bytes": None})).removed


def test_nothing_that_fits_is_said_with_what_binds():
    with pytest.raises(InfeasibleBudget, match="memory binds, the shortest tried has 1 of 126 blocks"):
        what_if(known_models.load("llama-3.1-405b"), devices.load("rpi5-4gb"), Budget())
    with pytest.raises(InfeasibleBudget, match="damage binds|bind together") as e:
        what_if(known_models.load("llama-3.1-8b"), devices.load("jetson-orin"), Budget(max_kl=0.001))
    assert set(e.value.nearest) <= {"max_kl", "max_mem_bytes"} and e.value.nearest


def test_the_prior_is_of_its_rows():
    for rows, params in ((prior.LARGE, 7e9), (prior.SMALL, 2e8)):
        slopes = [math.log(r.pruned / r.whole) / r.share for r in rows]
        low, middle, high = prior.slopes(rows)
        assert sum(low <= s <= high for s in slopes) >= 0.7 * len(rows)
        searched = sorted(s for s, r in zip(slopes, rows, strict=True) if r.searched)
        assert searched[0] <= middle <= searched[-1]
        assert all(r.source and 0 < r.share <= prior.MOST for r in rows)
        for share in (0.1, 0.2, 0.3):
            loss = prior.removal_loss(share, int(params))
            assert loss.middle == pytest.approx(math.exp(middle * share)) and loss.kl == pytest.approx(middle * share)
        assert prior.removal_loss(0.31, int(params)) is None
        assert prior.removal_loss(0.0, int(params))[:3] == (1.0, 1.0, 1.0)


def test_a_prompt_longer_than_the_context_is_refused():
    """Where somebody asked for it; the prompt that is assumed is cut to a short context."""
    from edgeprune.cli._app import budget_of

    for asked in ({"prompt_tokens": 4096, "context_tokens": 512}, {"max_ttft_s": 5.0, "context_tokens": 256}):
        with pytest.raises(UsageError, match="does not fit a context of"):
            budget_of(**asked)
    assert budget_of(context_tokens=256).context_tokens == 256
