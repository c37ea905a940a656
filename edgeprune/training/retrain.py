"""Healing by training: the pruned model as a student beside the whole one, judged by text held aside of each kind."""

from __future__ import annotations

import contextlib
import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgeprune.blocks import kept_sublayers
from edgeprune.checkpoint import open_checkpoint, read_tensor
from edgeprune.closed_form import Kind
from edgeprune.divergence import compare
from edgeprune.errors import InputRejected, UsageError
from edgeprune.families import for_model_type
from edgeprune.files import need_space, sha256_file
from edgeprune.heal_text import read_examples
from edgeprune.healed_folder import Job, earlier, give_back, with_more, write
from edgeprune.healers._trainee import Cut, Recipe, Trainee, own_blocks
from edgeprune.healing import Healing, Look, Trained, Won, won
from edgeprune.score import check_finite, package_versions
from edgeprune.torch_model import dtype_of, load, memory_errors, tokenizer, view
from edgeprune.training.batches import as_batch
from edgeprune.training.device import all_here, mixed_in, room, settle
from edgeprune.training.loop import train
from edgeprune.training.notebook import Judged, Notebook, Progress, kept_beside
from edgeprune.training.pace import Budget, Length, length, tokens_within
from edgeprune.types import Blocks
from edgeprune.work import Work, join

PRECISIONS = ("auto", "bfloat16", "float32")
KL, LOSS, LOSS_WHOLE = 0, 1, 2  # what `judged` tells of a kind of text


def retrain(
    job: Job, healer: ModuleType, method: str, *, files: Sequence[Path], avoid: Sequence[Path], context_tokens: int,
    budget: Budget, options: Mapping[str, str], precision: str, max_bytes: int | None,
    say: Callable[[str], None], progress: Callable[[str, int, int], None],
) -> Healing:  # fmt: skip
    """Train and write, see `heal.heal`. A checkpoint lies in a hidden folder beside `job.out` until that is there: the
    same call goes on from it. Of several processes the first writes.

    The weights kept are the best of those that are no worse than before on any kind of text, or else those part of the way
    to the last; of none, nothing changes.
    """
    import torch

    started = time.monotonic()
    recipe, asked = settings(healer, method, options)
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision} can't be trained in; take {', '.join(PRECISIONS)}")
    dtype = dtype_of(precision) or "float32"
    plan, blocks = job.plan, job.plan.blocks
    if hasattr(healer, "given_back"):
        blocks = healer.given_back(blocks, plan.n_blocks_whole, asked)
    join()
    work = Work(max_bytes=max_bytes)
    work.progress = functools.partial(progress, f"training by {method}")
    text, kinds = read_examples(tokenizer(job.base), job.spec, files, avoid, budget.most_tokens(), context_tokens)
    examples = [example for kind in kinds for example in kind.fit]
    no_room = memory_errors(f"out of memory training by {method}; take a shorter --window, or lora or perp")
    with kept_beside(job.out, work.rank) as beside, _with_more(job, blocks) as start, no_room:
        whole = load(job.base, dtype=dtype, max_bytes=work.max_bytes)
        student = load(start.folder, on="cpu", dtype="float32")
        all_here(whole, student, method)
        check_finite(student, job.spec)
        torch.manual_seed(0)  # of what is drawn at first, in every process and after a kill
        trainee = healer.prepare(student, whole, Cut(plan.blocks, blocks), asked)
        settle(student, trainee, dtype)
        room(student, whole, trainee, max(len(e.tokens) for e in examples), work.max_bytes, method)
        need_space(beside, 32 * sum(p.numel() for p in trainee.parameters.values()))  # a checkpoint and the one before
        mixed = mixed_in(dtype)
        judge = functools.partial(judged, whole, kinds, work, mixed)
        before = judge(student if blocks == plan.blocks else view(student, own_blocks(plan.blocks, blocks)))
        question = [
            sha256_file(job.folder / "SHA256SUMS"),
            job.spec.fingerprint,
            method,
            recipe,
            asked,
            budget,
            text.sha256,
        ]
        question += [context_tokens, dtype, work.world, package_versions()]
        notebook = Notebook(beside, question, work.rank, say)
        limit = _length(recipe, budget, trainee, examples, kinds, mixed, work, notebook)
        which = KL if healer.JUDGE == "kl" else LOSS
        found = train(
            student, trainee, examples, recipe, limit, _only(before, which), lambda: _only(judge(student), which), notebook,
            work, mixed,
        )  # fmt: skip
        helped = found.best is not None
        made = Healing(
            method=method, source=healer.SOURCE, scope=None, text=text, fit_windows=len(examples), precision=dtype, trials=(),
            kinds=_won(kinds, before, judge(student) if helped else before), former=earlier(job.folder),
            changed=_changed(student, trainee, blocks) if helped else (), versions=package_versions(),
            seconds=round(max(found.seconds, time.monotonic() - started), 1),
            trained=_trained(healer, recipe, asked, trainee, limit, found, work.world, _more(plan.blocks, blocks)),
        )  # fmt: skip
        if work.rank == 0:
            write(start if helped else job, made, _news(trainee, start.folder) if helped else ())
    return made


