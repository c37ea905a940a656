"""ModelSpec + Scores + DeviceProfile + Budget -> Plan. Pure, without torch or weights, in milliseconds.

Every step of the removal path is tried with every quantisation, KV cache type and runtime that the budget allows: the
product is small, so the choice is exact. Of those that meet all limits the one that is best by the objective wins; by
default the least expected damage: the step's measured KL plus the priors for quantisation and cache. Ties go to fewer
removed sub-layers, then fewer bytes, then the name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from edgeprune._candidates import LADDER, RUNTIMES, Candidate, candidates
from edgeprune._infeasible import explain
from edgeprune._limits import Limits
from edgeprune._pareto import front
from edgeprune._quant_kl import QUANT_KL_PRIOR, kv_kl, quant_kl
from edgeprune.blocks import describe_removed, whole
from edgeprune.errors import InfeasibleBudget, UsageError, WrongWeights
from edgeprune.types import Alternative, Blocks, Budget, DeviceProfile, ModelSpec, PathStep, Plan, Scores
from edgeprune.units import show_bytes

__all__ = ["LADDER", "QUANT_KL_PRIOR", "RUNTIMES", "check_scores", "kv_kl", "make_plan", "quant_kl"]


def make_plan(
    spec: ModelSpec, scores: Scores | None, device: DeviceProfile, budget: Budget, mode: str | None = None,
    blocks: Blocks | None = None,
) -> Plan:  # fmt: skip
    """The best plan within the budget; with `blocks`, the best in which exactly these stay.

    Without scores only the whole model, or named blocks, can be planned. Raises UsageError for what can't be asked of
    this model or device, or when scores are needed; WrongWeights for another model's scores; InfeasibleBudget with the
    nearest budget that works and its plan.
    """
    if scores is not None:
        check_scores(spec, scores)
    limits, path = Limits.of(budget, device), _path(spec, scores, blocks)
    tried, refused = candidates(spec, path, device, budget, mode)
    found = [c for c in tried if blocks in (None, c.blocks)]
    if not found:
        raise UsageError(f"{spec.name} can't be planned so for {device.id}: {'; '.join(refused)}")

    asked = _Asked(spec, path, scores, device, mode)
    wholes = [c for c in tried if c.step == 0]
    if any(limits.met(c) for c in found):
        return _choose(asked, found, wholes, limits, budget)
    finding = explain(found, limits, spec, device, refused)
    if scores is None and blocks is None:
        from edgeprune.what_if import scores_needed

        raise UsageError(scores_needed(spec, device, budget, mode) or finding.message)
    plan = None
    if finding.nearest:
        wider = budget.model_copy(update=finding.nearest)
        plan = _choose(asked, found, wholes, Limits.of(wider, device), wider)
    raise InfeasibleBudget(finding.message, finding.nearest, plan)


def _path(spec: ModelSpec, scores: Scores | None, blocks: Blocks | None = None) -> tuple[PathStep, ...]:
    """The scores' path; of named blocks the whole model and these, with their damage where the scores know it."""
    path = scores.path if scores else (PathStep(blocks=whole(spec.n_blocks), kl=0.0, perplexity=None),)
    if blocks is None or blocks == path[0].blocks:
        return path
    unknown = PathStep(blocks=blocks, kl=None, perplexity=None)
    return path[0], next((step for step in path if step.blocks == blocks), unknown)


def check_scores(spec: ModelSpec, scores: Scores) -> None:
    """Raises WrongWeights unless the scores are of exactly these weights."""
    if scores.fingerprint != spec.fingerprint or scores.n_blocks != spec.n_blocks:
        raise WrongWeights(
            f"the scores are of {scores.model} ({scores.n_blocks} blocks, {scores.fingerprint[:12]}), the model is "
            f"{spec.name} ({spec.n_blocks} blocks, {spec.fingerprint[:12]}); make new ones: edgeprune score MODEL -o scores.json"
        )


# --- the choice ---------------------------------------------------------------------------------


def _order(c: Candidate, objective: str) -> tuple:
    """Smaller is better."""
    p = c.prediction
    first = {
        "quality": 0.0,
        "speed": math.inf if p.decode_tok_per_s is None else -p.decode_tok_per_s,
        "size": p.file_bytes,
        "memory": p.memory_bytes,
    }[objective]
    return first, c.damage.order, -c.kept, p.memory_bytes, c.runtime, c.quant, c.kv_type


class _Asked(NamedTuple):
    spec: ModelSpec
    path: Sequence[PathStep]
    scores: Scores | None
    device: DeviceProfile
    mode: str | None


