"""A study of a real model: blocks removed along its removal path, widths chosen by methods of edgeprune.widths, both written
as folders and exported. A folder is made when it is needed and deleted, so that one is on the disk at a time.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune import model, prune, width, width_plan
from edgeprune._generated import Geometry
from edgeprune.blocks import is_portable
from edgeprune.errors import EdgepruneError, InputRejected
from edgeprune.export import export, formats
from edgeprune.files import remove
from edgeprune.plan import check_scores, make_plan
from edgeprune.study import make
from edgeprune.study.design import PER_LAYER, Design, Task, Variant, held
from edgeprune.types import Budget, DeviceProfile, ModelSpec, Plan, Scores, Text

Progress = Callable[[str, int, int], None]


class Subject(NamedTuple):
    """The whole model, and what its variants are made of."""

    name: str
    folder: Path
    spec: ModelSpec
    rated: Callable[[str], width.Rated]  # by a method; once, when it is first asked for
    plans: dict[str, Plan]  # depth variant -> plan
    widths: dict[str, width_plan.Widths]  # width variant -> what stays
    calibration: Sequence[Path] = ()  # texts that widths are chosen on and healing is solved on; none: the default ones
    judging: Sequence[Path] = ()  # texts to judge by; none: the default one

    @property
    def text(self) -> Text | None:
        """That methods chose by."""
        return next((w.text for w in self.widths.values()), None)

    def write(self, variant: str, out: Path) -> None:
        """The variant's folder."""
        told = {"base_model": self.name, "command": "edgeprune study"}
        if variant in self.plans:
            prune.prune(self.folder, self.spec, self.plans[variant], out, **told)
        else:
            widths = self.widths[variant]
            width.prune(self.folder, self.spec, self.rated(widths.method), widths, out, **told)


def subject(
    folder: Path, spec: ModelSpec, name: str, *, n_windows: int = width.WINDOWS, context_tokens: int = 512,
    plans: dict[str, Plan] | None = None, widths: dict[str, width_plan.Widths] | None = None,
    calibration: Sequence[Path] = (), judging: Sequence[Path] = (), progress: Progress = lambda *_: None,
) -> Subject:  # fmt: skip
    """Widths are rated on so much calibration text. Plans and widths: of a study that is begun."""
    rate = functools.partial(
        width.rate, folder, spec, files=calibration, n_windows=n_windows, context_tokens=context_tokens, progress=progress
    )  # fmt: skip
    made = dict(plans or {}), dict(widths or {})
    return Subject(name, folder, spec, functools.cache(rate), *made, calibration, judging)


def prepare(
    s: Subject, scores: Scores, host: DeviceProfile, ratios: Sequence[float], methods: Sequence[str],
    roundings: Sequence[int], quants: Sequence[tuple[str, str]], work: Path,
) -> Design:  # fmt: skip
    """Rate, plan, put plans and widths into `s`, and look at the shape of every variant. `work`: a folder for one at a time.

    roundings: PER_LAYER among them is widths as the method is published. What can't be made is a line of the design's
    `refused`. Raises WrongWeights for scores of another model.
    """
    check_scores(s.spec, scores)
    refused: list[str] = []
    base = Variant("whole", "whole", 0.0, _shape(s.spec), of=s.spec)
    variants = [base]
    depths = list(_depths(s.spec, scores, host, ratios, refused))
    able = []
    for method in methods if depths else ():
        try:
            s.rated(method)
            able.append(method)
        except EdgepruneError as e:
            refused.append(f"{method}: {e}; left out")
    for ratio, plan in depths:
        kept = f"depth-{len(plan.blocks)}b"
        s.plans[kept] = plan
        variants.append(_inspected(s, kept, "depth", ratio, 0, plan.metric or "", work))
        share = width_plan.ratio_of(s.spec, plan.blocks)
        for method, rounding in ((m, r) for m in able for r in roundings):
            thin = f"{method}-{len(plan.blocks)}b-{rounding or 'layers'}"
            try:
                uneven = rounding == PER_LAYER
                widths = width.plan(s.spec, s.rated(method), share, rounding or 1, uniform=not uneven)
                s.widths[thin] = widths
                made = _inspected(s, thin, "width", ratio, rounding, method, work)
                if uneven and not any("-" in n for n in width_plan.sizes(made.spec).values()):
                    raise InputRejected("as published it leaves every layer as wide as the others")
                variants.append(made)
            except EdgepruneError as e:
                s.widths.pop(thin, None)
                how = f"widths in {rounding}s" if rounding else "widths of each layer's own"
                refused.append(f"{method}, {ratio:.0%}, {how}: {e}; left out")
    tasks = held((Task(v, *q) for q in quants for v in variants), refused)
    return Design(s.spec.name, base, tuple(variants), tasks, tuple(refused))


def source(subject: Subject) -> make.Source:
    """Exports of a folder that is made for it and deleted."""

    def write(task: Task, out: Path) -> None:
        with _folder(subject, task.variant.name, out) as folder:
            export(folder, formats()[task.runtime], task.quant, out, verify=False)

    return write


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
        budget = Budget(quant="Q8_0", runtime="llamacpp", context_tokens=64, prompt_tokens=64)
        try:
            plan = make_plan(spec, scores, host, budget, blocks=scores.path[step].blocks)
        except EdgepruneError as e:
            refused.append(f"ratio {ratio:g}: {e}; left out")
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


def _shape(spec: ModelSpec) -> Geometry:
    """Where layers differ in width, the widest."""
    halves = [(b.ffn.tensors.get("ffn_down.weight"), b.attn.tensors.get("attn_output.weight")) for b in spec.blocks]
    if not all(down and output for down, output in halves):
        raise InputRejected(f"{spec.name}: a block lacks a half; a study needs whole blocks")
    heads = max(output[1] for _, output in halves) // spec.head_dim
    return Geometry(
        hidden=spec.hidden_size, ffn=max(down[1] for down, _ in halves), heads=heads,
        kv_heads=heads * spec.n_kv_heads // spec.n_heads, n_blocks=spec.n_blocks, vocab=spec.vocab_size,
        head_dim=spec.head_dim, tied=spec.tied_embeddings, context=spec.context_length_tokens,
    )  # fmt: skip
