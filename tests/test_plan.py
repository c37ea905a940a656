"""Plans against a brute force over every runtime × quantisation × step, and what is said when there is none."""

from __future__ import annotations

import itertools
import math
import os
import random
import subprocess
import sys
from typing import NamedTuple

import pytest
from _shapes import make_scores, make_spec

from edgeprune import devices
from edgeprune._gguf_mix import NEED_IMATRIX
from edgeprune._sizes import Shapes
from edgeprune.blocks import whole
from edgeprune.cost import Predictor, best_backend, quants
from edgeprune.errors import InfeasibleBudget, UsageError, WrongWeights
from edgeprune.plan import LADDER, QUANT_KL_PRIOR, kv_kl, make_plan, quant_kl
from edgeprune.types import Block, Budget, PathStep, Plan, Prediction

DEVICES = ("jetson-orin", "rpi5-4gb", "m2", "qcom-x-elite", "rtx3060-12gb", "pixel8", "intel-n100")
SPEC = make_spec(n_blocks=12)
SHAPES = Shapes(SPEC)
MIB = 2**20


KV_TYPES = {"llamacpp": ("f16", "q8_0", "q4_0"), "onnxruntime": ("f32",)}
LIMITS = ("max_mem_bytes", "max_file_bytes", "min_decode_tok_per_s", "max_ttft_s", "max_kl", "max_ppl_ratio")


class Tried(NamedTuple):
    """One of the complete product, from `predict` and the priors alone."""

    runtime: str
    quant: str
    kv_type: str
    step: int
    n_blocks: int
    prediction: Prediction
    kl: float
    ratio: float

    def values(self) -> dict[str, float | None]:
        p = self.prediction
        of_device = (p.memory_bytes, p.file_bytes, p.decode_tok_per_s, p.ttft_s)
        return dict(zip(LIMITS, (*of_device, self.kl, self.ratio), strict=True))

    def meets(self, device, budget) -> bool:
        asked = budget.model_dump()
        asked["max_mem_bytes"] = min(asked["max_mem_bytes"] or 10**18, device.memory_available.value)
        for key, value in self.values().items():
            bound = asked[key]
            if bound is not None and (value is None or (value < bound if key.startswith("min") else value > bound)):
                return False
        return True

    def order(self, objective) -> tuple:
        p = self.prediction
        fast = -(p.decode_tok_per_s or -float("inf"))
        first = {"quality": 0, "speed": fast, "size": p.file_bytes, "memory": p.memory_bytes}[objective]
        return first, self.kl, -self.n_blocks, p.memory_bytes, self.runtime, self.quant, self.kv_type


def product(spec, scores, device, budget) -> list[Tried]:
    """Everything the budget lets be tried."""
    found = []
    for runtime in ("llamacpp", "onnxruntime"):
        if runtime not in device.runtimes or budget.runtime not in ("auto", runtime):
            continue
        backend = best_backend(device, runtime)
        foretold = Predictor(spec, device, runtime, backend, shapes=SHAPES)
        names = LADDER[runtime] if budget.quant == "auto" else [q for q in quants(runtime) if q == budget.quant]
        types = KV_TYPES[runtime] if backend in ("cpu", "cuda", "metal", "vulkan") else KV_TYPES[runtime][:1]
        types = [t for t in types if budget.kv_type in ("auto", t) or (budget.kv_type, t) == ("f16", "f32")]
        for quant, kv_type, (k, step) in itertools.product(names, types, enumerate(scores.path)):
            p = foretold(step.blocks, quant, budget.context_tokens, budget.prompt_tokens, kv_type)
            prior = quant_kl(runtime, quant, spec.params) + kv_kl(kv_type, spec.params)
            ratio = step.perplexity / scores.path[0].perplexity * math.exp(prior)
            found.append(Tried(runtime, quant, kv_type, k, len(step.blocks), p, step.kl + prior, ratio))
    return found