def _choose(asked: _Asked, found: list[Candidate], wholes: list[Candidate], limits: Limits, budget: Budget) -> Plan:
    spec, path = asked.spec, asked.path
    feasible = [c for c in found if limits.met(c)]
    best = min(feasible, key=lambda c: _order(c, budget.objective))
    step = path[best.step]
    scores = asked.scores if asked.scores and step in asked.scores.path else None
    return Plan(
        model=spec.name,
        family=spec.family,
        fingerprint=spec.fingerprint,
        n_blocks_whole=spec.n_blocks,
        device=asked.device.id,
        mode=asked.mode,
        runtime=best.runtime,
        backend=best.backend,
        quant=best.quant,
        kv_type=best.kv_type,
        budget=budget,
        memory_limit_bytes=limits.memory_bytes,
        memory_limit_from=limits.memory_from,
        blocks=best.blocks,
        removed=describe_removed(best.blocks, spec.n_blocks),
        damage_kl=step.kl,
        damage_perplexity=step.perplexity,
        whole_perplexity=path[0].perplexity,
        quant_kl=best.damage.quant_kl,
        kv_kl=best.damage.kv_kl,
        expected_kl=best.damage.kl,
        expected_ppl_ratio=best.damage.ppl_ratio,
        prediction=best.prediction,
        prediction_whole=next(c.prediction for c in wholes if c[:4] == best[:4]),
        alternatives=_alternatives(asked, limits, found, best, budget.objective),
        front=tuple(_alternative(asked, c, _trade(c, best)) for c in front(feasible)),
        scores_sha256=scores.digest() if scores else None,
        metric=scores.metric if scores else None,
    )


def _alternatives(
    asked: _Asked, limits: Limits, found: list[Candidate], best: Candidate, objective: str
) -> tuple[Alternative, ...]:
    """The best of each other runtime × quantisation, feasible ones first."""
    routes: dict[tuple[str, str], list[Candidate]] = {}
    for c in found:
        if (c.runtime, c.quant) != (best.runtime, best.quant):
            routes.setdefault((c.runtime, c.quant), []).append(c)
    out = []
    for tried in routes.values():
        fitting = [c for c in tried if limits.met(c)]
        c = min(fitting or tried, key=lambda c: (limits.misses(c), *_order(c, objective)))
        reason = _why_lost(c, best, objective) if fitting else _why_unfit(c, limits, max(t.step for t in tried))
        out.append(((not fitting, *_order(c, objective)), _alternative(asked, c, reason)))
    return tuple(a for _, a in sorted(out, key=lambda o: o[0]))


def _alternative(asked: _Asked, c: Candidate, reason: str) -> Alternative:
    return Alternative(
        runtime=c.runtime,
        quant=c.quant,
        kv_type=c.kv_type,
        n_blocks=len(c.blocks),
        removed=describe_removed(c.blocks, asked.spec.n_blocks),
        damage_kl=asked.path[c.step].kl,
        quant_kl=c.damage.quant_kl,
        kv_kl=c.damage.kv_kl,
        prediction=c.prediction,
        reason=reason,
    )


def _why_lost(c: Candidate, best: Candidate, objective: str) -> str:
    p, q = c.prediction, best.prediction
    if objective == "speed" and p.decode_tok_per_s != q.decode_tok_per_s:
        if p.decode_tok_per_s is None or q.decode_tok_per_s is None:
            return "fits, its speed is not known"
        return f"fits, {q.decode_tok_per_s - p.decode_tok_per_s:.3g} tok/s slower"
    if objective == "size" and p.file_bytes != q.file_bytes:
        return f"fits, {show_bytes(p.file_bytes - q.file_bytes)} more file"
    if objective == "memory" and p.memory_bytes != q.memory_bytes:
        return f"fits, {show_bytes(p.memory_bytes - q.memory_bytes)} more memory"
    more = c.damage.order - best.damage.order
    if more > 0:
        return f"fits, {more:.3f} nats per token more expected damage"
    if c.kept < best.kept:
        return "fits with the same expected damage, but removes more"
    return f"fits with the same expected damage, {show_bytes(p.memory_bytes)} of memory"


def _why_unfit(c: Candidate, limits: Limits, last_step: int) -> str:
    where = f"at {len(c.blocks)} blocks" + (", where the removal path ends" if c.step and c.step >= last_step else "")
    return f"does not fit: {limits.told(c)} {where}"


def _trade(c: Candidate, best: Candidate) -> str:
    """What a point of the front gives and takes against the plan."""
    if c is best:
        return "the plan"
    p, q = c.prediction, best.prediction
    less = q.memory_bytes - p.memory_bytes
    parts = [f"{c.damage.order - best.damage.order:+.3f} nats"]
    parts += [f"{show_bytes(abs(less))} {'less' if less > 0 else 'more'} memory"] if less else []
    if p.decode_tok_per_s and q.decode_tok_per_s:
        parts.append(f"{p.decode_tok_per_s / q.decode_tok_per_s - 1:+.0%} speed")
    return ", ".join(parts)
