"""All that could be planned: removal step × quantisation × KV cache type × runtime, each with its cost and its damage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from edgeprune import _gguf_arch, _kv_types, catalog, families
from edgeprune._quant_kl import kv_kl, quant_kl
from edgeprune._rates import backends
from edgeprune._sizes import Shapes, named
from edgeprune.blocks import kept_sublayers, whole
from edgeprune.cost import Predictor, best_backend, quants
from edgeprune.errors import UsageError
from edgeprune.types import Blocks, Budget, DeviceProfile, ModelSpec, PathStep, Prediction

RUNTIMES = ("llamacpp", "onnxruntime")  # those with an exporter, in order of preference
# What "auto" tries. 16- and 32-bit types are left out: twice the bytes, so half the speed, for a KL near 0.01.
LADDER = {
    "llamacpp": ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K"),
    "onnxruntime": ("int8", "int4-mixed", "int4"),
}


class Route(NamedTuple):
    """Where and how a block list would run."""

    runtime: str
    backend: str
    quant: str
    kv_type: str


class Damage(NamedTuple):
    """What a candidate is expected to lose against the whole, unquantised model. None: not known."""

    removal_kl: float | None  # measured, nats per token
    removal_ratio: float | None  # measured, of perplexities
    quant_kl: float | None  # prior
    kv_kl: float | None  # prior
    order: float  # what ranks candidates: the sum, unknown priors taken for nothing

    @property
    def kl(self) -> float | None:
        parts = (self.removal_kl, self.quant_kl, self.kv_kl)
        return None if None in parts else sum(p for p in parts if p is not None)

    @property
    def ppl_ratio(self) -> float | None:
        """Of the whole model's perplexity. For quantisation, KL and the logarithm of the ratio are near: 0.031 and 0.028 for
        Q4_K_M, 0.45 and 0.45 for Q2_K (Llama 3 8B, llama.cpp tools/perplexity/README.md)."""
        if self.removal_ratio is None or self.quant_kl is None or self.kv_kl is None:
            return None
        return self.removal_ratio * math.exp(self.quant_kl + self.kv_kl)


class Candidate(NamedTuple):
    runtime: str
    backend: str
    quant: str
    kv_type: str
    step: int  # of the removal path; 0 is the whole model
    blocks: Blocks
    kept: int  # sub-layers
    prediction: Prediction
    damage: Damage


def candidates(
    spec: ModelSpec, path: Sequence[PathStep], device: DeviceProfile, budget: Budget, mode: str | None
) -> tuple[list[Candidate], list[str]]:
    """Every candidate the budget allows to be tried, and a line per runtime on steps of the path that it can't run.

    Raises UsageError for what can't be asked of this model or device.
    """
    found, shapes = routes(spec, device, budget), Shapes(spec)
    steps, refused = _steps(shapes, path, [r.runtime for r in found])
    predictors: dict[str, Predictor] = {}
    out = []
    for route in found:
        runtime, backend, quant, kv_type = route
        predict = predictors.setdefault(runtime, Predictor(spec, device, runtime, backend, mode, shapes))
        priors = quant_kl(runtime, quant, shapes.total), kv_kl(kv_type, shapes.total)
        for k, blocks, kept in steps[runtime]:
            prediction = predict(blocks, quant, budget.context_tokens, budget.prompt_tokens, kv_type)
            out.append(Candidate(*route, k, blocks, kept, prediction, damage(path, k, *priors)))
    if not out:
        raise UsageError(f"{spec.name} can't be planned for {device.id}: {'; '.join(refused)}")
    return out, refused


def routes(spec: ModelSpec, device: DeviceProfile, budget: Budget) -> list[Route]:
    """Runtime × backend × quantisation × KV cache type that the budget allows on this device, never none."""
    if budget.runtime == "auto":
        runtimes = [r for r in RUNTIMES if backends(device, r)]
    else:
        runtimes = [_runtime(device, budget.runtime)]
    if not runtimes:
        raise UsageError(f"{device.id} lists neither {' nor '.join(RUNTIMES)}; it lists {', '.join(device.runtimes)}")
    found = []
    for runtime in runtimes:
        backend = best_backend(device, runtime)
        assert backend is not None
        for quant in LADDER[runtime] if budget.quant == "auto" else named(runtime, budget.quant):
            found += [Route(runtime, backend, quant, t) for t in _kv_types.offered(spec, runtime, backend, quant)]
    if not found:
        known = "; ".join(f"{r}: {', '.join(quants(r))}" for r in runtimes)
        raise UsageError(f"no quantisation called {budget.quant!r} for {device.id}. Known: {known}")
    return _of_kv_type(found, budget.kv_type, spec, device)


def _of_kv_type(found: list[Route], asked: str, spec: ModelSpec, device: DeviceProfile) -> list[Route]:
    """ "f16" stands for a cache that is not quantised, whichever float the runtime takes."""
    if asked == "auto":
        return found
    known = ("auto", *_kv_types.LLAMACPP)
    if asked not in known:
        raise UsageError(f"no KV cache type {asked!r}; known: {', '.join(known)}")
    kept = [r for r in found if r.kv_type == asked or (asked == "f16" and r.kv_type == "f32")]
    if not kept:
        where = ", ".join(dict.fromkeys(f"{r.runtime} on {r.backend}" for r in found))
        raise UsageError(
            f"{device.id} holds no {asked} KV cache of {spec.name} ({where}, heads of {spec.head_dim}): it takes llama.cpp "
            f"with flash attention on {', '.join(sorted(_kv_types.FLASH_BACKENDS))} and heads of a multiple of "
            f"{_kv_types.GROUP}; leave out --kv-type"
        )
    return kept


def _runtime(device: DeviceProfile, name: str) -> str:
    if name not in RUNTIMES:
        raise UsageError(f"no export for runtime {name!r}; known: {', '.join(RUNTIMES)}")
    if not backends(device, name):
        raise UsageError(f"{device.id} does not run {name}; it lists {', '.join(device.runtimes)}")
    return name


def _steps(
    shapes: Shapes, path: Sequence[PathStep], runtimes: Sequence[str]
) -> tuple[dict[str, list[tuple[int, Blocks, int]]], list[str]]:
    """Per runtime, the path steps it can run (step 0 is the whole model) and how many sub-layers each keeps, and a line on
    those it can't."""
    kept = [len(kept_sublayers(step.blocks)) for step in path]
    found: dict[str, list[tuple[int, Blocks, int]]] = {}
    refused = []
    for runtime in dict.fromkeys(runtimes):
        reasons = [_unheld(shapes, step.blocks, runtime) for step in path]
        found[runtime] = [(k, step.blocks, kept[k]) for k, step in enumerate(path) if reasons[k] is None]
        told = [r for r in reasons if r]
        if told:
            refused.append(f"{runtime} can't run {len(told)} of {len(path)} steps of the path: {told[0]}")
    return found, refused


