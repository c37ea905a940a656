"""What-if without weights or scores: how many blocks must go at each quantisation, and what that is expected to cost.

Which blocks would go is not known, so a typical run of neighbours near the end stands in for them: for memory and speed
it is their number that counts. The loss is a prior from published results (edgeprune._depth_prior).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from edgeprune import _instead
from edgeprune._candidates import Candidate, Damage, Route, routes
from edgeprune._depth_prior import Loss, removal_loss
from edgeprune._infeasible import explain
from edgeprune._kv_types import ELEMENT_BYTES
from edgeprune._limits import Limits
from edgeprune._quant_kl import kv_kl, quant_kl
from edgeprune._sizes import Shapes
from edgeprune.blocks import whole
from edgeprune.cost import Predictor
from edgeprune.errors import InfeasibleBudget
from edgeprune.types import Blocks, Budget, DeviceProfile, ModelSpec, Prediction, Record

QUALITY = ("max_kl", "max_ppl_ratio")  # limits that no removal helps to meet
SPEED = ("min_decode_tok_per_s", "max_ttft_s")


class Need(Record):
    """How many blocks would have to go for one runtime × quantisation, and what that is expected to cost."""

    runtime: str
    backend: str
    quant: str
    kv_type: str
    blocks_to_remove: int | None  # None: not even one block meets the limits
    prediction: Prediction  # of what is left, or of one block when nothing is enough
    whole_memory_bytes: int  # with the least damaging cache
    quant_kl: float | None  # prior, nats per token
    kv_kl: float | None  # prior
    removal_ratio: float | None  # prior: of perplexities; None where none was published for so large a share
    removal_ratio_low: float | None
    removal_ratio_high: float | None
    expected_kl: float | None  # all three together, nats per token
    meets_quality: bool | None  # whether that is within --max-kl and --max-ppl-ratio, if asked; None when not known


class WhatIf(Record):
    model: str
    source: str | None  # repository on the hub whose config.json the shape is of
    n_blocks: int
    params: int
    device: str
    mode: str | None
    budget: Budget
    memory_limit_bytes: int
    memory_limit_from: str
    needs: tuple[Need, ...]
    best: int | None  # the one of `needs` with the least expected loss among those that meet everything
    basis: str  # of the losses
    instead: tuple[str, ...]  # what would do without removing a block


def what_if(
    spec: ModelSpec, device: DeviceProfile, budget: Budget, mode: str | None = None, source: str | None = None
) -> WhatIf:
    """Raises UsageError for what can't be asked of this model or device, InfeasibleBudget when no number of blocks is
    enough or what is expected of all that fit is beyond the quality asked for."""
    limits, shapes = Limits.of(budget, device), Shapes(spec)
    found = list(_needs(spec, device, budget, mode, shapes).values())
    needed = tuple(need for need, _ in found)
    good = [i for i, n in enumerate(needed) if n.blocks_to_remove is not None and n.meets_quality]
    cut = not good or any(n.blocks_to_remove for n in needed)
    instead = tuple(_instead.ways(spec, device, budget, mode, shapes)) if cut else ()
    if not good:
        finding = explain([c for _, c in found], limits, spec, device, ())
        raise InfeasibleBudget("; or ".join((finding.message, *instead)), finding.nearest)
    known = [i for i in good if needed[i].expected_kl is not None]
    return WhatIf(
        model=spec.name,
        source=source,
        n_blocks=spec.n_blocks,
        params=shapes.total,
        device=device.id,
        mode=mode,
        budget=budget,
        memory_limit_bytes=limits.memory_bytes,
        memory_limit_from=limits.memory_from,
        needs=needed,
        best=min(known, key=lambda i: (found[i][1].damage.order, needed[i].blocks_to_remove, i), default=None),
        basis=Losses(shapes).basis,
        instead=instead,
    )


def needs(
    spec: ModelSpec, device: DeviceProfile, budget: Budget, mode: str | None = None, shapes: Shapes | None = None
) -> list[Need]:
    """For each runtime × quantisation the fewest blocks that must go to meet the limits on memory, file and speed; of the
    KV cache types allowed the one with which the fewest go, then the least damaging. No scores needed."""
    return [need for need, _ in _needs(spec, device, budget, mode, shapes or Shapes(spec)).values()]


def _needs(
    spec: ModelSpec, device: DeviceProfile, budget: Budget, mode: str | None, shapes: Shapes
) -> dict[tuple[str, str], tuple[Need, Candidate]]:
    limits, losses = Limits.of(budget, device), Losses(shapes)
    by_key: dict[tuple[str, str], list[Route]] = {}
    for route in routes(spec, device, budget):
        by_key.setdefault((route.runtime, route.quant), []).append(route)
    predictors: dict[str, Predictor] = {}
    found = {}
    for key, types in by_key.items():
        runtime, backend = types[0][:2]
        if runtime not in predictors:
            predictors[runtime] = Predictor(spec, device, runtime, backend, mode, shapes)
        found[key] = _need(types, predictors[runtime], budget, limits, losses)
    return found


def fewest(n_blocks: int, fits: Callable[[int], bool], guess: int = 0) -> int | None:
    """The least n below `n_blocks` with fits(n): what fits with n gone fits with more. None when none does.

    Steps double away from `guess` until the answer lies between two of them, then halve: exact wherever it starts, and
    two looks when it starts right.
    """
    low, high = -1, n_blocks  # nothing up to low fits, high does; n_blocks stands for never
    at, step = min(max(guess, 0), n_blocks - 1), 1
    while high - low > 1:
        if fits(at):
            high = at
            at = max(at - step, low + 1) if low < 0 else (low + at) // 2
        else:
            low = at
            at = min(at + step, high - 1) if high == n_blocks else (at + high) // 2
        step *= 2
    return high if high < n_blocks else None


@functools.cache
def typical_removal(n_blocks: int, n_removed: int) -> Blocks:
    """The whole model without `n_removed` blocks before the last but one, where removal usually hurts least."""
    end = max(n_blocks - 2, n_removed)
    return tuple(b for b in whole(n_blocks) if not end - n_removed <= b.attn < end)


def scores_needed(spec: ModelSpec, device: DeviceProfile, budget: Budget, mode: str | None) -> str:
    """What to do when blocks must go and nobody has said which."""
    found = needs(spec, device, budget, mode)
    told = ", ".join(f"{n.quant} {'no number' if n.blocks_to_remove is None else n.blocks_to_remove}" for n in found)
    return (
        f"{spec.name} does not fit whole on {device.id} ({Limits.of(budget, device).text()}), so blocks must go and "
        f"scores are needed to choose them: edgeprune score MODEL -o scores.json. Blocks to remove of {spec.n_blocks}, "
        f"by quantisation: {told}"
    )


# --- one route ----------------------------------------------------------------------------------


class Losses:
    """Expected losses of one model, by route and number of blocks removed."""

    def __init__(self, shapes: Shapes):
        self.n_blocks, self.params = shapes.spec.n_blocks, shapes.total

    def removal(self, n: int) -> Loss | None:
        return removal_loss(n / self.n_blocks, self.params)

    def of(self, route: Route, n: int) -> Damage:
        loss = self.removal(n)
        quant, cache = quant_kl(route.runtime, route.quant, self.params), kv_kl(route.kv_type, self.params)
        order = loss.kl + (quant or 0.0) + (cache or 0.0) if loss else math.inf
        return Damage(loss.kl if loss else None, loss.middle if loss else None, quant, cache, order)

    @property
    def basis(self) -> str:
        nothing = self.removal(0)
        return nothing.basis if nothing else ""


def _need(
    types: list[Route], predict: Predictor, budget: Budget, limits: Limits, losses: Losses
) -> tuple[Need, Candidate]:
    """The need, and the candidate it shows. `types`: the same quantisation with every type of cache, least damaging first."""
    n_blocks = losses.n_blocks
    hard = limits._replace(bounds={k: v for k, v in limits.bounds.items() if k not in QUALITY})

    def candidate(route: Route, n: int, timed: bool = True) -> Candidate:
        blocks = typical_removal(n_blocks, n)
        prediction = predict(blocks, route.quant, budget.context_tokens, budget.prompt_tokens, route.kv_type, timed)
        return Candidate(*route, n, blocks, 2 * len(blocks), prediction, losses.of(route, n))

    whole_one = candidate(types[0], 0)
    smallest = min(types, key=lambda route: ELEMENT_BYTES[route.kv_type])  # what fits with another fits with this
    timed = any(key in hard.bounds for key in SPEED)
    n = 0
    if not hard.met(whole_one):
        guess = _guess(whole_one, hard, predict.shapes)
        n = fewest(n_blocks, lambda n: hard.met(candidate(smallest, n, timed)), guess)
    at = n_blocks - 1 if n is None else n
    shown = next((c for c in (candidate(r, at) for r in types if r != smallest) if hard.met(c)), None)
    shown = shown or candidate(smallest, at)
    loss = None if n is None else losses.removal(n)
    need = Need(
        runtime=shown.runtime,
        backend=shown.backend,
        quant=shown.quant,
        kv_type=shown.kv_type,
        blocks_to_remove=n,
        prediction=shown.prediction,
        whole_memory_bytes=whole_one.prediction.memory_bytes,
        quant_kl=shown.damage.quant_kl,
        kv_kl=shown.damage.kv_kl,
        removal_ratio=loss.middle if loss else None,
        removal_ratio_low=loss.low if loss else None,
        removal_ratio_high=loss.high if loss else None,
        expected_kl=None if n is None else shown.damage.kl,
        meets_quality=_meets(shown, limits),
    )
    return need, shown


def _guess(whole_one: Candidate, limits: Limits, shapes: Shapes) -> int:
    """As many blocks as take up the memory over the limit, were their bytes in the file's proportion to parameters."""
    p = whole_one.prediction
    of_blocks = p.kv_bytes + p.weights_bytes * shapes.listed(whole_one.blocks).params / shapes.total
    return math.ceil(len(whole_one.blocks) * (p.memory_bytes - limits.memory_bytes) / of_blocks)


def _meets(c: Candidate, limits: Limits) -> bool | None:
    asked = [line for line in limits.lines if line.key in QUALITY]
    if any(line.value(c) is None for line in asked):
        return None
    return not any(line in asked for line in limits.missed(c))
