"""ModelSpec + Scores + DeviceProfile + Budget -> Plan. Pure, without torch or weights, in milliseconds.

Every runtime × quantisation the budget allows is tried with every step of the removal path. Of those that meet all
limits the one with the least expected damage wins: the step's measured KL plus the quantisation's KL prior. Ties go
to fewer removed sub-layers, then fewer bytes, then the name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from edgeprune import _gguf_arch, catalog, families
from edgeprune._limits import Candidate, Limits, explain_infeasible
from edgeprune._quant_kl import QUANT_KL_PRIOR, quant_kl
from edgeprune._rates import backends
from edgeprune._sizes import Shapes, named
from edgeprune.blocks import describe_removed, kept_sublayers, whole
from edgeprune.cost import Predictor, best_backend, quants
from edgeprune.errors import UsageError, WrongWeights
from edgeprune.types import Alternative, Blocks, Budget, DeviceProfile, ModelSpec, Plan, Prediction, Scores
from edgeprune.units import show_bytes

__all__ = [
    "LADDER",
    "QUANT_KL_PRIOR",
    "RUNTIMES",
    "Need",
    "check_scores",
    "make_plan",
    "quant_kl",
    "removal_steps_needed",
]

RUNTIMES = ("llamacpp", "onnxruntime")  # those with an exporter, in order of preference
# What "auto" tries. 16- and 32-bit types are left out: twice the bytes, so half the speed, for a KL near 0.01.
LADDER = {
    "llamacpp": ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K"),
    "onnxruntime": ("int8", "int4-mixed", "int4"),
}


class Need(NamedTuple):
    """How many blocks would have to go for one runtime × quantisation, taken from the middle of the model."""

    runtime: str
    backend: str
    quant: str
    blocks_to_remove: int | None  # None: not even one block meets the limits
    prediction: Prediction  # of what is left, or of the whole model when nothing is enough


def make_plan(
    spec: ModelSpec, scores: Scores | None, device: DeviceProfile, budget: Budget, mode: str | None = None
) -> Plan:
    """The least damaging plan within the budget.

    Without scores only the whole model can be planned. Raises UsageError for what can't be asked of this model or
    device, or when scores are needed; WrongWeights for another model's scores; InfeasibleBudget with the nearest
    budget that works.
    """
    if scores is not None:
        check_scores(spec, scores)
    limits = Limits.of(budget, device)
    routes = _routes(spec, device, budget, mode)
    steps, refused = _steps(spec, scores, [r[0] for r in routes])
    candidates = [
        Candidate(
            runtime, backend, quant, k, blocks, predictor(blocks, quant, budget.context_tokens, budget.prompt_tokens)
        )
        for runtime, backend, quant, predictor in routes
        for k, blocks in steps[runtime]
    ]
    feasible = [c for c in candidates if limits.met(c.prediction)]
    if not candidates:
        raise UsageError(f"{spec.name} can't be planned for {device.id}: {'; '.join(refused)}")
    if not feasible:
        if scores is None:
            raise UsageError(_scores_needed(spec, device, budget, mode, limits))
        raise explain_infeasible(candidates, limits, device, budget, spec, refused)
    params = spec.params
    prior = {route: quant_kl(*route, params) or 0.0 for route in {(c.runtime, c.quant) for c in candidates}}
    damage = {id(c): _removal_kl(c, scores) + prior[c.runtime, c.quant] for c in candidates}
    best = min(feasible, key=lambda c: _order(c, damage[id(c)]))
    return _plan(spec, scores, device, budget, mode, limits, candidates, best, damage)


def check_scores(spec: ModelSpec, scores: Scores) -> None:
    """Raises WrongWeights unless the scores are of exactly these weights."""
    if scores.fingerprint != spec.fingerprint or scores.n_blocks != spec.n_blocks:
        raise WrongWeights(
            f"the scores are of {scores.model} ({scores.n_blocks} blocks, {scores.fingerprint[:12]}), the model is "
            f"{spec.name} ({spec.n_blocks} blocks, {spec.fingerprint[:12]}); make new ones: edgeprune score MODEL -o scores.json"
        )


def removal_steps_needed(spec: ModelSpec, device: DeviceProfile, budget: Budget, mode: str | None = None) -> list[Need]:
    """The what-if table: for each runtime × quantisation, how many blocks must go to meet the budget. No scores needed."""
    limits = Limits.of(budget, device)
    found = []
    for runtime, backend, quant, predictor in _routes(spec, device, budget, mode):
        need, shown = None, None
        for n in range(spec.n_blocks):
            prediction = predictor(
                typical_removal(spec.n_blocks, n), quant, budget.context_tokens, budget.prompt_tokens
            )
            shown = shown or prediction
            if limits.met(prediction):
                need, shown = n, prediction
                break
        assert shown is not None
        found.append(Need(runtime, backend, quant, need, shown))
    return found


def typical_removal(n_blocks: int, n_removed: int) -> Blocks:
    """The whole model without `n_removed` blocks before the last but one, where removal usually hurts least."""
    end = max(n_blocks - 2, n_removed)
    return tuple(b for b in whole(n_blocks) if not end - n_removed <= b.attn < end)


# --- the search ---------------------------------------------------------------------------------


def unheld(spec: ModelSpec, blocks: Blocks, runtime: str) -> str | None:
    """Why `runtime` can't run this block list of this model; None when it can."""
    if spec.family not in catalog.names("edgeprune.families"):  # a .gguf of an architecture only llama.cpp knows
        if runtime != "llamacpp":
            return f"{spec.family} models are read from GGUF and stay there; only llamacpp runs them"
        nothing_gone = blocks == whole(spec.n_blocks)
        return None if nothing_gone else _gguf_arch.refusal(spec.model_type, spec.n_blocks, blocks)
    rotates = [b.attn is None or spec.blocks[b.attn].rotates for b in blocks]
    halves = [(b.attn is not None, b.ffn is not None) for b in blocks]
    family = catalog.load("edgeprune.families", spec.family)
    return families.refusal(family, runtime, rotates, halves, spec.tied_embeddings)


