"""One walk through a pruned model and the whole one beside it, solving weights anew on the way.

Both streams of all tokens go through the layers together, so every weight is used once. A kept sub-layer's target is the
whole model's stream just before the next kept one, after all that was removed in between; what the pruned stream, with the
weights solved so far, lacks of it is what its output projection is asked to give as well. Kept sub-layers are the whole
model's own, or those of a thinner model, which lack what was taken out of them. Windows held aside go along and tell in the
end whether it helped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeprune import families
from edgeprune.blocks import kept_sublayers
from edgeprune.checkpoint import Checkpoint
from edgeprune.divergence import compare
from edgeprune.errors import InputRejected, OutOfResources
from edgeprune.healers._moments import Scope, Seen
from edgeprune.metrics._halves import Half, all_halves, entrance, halves, head, run_device
from edgeprune.metrics._weights import at_hand
from edgeprune.torch_model import free_bytes
from edgeprune.types import Blocks

if TYPE_CHECKING:
    import torch

Windows = Sequence[Sequence[int]]


class Kind(NamedTuple):
    """Windows of one kind of text: those that weights are fitted to, none for a text that only judges, and those held aside."""

    name: str
    fit: Windows
    aside: Windows


class Change(NamedTuple):
    """delta (k, d): what is added to the transposed weight of a sub-layer's output projection."""

    half: Half
    delta: torch.Tensor


class Attempt(NamedTuple):
    """What one scope changed, and KL(whole ‖ it) and loss, nats per token, of each kind's windows held aside."""

    scope: str
    changes: tuple[Change, ...]
    kl: tuple[float, ...]
    loss: tuple[float, ...]


class Attempts(NamedTuple):
    loss_whole: tuple[float, ...]  # of each kind
    cut: Attempt  # the pruned model as it is
    healed: tuple[Attempt, ...]  # every scope of every healer, in order


def attempt(
    model: Any, blocks: Blocks, healers: Sequence[Any], kinds: Sequence[Kind],
    progress: Callable[[int, int], None] = lambda done, total: None, thinner: Any = None,
) -> Attempts:  # fmt: skip
    """Solve the output projections of what `blocks` keeps of a whole torch causal LM, for every scope of these healer modules.

    thinner: the pruned model, of those blocks, where its weights are not the whole one's; stream, embedding and head are
    alike. All windows are of one length. In memory: the streams (tokens, d) of the whole model and of each scope, a projection's
    inputs (tokens, k), its Gram matrix (k, k). Raises InputRejected where logits are not finite.
    """
    import torch

    walk = _Walk(model, thinner, healers, kinds)
    with torch.inference_mode():
        whole = walk.through(kept_sublayers(blocks), progress)
        return _judged(model, kinds, whole, walk)


def choose(found: Attempts) -> Attempt | None:
    """Of the attempts that are no worse than the cut on any kind of text, the one with the least KL; None of none."""
    able = [
        a for a in found.healed if a.changes and all(x <= y for x, y in zip(a.kl, found.cut.kl, strict=True))
    ]  # fmt: skip
    return min(able, key=lambda a: sum(a.kl), default=None)


def refuse(checkpoint: Checkpoint, healer: Any, method: str) -> None:
    """Raises InputRejected where a model of this checkpoint can't be healed so, with the reason."""
    model_type = checkpoint.config["model_type"]
    family = families.for_model_type(model_type)
    if families.norms_after(family):
        raise InputRejected(
            f"{model_type} models have norms after their output projections, through which {method} can't be solved in closed "
            "form; leave the cut as it is"
        )
    biased = [
        f"{output}.bias"
        for output in family.OUTPUTS
        if f"{family.LAYER.format(i=0)}{output}.bias" in checkpoint.tensors
    ]
    if biased and not healer.BIASES:
        raise InputRejected(
            f"this {model_type} model has {biased[0]}, which {method} does not allow for; try another method"
        )


