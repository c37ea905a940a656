"""A study of a real model: blocks removed along its removal path, widths chosen by methods of edgeprune.widths, both written
as folders, exported and judged on text that nothing was chosen by.

Folders are made for each quantisation anew and deleted, so that one is on the disk at a time; healed ones are kept until the
study ends, since healing takes long.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune import evaluate, heal, model, prune, width, width_plan
from edgeprune._generated import Geometry
from edgeprune.blocks import is_portable
from edgeprune.errors import EdgepruneError, InputRejected
from edgeprune.export import export, formats
from edgeprune.files import remove
from edgeprune.plan import check_scores, make_plan
from edgeprune.study import make
from edgeprune.study.design import Design, Task, Variant
from edgeprune.study.record import Quality
from edgeprune.types import Budget, DeviceProfile, ModelSpec, Plan, Scores, Text
from edgeprune.work import Log

Progress = Callable[[str, int, int], None]
TOGETHER = 4  # files judged in one pass


class Subject(NamedTuple):
    """The whole model, and what its variants are made of."""

    name: str
    folder: Path
    spec: ModelSpec
    plans: dict[str, Plan]  # depth variant -> plan
    widths: dict[str, tuple[width.Rated, width_plan.Widths]]  # width variant -> what was rated, what stays
    text: Text | None  # that methods chose by

    def write(self, variant: str, out: Path) -> None:
        """The variant's folder."""
        if variant in self.plans:
            prune.prune(
                self.folder, self.spec, self.plans[variant], out, base_model=self.name, command="edgeprune study"
            )
        else:
            rated, widths = self.widths[variant]
            width.prune(self.folder, self.spec, rated, widths, out, base_model=self.name, command="edgeprune study")


def prepare(
    folder: Path, spec: ModelSpec, name: str, scores: Scores, host: DeviceProfile, ratios: Sequence[float],
    methods: Sequence[str], roundings: Sequence[int], quants: Sequence[tuple[str, str]], work: Path, *,
    n_windows: int = width.WINDOWS, context_tokens: int = 512, progress: Progress = lambda *_: None,
) -> tuple[Design, Subject]:  # fmt: skip
    """Rate on so much calibration text, plan, and look at the shape of every variant. `work`: a folder for one at a time.

    What can't be made is a line of the design's `refused`. Raises WrongWeights for scores of another model.
    """
    check_scores(spec, scores)
    subject, refused = Subject(name, folder, spec, {}, {}, None), []
    base = Variant("whole", "whole", 0.0, _shape(spec), of=spec)
    variants = [base]
    depths = list(_depths(spec, scores, host, ratios, refused))
    rated = {}
    for method in methods if depths else ():
        try:
            rated[method] = width.rate(
                folder, spec, method, n_windows=n_windows, context_tokens=context_tokens, progress=progress
            )
        except EdgepruneError as e:
            refused.append(f"{method}: {e}; left out")
    if rated:
        subject = subject._replace(text=next(iter(rated.values())).text.text)
    for ratio, plan in depths:
        kept = f"depth-{len(plan.blocks)}b"
        subject.plans[kept] = plan
        variants.append(_inspected(subject, kept, "depth", ratio, 0, plan.metric or "", work))
        for method, found in rated.items():
            for rounding in roundings:
                try:
                    widths = width.plan(spec, found, width_plan.ratio_of(spec, plan.blocks), rounding)
                    thin = f"{method}-{len(plan.blocks)}b-{rounding}"
                    subject.widths[thin] = found, widths
                    variants.append(_inspected(subject, thin, "width", ratio, rounding, method, work))
                except EdgepruneError as e:
                    refused.append(f"{method}, {ratio:.0%}, widths in {rounding}s: {e}; left out")
    tasks = tuple(Task(v, *q) for q in quants for v in variants)
    return Design(spec.name, base, tuple(variants), tasks, tuple(refused)), subject


def source(subject: Subject) -> make.Source:
    """Exports of a folder that is made for it and deleted."""

    def write(task: Task, out: Path) -> None:
        with _folder(subject, task.variant.name, out) as folder:
            export(folder, formats()[task.runtime], task.quant, out, verify=False)

    return write


def judge(
    d: Design, subject: Subject, work: Path, log: Log, *, healer: str | None, n_windows: int, context_tokens: int,
    n_threads: int, progress: Progress, say: Callable[[str], None],
) -> list[Quality]:  # fmt: skip
    """Perplexity, and KL from the whole model, of every file; with `healer` also of the healed depth variants'. What was
    judged already is in the log."""
    found = [Quality.model_validate(x) for x in log.answers if "failed" not in x]
    done = {(q.variant, q.quant, q.healed) for q in found}
    done |= {tuple(x["failed"]) for x in log.answers if "failed" in x}
    wanted = [(t, False) for t in d.tasks]
    wanted += [(t, True) for t in d.tasks if healer and t.variant.kind == "depth"]
    left = [(t, h) for t, h in wanted if (t.variant.name, t.quant, h) not in done]
    for start in range(0, len(left), TOGETHER):
        progress("judging", len(wanted) - len(left) + start, len(wanted))
        made: dict[str, tuple[Task, bool, Path]] = {}
        try:
            for t, healed in left[start : start + TOGETHER]:
                out = work / f"judged-{t.name.replace(' ', '-')}{'-healed' * healed}{_suffix(t)}"
                try:
                    with (
                        _healed(subject, t, healer, work) if healed else _folder(subject, t.variant.name, out) as folder
                    ):
                        export(folder, formats()[t.runtime], t.quant, out, verify=False)
                    made[str(out.name)] = t, healed, out
                except EdgepruneError as e:
                    say(f"not judged: {t.name}: {e}")
                    log.add({"failed": [t.variant.name, t.quant, healed]})
            for q in _judged(made, subject, n_windows, context_tokens, n_threads):
                found.append(q)
                log.add(q.model_dump(mode="json"))
        finally:
            for *_, path in made.values():
                remove(path)
    for path in work.glob("healed-*"):
        remove(path)
    return found