def _steps(
    spec: ModelSpec, scores: Scores | None, runtimes: Sequence[str]
) -> tuple[dict[str, list[tuple[int, Blocks]]], list[str]]:
    """Per runtime, the path steps it can run (step 0 is the whole model), and a line on those it can't."""
    path = [s.blocks for s in scores.path] if scores else [whole(spec.n_blocks)]
    found: dict[str, list[tuple[int, Blocks]]] = {}
    refused = []
    for runtime in dict.fromkeys(runtimes):
        reasons = [unheld(spec, blocks, runtime) for blocks in path]
        found[runtime] = [(k, blocks) for k, blocks in enumerate(path) if reasons[k] is None]
        told = [r for r in reasons if r]
        if told:
            refused.append(f"{runtime} can't run {len(told)} of {len(path)} steps of the path: {told[0]}")
    return found, refused


def _routes(
    spec: ModelSpec, device: DeviceProfile, budget: Budget, mode: str | None
) -> list[tuple[str, str, str, Predictor]]:
    """(runtime, backend, quant, predictor) for all that the budget allows on this device."""
    shapes = Shapes(spec)
    runtimes = (
        [r for r in RUNTIMES if backends(device, r)] if budget.runtime == "auto" else [_runtime(device, budget.runtime)]
    )
    found = []
    for runtime in runtimes:
        backend = best_backend(device, runtime)
        assert backend is not None
        predictor = Predictor(spec, device, runtime, backend, mode, shapes)
        if budget.quant == "auto":
            found += [(runtime, backend, q, predictor) for q in LADDER[runtime]]
        else:
            same = named(runtime, budget.quant)
            found += [(runtime, backend, q, predictor) for q in same]
    if not found:
        known = "; ".join(f"{r}: {', '.join(quants(r))}" for r in runtimes)
        if not runtimes:
            raise UsageError(
                f"{device.id} lists neither {' nor '.join(RUNTIMES)}; it lists {', '.join(device.runtimes)}"
            )
        raise UsageError(f"no quantisation called {budget.quant!r} for {device.id}. Known: {known}")
    return found


def _runtime(device: DeviceProfile, name: str) -> str:
    if name not in RUNTIMES:
        raise UsageError(f"no export for runtime {name!r}; known: {', '.join(RUNTIMES)}")
    if not backends(device, name):
        raise UsageError(f"{device.id} does not run {name}; it lists {', '.join(device.runtimes)}")
    return name


def _removal_kl(c: Candidate, scores: Scores | None) -> float:
    """Measured KL of the step; where a metric measured only perplexity, the rise of its logarithm stands in for it."""
    if c.step == 0 or scores is None:
        return 0.0
    step, first = scores.path[c.step], scores.path[0]
    if step.kl is not None:
        return step.kl
    if step.perplexity and first.perplexity:
        return max(0.0, math.log(step.perplexity / first.perplexity))
    return float(c.step)  # a path without measurements is still in order


def _order(c: Candidate, damage: float) -> tuple[float, int, int, str, str]:
    return damage, -len(kept_sublayers(c.blocks)), c.prediction.memory_bytes, c.runtime, c.quant