def room(model: Any, kinds: Sequence[Kind], n_scopes: int, max_bytes: int | None, thinner: Any = None) -> None:
    """Raises OutOfResources, before any work, when the streams and sums of `attempt` take more than there is."""
    d = families.decoder(model.config.to_dict())
    n_tokens = sum(len(w) for kind in kinds for w in [*kind.fit, *kind.aside])
    streams = n_tokens * model.dtype.itemsize * (d.hidden * 2 * (n_scopes + 2) + d.ffn * n_scopes)
    sums = 8 * 4 * d.ffn * (d.ffn + d.hidden)  # a Gram matrix, its product in float32, it damped, its factor
    changes = 4 * n_scopes * d.n_blocks * d.hidden * (d.ffn + d.n_heads * d.head_dim)  # if all layers come after a cut
    loaded = [p for m in (model, thinner) if m is not None for p in m.parameters()]
    limit, weights = max_bytes or free_bytes(), 0 if max_bytes is None else sum(p.nbytes for p in loaded)
    needed = weights + streams + sums + changes
    if needed > limit:
        raise OutOfResources(
            f"healing by {n_tokens} tokens takes about {needed / 1e6:.0f} MB, {limit / 1e6:.0f} MB is the "
            "limit; take fewer --windows, or raise --max-memory"
        )