def settings(healer: ModuleType, method: str, asked: Mapping[str, str]) -> tuple[Recipe, dict[str, Any]]:
    """The healer's recipe and options with what was asked for. Raises UsageError for a name or value that can't be."""
    known = healer.RECIPE._asdict() | healer.OPTIONS
    found = dict(known)
    for name, value in asked.items():
        if name not in known:
            raise UsageError(f"--set {name}: {method} has {', '.join(known)}")
        try:
            found[name] = type(known[name])(value)
        except ValueError:
            raise UsageError(f"--set {name}={value}: not a number like {known[name]}") from None
        if isinstance(found[name], (int, float)) and not 0 <= found[name] < math.inf:
            raise UsageError(f"--set {name}={value}: not a number that can be")
    return Recipe(**{k: found[k] for k in Recipe._fields}), {k: found[k] for k in healer.OPTIONS}


def judged(whole: Any, kinds: Sequence[Kind], work: Work, mixed: Callable[[], Any], student: Any) -> Judged:
    """Of each kind's examples held aside: KL(whole ‖ student), loss of the student, loss of the whole, nats per token."""
    import torch

    def one(piece: tuple[int, Any]) -> list[float]:
        batch = as_batch([piece[1]], whole.device)
        learnt = batch.learn[0]
        with torch.inference_mode(), mixed():
            p, q = (m(input_ids=batch.tokens, use_cache=False).logits[0, :-1][learnt[1:]] for m in (whole, student))
            tokens = torch.cat([batch.tokens[0, :1], batch.tokens[0][learnt]])
            found = compare(p.float().log_softmax(-1), q, tokens)
        return [found.kl, found.nll, found.nll_whole, found.tokens]

    pieces = [(k, e) for k, kind in enumerate(kinds) for e in kind.aside]
    answers = work.each(pieces, one)
    out = []
    for k, kind in enumerate(kinds):
        of_kind = [answer for (i, _), answer in zip(pieces, answers, strict=True) if i == k]
        *sums, n = map(math.fsum, zip(*of_kind, strict=True))
        out.append(tuple(s / n for s in sums))
        if not all(map(math.isfinite, out[-1])):
            raise InputRejected(f"logits on {kind.name} are not finite; prune again, or train in --precision float32")
    return tuple(out)


def _only(found: Judged, which: int) -> Judged:
    return tuple((kind[which],) for kind in found)


def _won(kinds: Sequence[Kind], before: Judged, after: Judged) -> tuple[Won, ...]:
    return tuple(
        won(kind.name, len(kind.aside), (old[LOSS_WHOLE], old[LOSS], new[LOSS]), (old[KL], new[KL]))
        for kind, old, new in zip(kinds, before, after, strict=True)
    )


def _length(
    recipe: Recipe, budget: Budget, trainee: Trainee, examples: Sequence[Any], kinds: Sequence[Kind],
    mixed: Callable[[], Any], work: Work, notebook: Notebook,
) -> Length:  # fmt: skip
    tokens, seconds = budget.most_tokens(), budget.seconds()
    if seconds < math.inf:
        timed = notebook.remembered(lambda: tokens_within(seconds, trainee, examples, mixed, work.world))
        tokens = min(tokens, work.once(lambda: timed))
    window = max(len(e.tokens) for e in examples)
    return length(recipe, tokens, seconds, window, sum(len(e.tokens) for kind in kinds for e in kind.aside))


def _news(trainee: Trainee, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    import torch

    ck = open_checkpoint(folder)

    def old(name: str) -> torch.Tensor:
        return torch.from_numpy(read_tensor(ck, name).astype(np.float32))

    for name, values in trainee.merged(old):
        if name in ck.tensors:  # of a tied matrix one name may be stored, or both
            yield name, values.float().cpu().numpy()


def _trained(
    healer: ModuleType, recipe: Recipe, asked: dict[str, Any], trainee: Trainee, limit: Length, found: Progress,
    n_processes: int, added: tuple[str, ...],
) -> Trained:  # fmt: skip
    return Trained(
        options=asked, rate=recipe.rate, sequences_per_step=limit.per_step, steps=found.step, planned_steps=limit.steps,
        tokens=found.tokens, processes=n_processes, judged_by=healer.JUDGE, kept=found.best, part=found.part, added=added,
        parameters=sum(p.numel() for p in trainee.parameters.values()),
        looks=tuple(Look(tokens=n, found=tuple(kind[0] for kind in look)) for n, look in found.looks),
    )  # fmt: skip


def _more(before: Blocks, blocks: Blocks) -> tuple[str, ...]:
    there = set(kept_sublayers(before))
    return tuple(f"{kind}{i}" for kind, i in kept_sublayers(blocks) if (kind, i) not in there)


def _changed(student: Any, trainee: Trainee, blocks: Blocks) -> tuple[str, ...]:
    """The sub-layers with weights that were trained, in the order they run."""
    family = for_model_type(student.config.model_type)
    found = []
    for n, block in enumerate(blocks):
        for kind, i, paths in (("A", block.attn, family.ATTN), ("F", block.ffn, family.FFN)):
            prefixes = tuple(f"{family.LAYER.format(i=n)}{path}." for path in paths)
            if any(name.startswith(prefixes) for name in trainee.parameters):
                found.append(f"{kind}{i}")
    return tuple(found)


@contextlib.contextmanager
def _with_more(job: Job, blocks: Blocks) -> Iterator[Job]:
    """The job of a temporary folder to which sub-layers were given back; the job itself where there are none."""
    if blocks == job.plan.blocks:
        yield job
        return
    more = with_more(job.plan, job.spec, blocks)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as temporary:
        folder = Path(temporary) / "more"
        give_back(job, more, folder)
        yield job._replace(folder=folder, plan=more)