# --- the answer ---------------------------------------------------------------------------------


def _plan(
    spec: ModelSpec,
    scores: Scores | None,
    device: DeviceProfile,
    budget: Budget,
    mode: str | None,
    limits: Limits,
    candidates: list[Candidate],
    best: Candidate,
    damage: dict[int, float],
) -> Plan:
    step = scores.path[best.step] if scores else None
    route = [c for c in candidates if (c.runtime, c.quant) == (best.runtime, best.quant)]
    return Plan(
        model=spec.name,
        family=spec.family,
        fingerprint=spec.fingerprint,
        n_blocks_whole=spec.n_blocks,
        device=device.id,
        mode=mode,
        runtime=best.runtime,
        backend=best.backend,
        quant=best.quant,
        budget=budget,
        memory_limit_bytes=limits.memory_bytes,
        memory_limit_from=limits.memory_from,
        blocks=best.blocks,
        removed=describe_removed(best.blocks, spec.n_blocks),
        damage_kl=step.kl if step else 0.0,
        damage_perplexity=step.perplexity if step else None,
        whole_perplexity=scores.path[0].perplexity if scores else None,
        quant_kl=quant_kl(best.runtime, best.quant, spec.params),
        prediction=best.prediction,
        prediction_whole=next(c.prediction for c in route if c.step == 0),
        alternatives=_alternatives(spec, scores, limits, candidates, best, damage),
        scores_sha256=scores.digest() if scores else None,
        metric=scores.metric if scores else None,
    )


def _alternatives(
    spec: ModelSpec,
    scores: Scores | None,
    limits: Limits,
    candidates: list[Candidate],
    best: Candidate,
    damage: dict[int, float],
) -> tuple[Alternative, ...]:
    """The best of each other runtime × quantisation, feasible ones first, least damage first."""
    routes: dict[tuple[str, str], list[Candidate]] = {}
    for c in candidates:
        if (c.runtime, c.quant) != (best.runtime, best.quant):
            routes.setdefault((c.runtime, c.quant), []).append(c)
    found = []
    for tried in routes.values():
        fitting = [c for c in tried if limits.met(c.prediction)]
        c = min(fitting or tried, key=lambda c: (limits.misses(c.prediction), *_order(c, damage[id(c)])))
        step = scores.path[c.step] if scores else None
        reason = _why_lost(c, best, damage) if fitting else _why_unfit(c, limits, len(tried))
        found.append(
            (
                (not fitting, *_order(c, damage[id(c)])),
                Alternative(
                    runtime=c.runtime,
                    quant=c.quant,
                    n_blocks=len(c.blocks),
                    removed=describe_removed(c.blocks, spec.n_blocks),
                    damage_kl=step.kl if step else 0.0,
                    quant_kl=quant_kl(c.runtime, c.quant, spec.params),
                    prediction=c.prediction,
                    reason=reason,
                ),
            )
        )
    return tuple(a for _, a in sorted(found, key=lambda f: f[0]))


def _why_lost(c: Candidate, best: Candidate, damage: dict[int, float]) -> str:
    more = damage[id(c)] - damage[id(best)]
    if more > 0:
        return f"fits, {more:.3f} nats per token more expected damage"
    kept, kept_best = len(kept_sublayers(c.blocks)), len(kept_sublayers(best.blocks))
    if kept < kept_best:
        return "fits with the same expected damage, but removes more"
    return f"fits with the same expected damage, {show_bytes(c.prediction.memory_bytes)} of memory"


def _why_unfit(c: Candidate, limits: Limits, n_steps: int) -> str:
    where = f"at {len(c.blocks)} blocks" + (", where the removal path ends" if c.step and c.step >= n_steps - 1 else "")
    return f"does not fit: {limits.told(c.prediction)} {where}"


def _scores_needed(spec: ModelSpec, device: DeviceProfile, budget: Budget, mode: str | None, limits: Limits) -> str:
    needs = removal_steps_needed(spec, device, budget, mode)
    told = ", ".join(f"{n.quant} {'no number' if n.blocks_to_remove is None else n.blocks_to_remove}" for n in needs)
    whole_one = min(needs, key=lambda n: limits.misses(n.prediction)).prediction
    return (
        f"{spec.name} does not fit whole on {device.id} ({limits.told(whole_one) or limits.text()}), so blocks must go and "
        f"scores are needed to choose them: edgeprune score MODEL -o scores.json. Blocks to remove of {spec.n_blocks}, "
        f"by quantisation: {told}"
    )