def of_kinds(found: Attempts, chosen: Sequence[int]) -> Attempts:
    """What was found on some of the kinds."""

    def some(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(values[k] for k in chosen)

    cut, *healed = (a._replace(kl=some(a.kl), loss=some(a.loss)) for a in (found.cut, *found.healed))
    return Attempts(some(found.loss_whole), cut, tuple(healed))


class _Version:
    """The pruned stream of one scope. None while it is still the whole model's."""

    def __init__(self, name: str, scope: Scope, first: int):
        self.name, self.scope = name, scope
        self.first = first  # of all windows, it carries those from this on
        self.stream: torch.Tensor | None = None
        self.changes: list[Change] = []
        self.waiting: _Waiting | None = None


class _Waiting(NamedTuple):
    """A sub-layer that has run, and whose target the whole stream has not reached yet."""

    half: Half
    inputs: torch.Tensor  # of its output projection (g, t, k)
    weight: torch.Tensor  # (d, k)
    share: float  # of the change that is made


class _Sublayer(NamedTuple):
    half: Half
    run: Callable[..., torch.Tensor]
    projection: Any  # its output's, a Linear


def _sublayers(model: Any) -> Iterator[_Sublayer]:
    """In the order they run; the weights of each are in memory while the iteration stands at it."""
    outputs = dict(zip("AF", families.for_model_type(model.config.model_type).OUTPUTS, strict=True))
    for (kind, i), run in halves(model):
        yield _Sublayer((kind, i), run, model.model.layers[i].get_submodule(outputs[kind]))


class _Walk:
    def __init__(self, model: Any, thinner: Any, healers: Sequence[Any], kinds: Sequence[Kind]):
        import torch

        self.model, self.thinner = model, thinner
        self.n_fit = sum(len(kind.fit) for kind in kinds)  # windows; those held aside come after
        windows = [*(w for kind in kinds for w in kind.fit), *(w for kind in kinds for w in kind.aside)]
        self.tokens = torch.tensor([list(w) for w in windows], device=run_device(model))
        family = families.for_model_type(model.config.model_type)
        self.scale = family.decoder(model.config.to_dict()).residual_scale
        self.cut = _Version("", Scope(lambda seen, weight: None, lambda before_cut: 0.0), self.n_fit)
        tried = [each for healer in healers for each in healer.SCOPES.items()]
        self.versions = [self.cut, *(_Version(*each, 0) for each in tried)]

    def through(self, kept: Sequence[Half], progress: Callable[[int, int], None]) -> torch.Tensor:
        """The whole model's stream (g, t, d) after the last layer; the versions' are at the same point."""
        order = all_halves(len(self.model.model.layers))
        stays = set(kept)
        own = None if self.thinner is None else _sublayers(self.thinner)
        parted = False  # from the first cut on
        whole, kwargs = entrance(self.model, self.tokens)
        for i, theirs in enumerate(_sublayers(self.model)):
            mine = None
            if theirs.half in stays:
                self._settle(whole)
                mine = next(own) if own else theirs
            cut = mine is None or mine.projection.weight.shape != theirs.projection.weight.shape
            cut = cut or (i + 1 < len(order) and order[i + 1] not in stays)
            parted = parted or cut
            if parted:
                self._part(whole)
            if parted and mine:
                for version in self.versions:
                    self._step(version, mine._replace(half=theirs.half), kwargs[theirs.half[1]], cut)
            whole = theirs.run(whole, **kwargs[theirs.half[1]])
            progress(i + 1, len(order))
        self._settle(whole)
        self._part(whole)
        return whole

    def _part(self, whole: torch.Tensor) -> None:
        for version in self.versions:
            if version.stream is None:
                version.stream = whole[version.first :]

    def _step(self, version: _Version, at: _Sublayer, kwargs: dict[str, Any], cut: bool) -> None:
        share = version.scope.share(cut)
        if not share:
            version.stream = at.run(version.stream, **kwargs)
            return
        inputs: list[torch.Tensor] = []
        noted = at.projection.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        try:
            version.stream = at.run(version.stream, **kwargs)
        finally:
            noted.remove()
        version.waiting = _Waiting(at.half, _joined(inputs, version.stream), at.projection.weight.clone(), share)

    def _settle(self, target: torch.Tensor) -> None:
        """Solve what waits, now that the whole stream stands at the next kept sub-layer."""
        import torch

        n = self.n_fit
        for version in self.versions:
            if version.waiting is None:
                continue
            half, inputs, weight, share = version.waiting
            version.waiting = None
            solved = version.scope.solve(Seen(inputs[:n], version.stream[:n], target[:n], self.scale), weight)
            if solved is None:
                continue
            delta = share * solved.to(inputs.device).float()
            version.changes.append(Change(half, delta.cpu()))
            more = [stream + self.scale * (f.float() @ delta) for stream, f in zip(version.stream, inputs, strict=True)]
            version.stream = torch.stack([m.to(version.stream.dtype) for m in more])


def _joined(inputs: list[torch.Tensor], stream: torch.Tensor) -> torch.Tensor:
    """What a projection was given in calls of some windows each, as (g, t, k)."""
    import torch

    return torch.cat([f.reshape(-1, stream.shape[1], f.shape[-1]) for f in inputs])


def _judged(model: Any, kinds: Sequence[Kind], whole: torch.Tensor, walk: _Walk) -> Attempts:
    """KL and loss of all versions on the windows held aside."""

    first, versions = walk.cut.first, walk.versions
    sums = [[[0.0, 0.0] for _ in kinds] for _ in versions]
    loss_whole = [0.0] * len(kinds)
    n_tokens = [sum(len(w) - 1 for w in kind.aside) for kind in kinds]
    which = [k for k, kind in enumerate(kinds) for _ in kind.aside]
    with at_hand(model.model.norm, model.lm_head):
        for w, k in enumerate(which, first):
            tokens, logp = walk.tokens[w], head(model)(whole[w : w + 1]).float().log_softmax(-1)
            for v, version in enumerate(versions):
                at = w - version.first
                found = compare(logp, head(model)(version.stream[at : at + 1]), tokens)
                if not math.isfinite(found.kl + found.nll):
                    raise InputRejected(
                        f"{version.name or 'the cut model'} gives logits that are not finite; prune again"
                    )
                sums[v][k][0] += found.kl / n_tokens[k]
                sums[v][k][1] += found.nll / n_tokens[k]
            loss_whole[k] += found.nll_whole / n_tokens[k]
    cut, *healed = (
        Attempt(v.name, tuple(v.changes), *(tuple(x) for x in zip(*of, strict=True)))
        for v, of in zip(versions, sums, strict=True)
    )
    return Attempts(tuple(loss_whole), cut, tuple(healed))
