"""The one training loop: AdamW over a fixed number of steps, stopped early by text held aside, resumable at any step.

Everything random is drawn from the step's number, so a run that was killed goes on from its last checkpoint to the same
weights. Processes of `accelerate launch` share each step's sequences and add up their gradients.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from edgeprune.errors import InputRejected
from edgeprune.heal_text import Example
from edgeprune.healers._trainee import Recipe, Trainee
from edgeprune.training.batches import MICRO_TOKENS, as_batch, batch_of, micro
from edgeprune.training.notebook import Judged, Notebook, Progress
from edgeprune.training.pace import Length, rate_at
from edgeprune.work import Work

SAVE_SECONDS = 300.0  # between checkpoints
PATIENCE = 3  # looks at the text held aside without a better one
# Of the way from the first weights to the last: what training costs one kind of text goes sooner than what it gives the others
# (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903).
PARTS = (3 / 4, 1 / 2, 1 / 4)


def train(
    student: Any, trainee: Trainee, examples: Sequence[Example], recipe: Recipe, limit: Length, before: Judged,
    judge: Callable[[], Judged], notebook: Notebook, work: Work, mixed: Callable[[], AbstractContextManager[Any]],
    seed: int = 0,
) -> Progress:  # fmt: skip
    """Train `trainee.parameters` in place; they come back as they were at the best look, or part of the way to the last where
    none was better on every kind of text, or as at first where that isn't either.

    `before` is what `judge` finds at first; `mixed` the context that losses are computed in. Raises InputRejected when a
    loss or a gradient is not finite.
    """
    import torch

    names, parameters = list(trainee.parameters), list(trainee.parameters.values())
    optimiser = _adamw(parameters, recipe)
    known = notebook.read()
    now, best = known[0] if known else Progress(), [p.detach().cpu().clone() for p in parameters]
    if known:
        best = _restore(names, parameters, optimiser, known[1])
    started = saved = time.monotonic()
    earlier = now.seconds
    while now.step < limit.steps and not _stalled(now):
        batch = batch_of(examples, now.step, limit.per_step, seed)
        torch.manual_seed((seed * limit.steps + now.step) * work.world + work.rank)
        for group in optimiser.param_groups:
            group["lr"] = rate_at(recipe, now.step, limit.steps)
        student.train()
        loss = _gradients(trainee, parameters, batch, now.step / limit.steps, work, mixed)
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        if not math.isfinite(loss + norm.item()):
            raise InputRejected(
                f"training came to a loss of {loss:g} and a gradient of norm {norm:g} at step {now.step + 1}; lower the rate "
                "(--set rate=…), or train in --precision float32"
            )
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        tokens = now.tokens + sum(len(e.tokens) for e in batch)
        seconds = work.once(lambda: earlier + time.monotonic() - started)
        now = now._replace(step=now.step + 1, tokens=tokens, seconds=seconds)
        last = now.step == limit.steps or seconds >= limit.seconds
        if last or now.step % limit.look_every == 0:
            student.eval()
            now = _look(now, judge(), before)
            if now.best == len(now.looks) - 1:
                best = [p.detach().cpu().clone() for p in parameters]
        if work.rank == 0 and (last or time.monotonic() - saved >= SAVE_SECONDS):
            notebook.write(now, _tensors(names, parameters, optimiser, best))
            saved = time.monotonic()
        work.progress(now.step, limit.steps)
        if last:
            break
    student.eval()
    if now.best is None:
        return _part_of_the_way(now, parameters, best, judge, before)
    _put(parameters, best)
    return now


def _part_of_the_way(
    now: Progress, parameters: Sequence[Any], first: Sequence[Any], judge: Callable[[], Judged], before: Judged
) -> Progress:
    """Between the first weights and those that are there; the first where no part is better."""
    last = [p.detach().cpu().clone() for p in parameters]
    for part in PARTS:
        _put(parameters, [a.lerp(b, part) for a, b in zip(first, last, strict=True)])
        now = _look(now, judge(), before)
        if now.best is not None:
            return now._replace(part=part)
    _put(parameters, first)
    return now


def _put(parameters: Sequence[Any], values: Sequence[Any]) -> None:
    import torch

    with torch.no_grad():
        for p, value in zip(parameters, values, strict=True):
            p.copy_(value)


def _look(now: Progress, found: Judged, before: Judged) -> Progress:
    looks = (*now.looks, (now.tokens, found))
    no_worse = all(new[0] <= old[0] for new, old in zip(found, before, strict=True))
    better = now.best is None or _total(found) < _total(now.looks[now.best][1])
    return now._replace(looks=looks, best=len(looks) - 1 if no_worse and better else now.best)


def _stalled(now: Progress) -> bool:
    """Whether the least sum is PATIENCE looks ago."""
    sums = [_total(found) for _, found in now.looks]
    return bool(sums) and len(sums) - 1 - sums.index(min(sums)) >= PATIENCE


def _total(found: Judged) -> float:
    return sum(kind[0] for kind in found)


def _gradients(
    trainee: Trainee, parameters: Sequence[Any], batch: Sequence[Example], share: float, work: Work,
    mixed: Callable[[], AbstractContextManager[Any]],
) -> float:  # fmt: skip
    """Of the mean loss per learnt token of the batch, which is returned; each process takes its part."""
    import torch

    device = parameters[0].device
    n = max(1, sum(sum(e.learn) for e in batch))
    total = torch.zeros((), device=device)
    for some in micro(batch[work.rank :: work.world], MICRO_TOKENS[device.type]):
        with mixed():
            loss = trainee.loss(as_batch(some, device), share) / n
        loss.backward()
        total += loss.detach()
    for p in parameters:
        if work.world > 1 and p.grad is None:
            p.grad = torch.zeros_like(p)
        if p.grad is not None:
            work.add_up(p.grad)
    work.add_up(total)
    return total.item()


def _adamw(parameters: Sequence[Any], recipe: Recipe) -> Any:
    import torch

    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.rate, betas=(recipe.beta1, recipe.beta2))


def _tensors(names: Sequence[str], parameters: Sequence[Any], optimiser: Any, best: Sequence[Any]) -> dict[str, Any]:
    out = {}
    for name, p, b in zip(names, parameters, best, strict=True):
        out |= {f"weight.{name}": p.detach().contiguous(), f"best.{name}": b.contiguous()}
        out |= {f"adam.{key}.{name}": value for key, value in optimiser.state[p].items()}
    return out


def _restore(names: Sequence[str], parameters: Sequence[Any], optimiser: Any, tensors: dict[str, Any]) -> list[Any]:
    """Weights and moments as they were; returns the best weights."""
    import torch

    with torch.no_grad():
        for name, p in zip(names, parameters, strict=True):
            p.copy_(tensors[f"weight.{name}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            optimiser.state[p] = {
                k: t.to(p.device if k != "step" else "cpu")
                for k in keys
                if (t := tensors.get(f"adam.{k}.{name}")) is not None
            }
    return [tensors[f"best.{name}"] for name in names]