def random_budget(rng) -> Budget:
    def maybe(share, value):
        return value if rng.random() < share else None

    return Budget(
        max_mem_bytes=maybe(0.5, rng.randint(60 * MIB, 300 * MIB)),
        min_decode_tok_per_s=maybe(0.3, rng.uniform(20, 2000)),
        max_ttft_s=maybe(0.2, rng.uniform(0.005, 0.2)),
        max_file_bytes=maybe(0.3, rng.randint(40 * MIB, 150 * MIB)),
        max_kl=maybe(0.3, rng.uniform(0.001, 1.0)),
        max_ppl_ratio=maybe(0.2, rng.uniform(1.0, 2.0)),
        prompt_tokens=rng.choice([64, 512]),
        context_tokens=rng.choice([256, 2048]),
        quant=rng.choice(["auto", "auto", "auto", "Q4_K_M"]),
        kv_type=rng.choice(["auto", "auto", "f16", "q8_0"]),
        runtime=rng.choice(["auto", "auto", "llamacpp"]),
        objective=rng.choice(["quality", "quality", "speed", "size", "memory"]),
    )


def cases(seed, n):
    """(scores, device, budget, the complete product) at random."""
    rng = random.Random(seed)
    for _ in range(n):
        order = rng.sample(range(SPEC.n_blocks), rng.randint(0, 9))
        scores = make_scores(SPEC, order, kl_step=rng.choice([0.001, 0.02, 0.1]))
        if rng.random() < 0.3:  # damage that falls at some step must not fool the search
            steps = list(scores.path)
            k = rng.randrange(len(steps))
            steps[k] = steps[k].model_copy(update={"kl": steps[k].kl / 3})
            scores = scores.model_copy(update={"path": tuple(steps)})
        device, budget = devices.load(rng.choice(DEVICES)), random_budget(rng)
        if tried := product(SPEC, scores, device, budget):
            yield scores, device, budget, tried


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 7))])
def test_the_plan_is_the_best_of_all_that_fits(seed):
    planned = refused = 0
    for scores, device, budget, tried in cases(seed, 30 if seed else 8):
        fitting = [t for t in tried if t.meets(device, budget)]
        if not fitting:
            with pytest.raises(InfeasibleBudget) as e:
                make_plan(SPEC, scores, device, budget)
            refused += 1
            assert "\n" not in str(e.value)
            check_nearest(scores, device, budget, e.value, tried)
            continue
        plan = make_plan(SPEC, scores, device, budget)
        planned += 1
        best = min(fitting, key=lambda t: t.order(budget.objective))
        assert (plan.runtime, plan.quant, plan.kv_type) == (best.runtime, best.quant, best.kv_type)
        assert plan.blocks == scores.path[best.step].blocks and plan.prediction == best.prediction
        assert plan.expected_kl == pytest.approx(best.kl) and plan.expected_ppl_ratio == pytest.approx(best.ratio)
        others = {(t.runtime, t.quant) for t in fitting} - {(best.runtime, best.quant)}
        assert {(a.runtime, a.quant) for a in plan.alternatives if a.reason.startswith("fits")} == others
        check_front(plan, fitting)
    assert planned and refused


def check_front(plan, fitting):
    """No point of the front is beaten in all three, and every candidate is within a tenth of one that harms no more."""

    def three(kl, p):
        return kl, p.memory_bytes, -(p.decode_tok_per_s or 0)

    points = [three(a.damage_kl + a.quant_kl + a.kv_kl, a.prediction) for a in plan.front]
    everything = {three(t.kl, t.prediction) for t in fitting}
    for kl, memory, speed in points:
        assert not any(
            k < kl - 1e-9 and m <= memory and s <= speed or k <= kl + 1e-9 and (m < memory and s <= speed)
            for k, m, s in everything
        )
    for kl, memory, speed in everything:
        assert any(k <= kl + 1e-9 and m <= memory * 1.1 and s * 1.1 <= speed + 1e-9 for k, m, s in points)
    if plan.budget.objective == "quality":
        assert plan.front[0].reason == "the plan"


def check_nearest(scores, device, budget, error, tried):
    """The nearest budget works; a byte less, a little faster or a little sooner on any of its lines does not."""
    if not error.nearest:
        free = budget.model_copy(update=dict.fromkeys(LIMITS))
        unknown = any(v is None and getattr(budget, k) is not None for t in tried for k, v in t.values().items())
        assert unknown or not any(t.meets(device, free) for t in tried), str(error)
        return
    wider = budget.model_copy(update=error.nearest)
    plan = make_plan(SPEC, scores, device, wider)
    assert plan == error.nearest_plan and plan.budget != budget
    for key, value in error.nearest.items():
        less = value - 1 if key.endswith("_bytes") else value * (1 + 1e-9 if key.startswith("min") else 1 - 1e-9)
        tighter = wider.model_copy(update={key: less})
        assert not any(t.meets(device, tighter) for t in tried)
        with pytest.raises(InfeasibleBudget):
            make_plan(SPEC, scores, device, tighter)