def _judged(
    made: dict[str, tuple[Task, bool, Path]], subject: Subject, n_windows: int, context_tokens: int, n_threads: int
) -> Iterator[Quality]:
    if not made:
        return
    paths = {name: path for name, (_, _, path) in made.items()}
    answers = evaluate.evaluate(
        paths, whole=subject.folder, n_windows=n_windows, context_tokens=context_tokens, n_threads=n_threads,
        avoid=subject.text, progress=lambda *_: None,
    )  # fmt: skip
    for q in answers:
        task, healed, _ = made[q.subject]
        v = task.variant
        yield Quality(
            variant=v.name, quant=task.quant, method=v.method or v.kind, healed=healed, perplexity=q.perplexity, kl=q.kl,
            kl_stderr=q.kl_stderr,
        )  # fmt: skip


def _depths(
    spec: ModelSpec, scores: Scores, host: DeviceProfile, ratios: Sequence[float], refused: list[str]
) -> Iterator[tuple[float, Plan]]:
    """A plan for each ratio: as many whole blocks' worth as come nearest to it, along the path."""
    seen: set[int] = set()
    for ratio in sorted(set(ratios)):
        wanted = spec.n_blocks - max(1, round(ratio * spec.n_blocks))
        step = next((i for i, s in enumerate(scores.path) if len(s.blocks) == wanted and is_portable(s.blocks)), None)
        if step is None or wanted in seen:
            why = "a smaller ratio removes as many" if wanted in seen else "the removal path does not go there"
            refused.append(f"ratio {ratio:g}, {wanted} of {spec.n_blocks} blocks left: {why}; left out")
            continue
        seen.add(wanted)
        shorter = scores.model_copy(update={"path": scores.path[: step + 1]})
        budget = Budget(quant="Q8_0", runtime="llamacpp", objective="size", context_tokens=64, prompt_tokens=64)
        plan = make_plan(spec, shorter, host, budget)
        if plan.blocks != scores.path[step].blocks:
            refused.append(f"ratio {ratio:g}: {host.id} can't hold the model that is left; left out")
            continue
        yield ratio, plan


def _inspected(subject: Subject, name: str, kind: Any, ratio: float, rounding: int, method: str, work: Path) -> Variant:
    """The variant with the shape that its folder has, which is made for that and deleted."""
    with _folder(subject, name, work / name) as folder:
        spec = model.inspect(folder, name)
    return Variant(name, kind, ratio, _shape(spec), rounding, method=method, of=spec)


@contextlib.contextmanager
def _folder(subject: Subject, variant: str, out: Path) -> Iterator[Path]:
    """The whole model's folder, or one written for the purpose beside `out`."""
    if variant == "whole":
        yield subject.folder
        return
    folder = out.with_name(out.name + "-folder")
    try:
        subject.write(variant, folder)
        yield folder
    finally:
        remove(folder)


@contextlib.contextmanager
def _healed(subject: Subject, t: Task, healer: str | None, work: Path) -> Iterator[Path]:
    out = work / f"healed-{t.variant.name}"
    if not out.exists():
        assert healer
        with _folder(subject, t.variant.name, out) as cut:
            heal.heal(
                cut, subject.folder, subject.spec, out, method=healer, n_windows=heal.WINDOWS, context_tokens=512,
                base_model=subject.name, command="edgeprune study",
            )  # fmt: skip
    yield out


def _shape(spec: ModelSpec) -> Geometry:
    """Of what the blocks have, the first one's: widths are alike."""
    first = spec.blocks[0]
    down, output = first.ffn.tensors.get("ffn_down.weight"), first.attn.tensors.get("attn_output.weight")
    if not down or not output:
        raise InputRejected(f"{spec.name}: its first block lacks a half; a study needs whole blocks")
    heads = output[1] // spec.head_dim
    return Geometry(
        hidden=spec.hidden_size, ffn=down[1], heads=heads, kv_heads=heads * spec.n_kv_heads // spec.n_heads,
        n_blocks=spec.n_blocks, vocab=spec.vocab_size, head_dim=spec.head_dim, tied=spec.tied_embeddings,
        context=spec.context_length_tokens,
    )  # fmt: skip


def _suffix(t: Task) -> str:
    return ".gguf" if formats()[t.runtime] == "gguf" else ""