def _unheld(shapes: Shapes, blocks: Blocks, runtime: str) -> str | None:
    """Why `runtime` can't run this block list of this model; None when it can."""
    spec = shapes.spec
    if spec.family not in catalog.names("edgeprune.families"):  # a .gguf of an architecture only llama.cpp knows
        if runtime != "llamacpp":
            return f"{spec.family} models are read from GGUF and stay there; only llamacpp runs them"
        nothing_gone = blocks == whole(spec.n_blocks)
        return None if nothing_gone else _gguf_arch.refusal(spec.model_type, spec.n_blocks, blocks)
    rotates = [b.attn is None or spec.blocks[b.attn].rotates for b in blocks]
    halves = [(b.attn is not None, b.ffn is not None) for b in blocks]
    family = catalog.load("edgeprune.families", spec.family)
    return families.refusal(family, runtime, rotates, halves, spec.tied_embeddings, shapes.alike)


def damage(path: Sequence[PathStep], k: int, quant: float | None, cache: float | None) -> Damage:
    """A step without a KL is ranked by the rise of its log perplexity, one without either by its place on the path."""
    removal: float | None = 0.0
    ratio: float | None = 1.0
    order = 0.0
    if k:
        step, first = path[k], path[0]
        ratio = step.perplexity / first.perplexity if step.perplexity and first.perplexity else None
        removal = step.kl if step.kl is not None else max(0.0, math.log(ratio)) if ratio else None
        order = float(k) if removal is None else removal
    return Damage(removal, ratio, quant, cache, order + (quant or 0.0) + (cache or 0.0))