def test_nearest_in_the_message_can_be_typed_back():
    device, scores = devices.load("rpi5-8gb"), make_scores(SPEC, [9, 8])
    with pytest.raises(InfeasibleBudget) as e:
        make_plan(SPEC, scores, device, Budget(max_mem_bytes=40 * MIB))
    need = e.value.nearest["max_mem_bytes"]
    assert f"--max-mem {need}B" in str(e.value) and "memory binds" in str(e.value) and "10 of 12 blocks" in str(e.value)
    with pytest.raises(InfeasibleBudget) as e:
        make_plan(SPEC, scores, device, Budget(min_decode_tok_per_s=9999))
    assert "decode speed binds" in str(e.value)
    told = float(str(e.value).rsplit("--min-tps ", 1)[1].split()[0])
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
        (Budget(kv_type="q5_9"), "known: auto, f16, q8_0, q4_0"),
        (Budget(max_kl=math.nan), "--max-kl nan"),
        (Budget(max_ttft_s=-1.0), "--max-ttft -1"),
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
    asked = Budget(quant=QUANT[runtime], runtime=runtime, kv_type="f16")
    whole_one = make_plan(spec, None, devices.load("m2"), asked)
    return asked.model_copy(update={"max_mem_bytes": whole_one.prediction.memory_bytes - 1})


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


@pytest.mark.parametrize(("asked", "planned"), [("iq3_m", "IQ3_M"), ("Q4_K", "Q4_K_M"), ("tq1_0", "TQ1_0")])
def test_any_quantisation_is_planned_by_name(asked, planned):
    """Aliases as llama-quantize knows them; without a published figure the quantisation's damage is unknown, not zero."""
    plan = make_plan(make_spec(), None, devices.load("m2"), Budget(quant=asked, runtime="llamacpp"))
    assert plan.quant == planned
    assert (plan.quant_kl is None) == (planned == "TQ1_0")


def test_a_quality_floor_that_only_the_whole_meets_and_memory_that_needs_cuts_bind_together():
    device, scores = devices.load("rpi5-8gb"), make_scores(SPEC, [9, 8, 7])
    least = make_plan(SPEC, scores, device, Budget(objective="memory", kv_type="f16")).prediction.memory_bytes
    budget = Budget(max_mem_bytes=least, max_kl=0.005, kv_type="f16", runtime="llamacpp")
    with pytest.raises(InfeasibleBudget, match="memory binds.*--max-mem .*; or --max-kl ") as e:
        make_plan(SPEC, scores, device, budget)
    assert e.value.nearest_plan.expected_kl <= 0.005 and not e.value.nearest_plan.removed
    with pytest.raises(InfeasibleBudget, match="file size binds"):
        make_plan(SPEC, scores, device, Budget(max_file_bytes=1))


def test_a_quantised_cache_is_taken_only_where_llama_cpp_takes_it():
    """Heads of whole groups of 32, and a backend whose flash attention reads it; llama.cpp refuses others at load."""
    narrow = make_spec(n_blocks=12, head_dim=80)
    with pytest.raises(UsageError, match="heads of 80"):
        make_plan(narrow, None, devices.load("rpi5-8gb"), Budget(kv_type="q8_0"))
    plan = make_plan(SPEC, None, devices.load("rpi5-8gb"), Budget(kv_type="q4_0"))
    assert (plan.runtime, plan.kv_type) == ("llamacpp", "q4_0") and plan.kv_kl > 0
    plain = make_plan(SPEC, None, devices.load("rpi5-8gb"), Budget(kv_type="f16"))
    assert plan.prediction.kv_bytes * 32 == plain.prediction.kv_bytes * 9 and plain.kv_kl == 0
    opencl = devices.load("qcom-x-elite").model_copy(update={"runtimes": {"llamacpp": ("opencl",)}})
    with pytest.raises(UsageError, match="leave out --kv-type"):
        make_plan(SPEC, None, opencl, Budget(kv_type="q8_0"))
