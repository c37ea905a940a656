"""What would keep every block of a model: another quantisation, a shorter context, a larger device."""

from __future__ import annotations

from collections.abc import Iterator

from edgeprune import _kv_types, devices
from edgeprune._candidates import Candidate, damage, routes
from edgeprune._limits import Limits
from edgeprune._quant_kl import QUANT_KL_PRIOR, assumes_matrix, kv_kl, quant_kl
from edgeprune._sizes import Shapes
from edgeprune.blocks import whole
from edgeprune.cost import LLAMACPP_CELLS, Predictor
from edgeprune.errors import UsageError
from edgeprune.types import Budget, DeviceProfile, ModelSpec

ENOUGH = 3  # devices named
GOOD = ("llamacpp", "Q4_K_M")  # what is usually shipped: a larger device should hold no less


def ways(spec: ModelSpec, device: DeviceProfile, budget: Budget, mode: str | None, shapes: Shapes) -> Iterator[str]:
    """Lines for a person, the least change first."""
    found = best(shapes, device, budget, mode)
    for quant in _untried(spec, device, budget):
        other = best(shapes, device, budget.model_copy(update={"quant": quant, "runtime": "llamacpp"}), mode)
        if other and (found is None or other.damage.order < found.damage.order):
            matrix = " (made with an importance matrix)" if assumes_matrix("llamacpp", quant) else ""
            yield f"{_told(other)}{matrix}: the whole model fits, expected KL {other.damage.order:.2g} nats per token"
            break
    shorter = None if found else _shorter(shapes, device, budget, mode)
    if shorter:
        yield f"a context of {shorter[0]} tokens: the whole model fits at {_told(shorter[1])}"
    larger = _larger(shapes, device, budget)
    if larger:
        yield f"another device: the whole model fits on {', '.join(f'{name} ({how})' for name, how in larger)}"


def best(shapes: Shapes, device: DeviceProfile, budget: Budget, mode: str | None) -> Candidate | None:
    """The least damaging way to run the whole model within the budget; None when there is none."""
    limits, blocks, found = Limits.of(budget, device), whole(shapes.spec.n_blocks), []
    for route in routes(shapes.spec, device, budget):
        predict = Predictor(shapes.spec, device, route.runtime, route.backend, mode, shapes)
        prediction = predict(blocks, route.quant, budget.context_tokens, budget.prompt_tokens, route.kv_type)
        priors = quant_kl(route.runtime, route.quant, shapes.total), kv_kl(route.kv_type, shapes.total)
        c = Candidate(*route, 0, blocks, 2 * len(blocks), prediction, damage((), 0, *priors))
        found += [c] if limits.met(c) else []
    return min(found, key=lambda c: c.damage.order, default=None)


def _untried(spec: ModelSpec, device: DeviceProfile, budget: Budget) -> list[str]:
    """llama.cpp's quantisations with a published cost that "auto" leaves out, least damaging first."""
    if budget.quant != "auto" or "llamacpp" not in device.runtimes or budget.runtime == "onnxruntime":
        return []
    tried = {r.quant for r in routes(spec, device, budget)}
    known = [q for runtime, q in QUANT_KL_PRIOR if runtime == "llamacpp" and q not in tried]
    return sorted(known, key=lambda q: QUANT_KL_PRIOR["llamacpp", q][0])


def _shorter(shapes: Shapes, device: DeviceProfile, budget: Budget, mode: str | None) -> tuple[int, Candidate] | None:
    """The longest of half the context, a quarter, … with which the whole model fits."""
    context = budget.context_tokens // 2
    while context >= LLAMACPP_CELLS:
        found = best(shapes, device, budget.model_copy(update={"context_tokens": context}), mode)
        if found:
            return context, found
        context //= 2
    return None


def _larger(shapes: Shapes, device: DeviceProfile, budget: Budget) -> list[tuple[str, str]]:
    """The smallest shipped devices on which nothing has to go at a quantisation as good as GOOD, and at which; the limit on
    memory is the device's own there."""
    here, most = device.memory_available.value, quant_kl(*GOOD, shapes.total) or 0.0
    asked = budget.model_copy(update={"max_mem_bytes": None})
    out = []
    for profile in sorted(devices.load_all(), key=lambda p: (p.memory_available.value, p.id)):
        found = _best_or_none(shapes, profile, asked) if profile.memory_available.value > here else None
        if found and found.damage.order <= most:
            out.append((profile.id, _told(found)))
        if len(out) == ENOUGH:
            break
    return out


def _best_or_none(shapes: Shapes, device: DeviceProfile, budget: Budget) -> Candidate | None:
    try:
        return best(shapes, device, budget, None)
    except UsageError:
        return None  # it lacks the runtime that was asked for


def _told(c: Candidate) -> str:
    cache = "" if c.kv_type == _kv_types.native(c.runtime, c.quant) else f" with a {c.kv_type} KV cache"
    return f"{c.quant} in {c.runtime}{cache}"
