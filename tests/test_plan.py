"""Plans against a brute force over every runtime × quantisation × step, and what is said when there is none."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import pytest
from _shapes import make_scores, make_spec

from edgeprune import devices
from edgeprune._gguf_mix import NEED_IMATRIX
from edgeprune.blocks import check_blocks, is_portable, whole
from edgeprune.cost import best_backend, predict, quants
from edgeprune.errors import InfeasibleBudget, UsageError, WrongWeights
from edgeprune.plan import LADDER, QUANT_KL_PRIOR, make_plan, quant_kl, removal_steps_needed, typical_removal
from edgeprune.types import Block, Budget, PathStep, Plan

DEVICES = ("jetson-orin", "rpi5-4gb", "m2", "qcom-x-elite", "rtx3060-12gb", "pixel8", "intel-n100")
SPEC = make_spec(n_blocks=12)
MIB = 2**20


def fits(p, device, budget) -> bool:
    memory = min(budget.max_mem_bytes or 10**18, device.memory_available.value)
    fast = budget.min_decode_tok_per_s is None or (p.decode_tok_per_s or 0) >= budget.min_decode_tok_per_s
    soon = budget.max_ttft_s is None or (p.ttft_s is not None and p.ttft_s <= budget.max_ttft_s)
    return p.memory_bytes <= memory and fast and soon


def brute_force(spec, scores, device, budget):
    """[(damage, -sub-layers kept, memory, runtime, quant, step)] of all that fits, from `predict` alone."""
    found = []
    for runtime in ("llamacpp", "onnxruntime"):
        if runtime not in device.runtimes or budget.runtime not in ("auto", runtime):
            continue
        backend = best_backend(device, runtime)
        names = LADDER[runtime] if budget.quant == "auto" else [q for q in quants(runtime) if q == budget.quant]
        for quant in names:
            for k, step in enumerate(scores.path):
                p = predict(
                    spec, step.blocks, device, runtime, backend, quant, budget.context_tokens, budget.prompt_tokens
                )
                if is_portable(step.blocks) and fits(p, device, budget):
                    damage = step.kl + quant_kl(runtime, quant, spec.params)
                    found.append((damage, -2 * len(step.blocks), p.memory_bytes, runtime, quant, k))
    return sorted(found)


def random_budget(rng) -> Budget:
    return Budget(
        max_mem_bytes=rng.choice([None, rng.randint(60 * MIB, 300 * MIB)]),
        min_decode_tok_per_s=rng.choice([None, None, rng.uniform(20, 2000)]),
        max_ttft_s=rng.choice([None, None, None, rng.uniform(0.005, 0.2)]),
        prompt_tokens=rng.choice([64, 512]),
        context_tokens=rng.choice([256, 2048]),
        quant=rng.choice(["auto", "auto", "auto", "Q4_K_M", "int8"]),
        runtime=rng.choice(["auto", "auto", "llamacpp", "onnxruntime"]),
    )


def relaxed(budget: Budget, nearest: dict) -> Budget:
    return budget.model_copy(update=nearest)


@pytest.mark.parametrize("seed", range(6))
def test_the_plan_is_the_least_damaging_of_all_that_fits(seed):
    rng = random.Random(seed)
    planned = refused = 0
    for _ in range(25):
        order = rng.sample(range(SPEC.n_blocks), rng.randint(0, 9))
        scores = make_scores(SPEC, order, kl_step=rng.choice([0.001, 0.02, 0.1]))
        if rng.random() < 0.3:  # damage that falls at some step must not fool the search
            steps = list(scores.path)
            k = rng.randrange(len(steps))
            steps[k] = steps[k].model_copy(update={"kl": steps[k].kl / 3})
            scores = scores.model_copy(update={"path": tuple(steps)})
        device = devices.load(rng.choice(DEVICES))
        budget = random_budget(rng)
        if (
            budget.quant == "int8"
            and budget.runtime == "llamacpp"
            or budget.quant == "Q4_K_M"
            and budget.runtime == "onnxruntime"
        ):
            continue
        if budget.runtime not in ("auto", *device.runtimes) or (
            budget.quant == "int8" and "onnxruntime" not in device.runtimes
        ):
            continue
        everything = brute_force(SPEC, scores, device, budget)
        if not everything:
            with pytest.raises(InfeasibleBudget) as e:
                make_plan(SPEC, scores, device, budget)
            refused += 1
            assert "\n" not in str(e.value)
            check_nearest(scores, device, budget, e.value)
            continue
        plan = make_plan(SPEC, scores, device, budget)
        planned += 1
        _, _, memory, runtime, quant, k = everything[0]
        assert (plan.runtime, plan.quant, plan.blocks) == (runtime, quant, scores.path[k].blocks)
        assert plan.prediction.memory_bytes == memory
        assert fits(plan.prediction, device, budget)
        check_blocks(plan.blocks, SPEC.n_blocks)
        fitting = {(r, q) for *_, r, q, _ in everything} - {(runtime, quant)}
        assert {(a.runtime, a.quant) for a in plan.alternatives if a.reason.startswith("fits")} == fitting
    assert planned and refused


def check_nearest(scores, device, budget, error):
    """The nearest budget works; a byte less, a little faster or a little sooner does not."""
    if not error.nearest:
        alone = [budget.model_copy(update={"max_mem_bytes": None, "min_decode_tok_per_s": None, "max_ttft_s": None})]
        known = brute_force(SPEC, scores, device, alone[0])
        assert not known or "known" in str(error), str(error)
        return
    plan = make_plan(SPEC, scores, device, relaxed(budget, error.nearest))
    assert plan.budget != budget
    if len(error.nearest) == 1:
        ((key, value),) = error.nearest.items()
        tighter = {
            "max_mem_bytes": value - 1,
            "min_decode_tok_per_s": value * (1 + 1e-9),
            "max_ttft_s": value * (1 - 1e-9),
        }
        with pytest.raises(InfeasibleBudget):
            make_plan(SPEC, scores, device, relaxed(budget, {key: tighter[key]}))


def test_nearest_in_the_message_can_be_typed_back():
    device, scores = devices.load("rpi5-8gb"), make_scores(SPEC, [9, 8])
    with pytest.raises(InfeasibleBudget) as e:
        make_plan(SPEC, scores, device, Budget(max_mem_bytes=40 * MIB))
    need = e.value.nearest["max_mem_bytes"]
    assert f"--max-mem {need}B" in str(e.value) and "memory binds" in str(e.value) and "10 of 12 blocks" in str(e.value)
    with pytest.raises(InfeasibleBudget) as e:
        make_plan(SPEC, scores, device, Budget(min_decode_tok_per_s=9999))
    assert "decode speed binds" in str(e.value)
    told = float(str(e.value).rsplit("--min-tps ", 1)[1])
    assert make_plan(SPEC, scores, device, Budget(min_decode_tok_per_s=told)).prediction.decode_tok_per_s >= told


PLAN_ONCE = f"""
import sys
sys.path.insert(0, "tests")
from _shapes import make_scores, make_spec
from edgeprune import devices
from edgeprune.plan import make_plan
from edgeprune.types import Budget
spec = make_spec(n_blocks=12)
plan = make_plan(spec, make_scores(spec, [7, 8, 6]), devices.load("rpi5"), Budget(max_mem_bytes={112 * MIB}))
sys.stdout.write(plan.to_json())
"""


def test_same_inputs_same_bytes():
    def plan():
        return make_plan(SPEC, make_scores(SPEC, [7, 8, 6]), devices.load("rpi5"), Budget(max_mem_bytes=112 * MIB))

    first = plan().to_json()
    assert plan().to_json() == first
    assert Plan.from_json(first).to_json() == first
    for seed in ("1", "2"):
        env = dict(os.environ, PYTHONHASHSEED=seed)
        root = devices.FOLDER.parent
        done = subprocess.run(
            [sys.executable, "-c", PLAN_ONCE], capture_output=True, text=True, check=True, cwd=root, env=env
        )
        assert done.stdout == first


def test_a_budget_that_holds_the_whole_model_needs_no_scores():
    plan = make_plan(SPEC, None, devices.load("jetson-orin"), Budget(max_mem_bytes=8 * 10**9))
    assert plan.blocks == whole(12) and plan.removed == "" and plan.scores_sha256 is None
    assert plan.memory_limit_from == "device" and plan.memory_limit_bytes == 5_200_000_000
    assert plan.quant == "Q8_0" and plan.runtime == "llamacpp" and plan.backend == "cuda"
    assert {(a.runtime, a.quant) for a in plan.alternatives} | {("llamacpp", "Q8_0")} == {
        (r, q) for r in LADDER for q in LADDER[r]
    }


def test_scores_are_asked_for_when_blocks_must_go():
    device, budget = devices.load("rpi5-8gb"), Budget(max_mem_bytes=95 * MIB)
    with pytest.raises(UsageError, match="edgeprune score MODEL -o scores.json") as e:
        make_plan(SPEC, None, device, budget)
    for need in removal_steps_needed(SPEC, device, budget):
        assert need.quant in str(e.value)


def test_blocks_needed_are_the_fewest():
    device, budget = devices.load("rpi5-8gb"), Budget(max_mem_bytes=110 * MIB)
    needs = removal_steps_needed(SPEC, device, budget)
    assert [(n.runtime, n.quant) for n in needs] == [(r, q) for r in ("llamacpp", "onnxruntime") for q in LADDER[r]]
    assert any(n.blocks_to_remove for n in needs)
    for need in needs:
        for n in range(SPEC.n_blocks):
            p = predict(SPEC, typical_removal(12, n), device, need.runtime, need.backend, need.quant, 2048, 512)
            assert fits(p, device, budget) == (need.blocks_to_remove is not None and n >= need.blocks_to_remove)


def test_typical_removal_keeps_the_ends():
    assert [b.attn for b in typical_removal(6, 2)] == [0, 1, 4, 5]
    assert [len(typical_removal(6, n)) for n in range(6)] == [6, 5, 4, 3, 2, 1]


def test_the_tighter_memory_binds():
    device = devices.load("rpi5-4gb")
    for asked, source, limit in (
        (10**9, "--max-mem", 10**9),
        (10**11, "device", 3_400_000_000),
        (None, "device", 3_400_000_000),
    ):
        plan = make_plan(SPEC, None, device, Budget(max_mem_bytes=asked))
        assert (plan.memory_limit_from, plan.memory_limit_bytes) == (source, limit)


def test_a_device_too_small_says_so():
    big = make_spec(80, 8192, 28672, 64, 8, 128, 128256, False, 131072, name="llama-3-70b")
    with pytest.raises(InfeasibleBudget, match="the device leaves 3.4 GB") as e:
        make_plan(big, make_scores(big, [40, 41]), devices.load("rpi5-4gb"), Budget(max_mem_bytes=10**12))
    assert e.value.nearest == {}


def test_unknown_rates_are_refused_not_guessed():
    scores = make_scores(SPEC, [5])
    with pytest.raises(InfeasibleBudget, match="no prefill rate is known for rpi5-8gb") as e:
        make_plan(SPEC, scores, devices.load("rpi5-8gb"), Budget(max_ttft_s=100))
    assert e.value.nearest == {}
    with pytest.raises(InfeasibleBudget, match="no decode rate is known for jetson-orin-nano-8gb-super"):
        make_plan(SPEC, scores, devices.load("jetson-orin"), Budget(min_decode_tok_per_s=1), mode="7W")
    assert make_plan(SPEC, scores, devices.load("jetson-orin"), Budget(), mode="7W").prediction.decode_tok_per_s is None


def test_other_weights_are_refused():
    with pytest.raises(WrongWeights, match="edgeprune score"):
        make_plan(SPEC, make_scores(SPEC, [1], fingerprint="0" * 64), devices.load("m2"), Budget())


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        (Budget(context_tokens=8193), "8192"),
        (Budget(quant="Q4_K_XXL"), "Q4_K_M"),
        (Budget(quant="int8", runtime="llamacpp"), "Q8_0"),
        (Budget(runtime="mlx"), "llamacpp"),
        (Budget(runtime="onnxruntime"), "pixel8 does not run onnxruntime"),
    ],
)
def test_what_can_not_be_asked(budget, told):
    with pytest.raises(UsageError, match=told):
        make_plan(SPEC, make_scores(SPEC, [1]), devices.load("pixel8"), budget)


def test_quant_names_may_be_typed_in_lower_case():
    assert make_plan(SPEC, None, devices.load("m2"), Budget(quant="q4_k_m")).quant == "Q4_K_M"


def _path(spec, *lists):
    """Scores whose path is the whole model and then these block lists, at no damage."""
    steps = [PathStep(blocks=b, kl=0.01 * k, perplexity=1.0) for k, b in enumerate((whole(spec.n_blocks), *lists))]
    return make_scores(spec, []).model_copy(update={"path": tuple(steps)})


def _just_below_whole(spec, runtime):
    whole_one = make_plan(spec, None, devices.load("m2"), Budget(quant=QUANT[runtime], runtime=runtime))
    return Budget(max_mem_bytes=whole_one.prediction.memory_bytes - 1, quant=QUANT[runtime], runtime=runtime)


QUANT = {"llamacpp": "Q4_0", "onnxruntime": "int4"}
NO_ATTENTION_5 = (*whole(12)[:5], Block(attn=None, ffn=5), *whole(12)[6:])
NO_ATTENTION_0 = (Block(attn=None, ffn=0), *whole(12)[1:])
WITHOUT_4 = tuple(b for b in whole(12) if b.attn != 4)
WITHOUT_4_TO_7 = tuple(b for b in whole(12) if b.attn not in (4, 5, 6, 7))


@pytest.mark.parametrize(
    ("family", "tied", "runtime", "refused", "taken"),
    [
        ("llama", True, "llamacpp", NO_ATTENTION_0, NO_ATTENTION_5),
        ("qwen3", True, "llamacpp", None, NO_ATTENTION_5),
        ("qwen3", False, "llamacpp", NO_ATTENTION_5, WITHOUT_4),
        ("gemma2", True, "llamacpp", NO_ATTENTION_5, WITHOUT_4),
        ("gemma2", True, "onnxruntime", None, NO_ATTENTION_0),
        ("smollm3", True, "llamacpp", WITHOUT_4, WITHOUT_4_TO_7),
        ("smollm3", True, "onnxruntime", None, WITHOUT_4),
    ],
)
def test_only_what_the_runtime_can_run_is_planned(family, tied, runtime, refused, taken):
    base = make_spec(12, vocab=9000, tied=tied)
    blocks = tuple(
        b.model_copy(update={"rotates": family != "smollm3" or (i + 1) % 4 != 0}) for i, b in enumerate(base.blocks)
    )
    spec = base.model_copy(update={"family": family, "blocks": blocks})
    budget = _just_below_whole(spec, runtime)
    lists = [b for b in (refused, taken) if b]
    assert make_plan(spec, _path(spec, *lists), devices.load("m2"), budget).blocks == taken
    if refused:
        with pytest.raises(InfeasibleBudget, match="can't run 1 of 2 steps of the path: .*llowed"):
            make_plan(spec, _path(spec, refused), devices.load("m2"), budget)


def test_every_quant_that_auto_tries_has_a_prior():
    for runtime in ("llamacpp", "onnxruntime"):
        assert set(LADDER[runtime]) <= {q for r, q in QUANT_KL_PRIOR if r == runtime} <= set(quants(runtime))
    assert not NEED_IMATRIX & set(LADDER["llamacpp"]), "auto proposes nothing that asks for another file"
    assert quant_kl("llamacpp", "Q4_K_M", 135_000_000) > quant_kl("llamacpp", "Q4_K_M", 8_000_000_000) == 0.0313


def test_planning_is_quick():
    """An 80-block model, a path of 60 steps, nine quantisations: well under a second even on a slow machine."""
    big = make_spec(80, 8192, 28672, 64, 8, 128, 128256, False, 131072, name="llama-3-70b")
    scores, device = make_scores(big, list(range(70, 10, -1))), devices.load("m4-max-128gb")
    start = time.process_time()
    plan = make_plan(big, scores, device, Budget(max_mem_bytes=20 * 10**9))
    assert time.process_time() - start < 1.0
    assert plan.removed


@pytest.mark.parametrize(("asked", "planned"), [("iq3_m", "IQ3_M"), ("Q4_K", "Q4_K_M"), ("tq1_0", "TQ1_0")])
def test_any_quantisation_is_planned_by_name(asked, planned):
    """Aliases as llama-quantize knows them; without a published figure the quantisation's damage is unknown, not zero."""
    plan = make_plan(make_spec(), None, devices.load("m2"), Budget(quant=asked, runtime="llamacpp"))
    assert plan.quant == planned
    assert (plan.quant_kl is None) == (planned == "TQ1_0")
