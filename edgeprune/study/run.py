"""The whole of a study: what it will do and about how long, its measurements, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune._rates import best_backend, find
from edgeprune.files import need_space, write_text
from edgeprune.study import explain, kept, measure, page, project, verdict
from edgeprune.study import judge as judging
from edgeprune.study.design import Design, Task
from edgeprune.study.kept import Kept
from edgeprune.study.make import Source
from edgeprune.study.measure import Other, Protocol, Sample
from edgeprune.study.record import Model, Quality, Stock, Study
from edgeprune.types import DeviceProfile, Plan
from edgeprune.width_plan import Widths
from edgeprune.work import Log

Progress = Callable[[str, int, int], None]
WRITE_BYTES_PER_S = 150e6  # generating or exporting a file; told before the work
OPEN_S = 2.0
PREFILL = 5.0  # how much faster a prompt's token is than a decoded one, where no rate of prefill is known


class Outline(NamedTuple):
    """What a study will do."""

    n_models: int
    n_groups: int
    n_bytes: int  # written in all
    disk_bytes: int  # at a time
    seconds: float

    def sentence(self, d: Design, more: bool) -> str:
        shape = "" if d.whole.of else "'s shape"
        return (
            f"{self.n_models} models of {d.model}{shape} in {self.n_groups} groups, side by side: {self.n_bytes / 1e9:.1f} GB of "
            f"files, at most {self.disk_bytes / 1e9:.1f} GB at a time; very roughly {max(1, round(self.seconds / 60))} min"
            + (" to measure, and more to judge" if more else "")
        )


def outline(begun: Kept) -> Outline:
    d, p = begun.design, begun.protocol
    groups = measure.groups(d, p, begun.limits)
    sizes = [[measure.task_bytes(t) for t in g.tasks] for g in groups]
    seconds = sum(_seconds(t, p, begun.host) for g in groups for t in g.tasks)
    seconds += sum(map(sum, sizes)) / WRITE_BYTES_PER_S
    return Outline(len(d.tasks), len(groups), sum(map(sum, sizes)), max(map(sum, sizes), default=0), seconds)


class Ready(NamedTuple):
    """A study that can be measured."""

    design: Design
    source: Source
    others: dict[
        str, Callable[[Log], Other]
    ] = {}  # what else is done with its files, by the log that keeps the answers
    plans: dict[str, Plan] = {}  # of a real model: what its variants are made by
    widths: dict[str, Widths] = {}


def study(
    asked: dict[str, Any], out: Path, *, prepare: Callable[[Kept | None], Ready], host: Callable[[], DeviceProfile],
    profiles: Sequence[tuple[str, DeviceProfile]], command: str, force: bool = False,
    progress: Progress = lambda *_: None, say: Callable[[str], None] = lambda _: None,
) -> Study:  # fmt: skip
    """Measure what is not measured yet, explain it, and write study.json, report.md, report.html and figures to `out`.

    asked: as Kept has it. prepare: makes it ready, from what is kept of one that was begun. Of a finished study
    only the page is made again, on any machine. Raises UsageError when `out` holds another study, OutOfResources for a full
    disk; a model that fails is left out.
    """
    found = kept.find(out, asked, force)
    if found and found.finished:
        say(f"all is measured: {out} is drawn again from what it holds")
        return draw(out, profiles)
    ready = prepare(found and found.kept)
    begun = found.kept if found else kept.begin(out, asked, host(), ready.design, ready.plans, ready.widths, command)
    d, files, ahead = begun.design, out / "files", outline(begun)
    say(ahead.sentence(d, bool(ready.others)))
    for line in d.refused:
        say(line)
    files.mkdir(exist_ok=True)
    need_space(out, ahead.disk_bytes)
    with ExitStack() as stack:
        log = stack.enter_context(Log.opened(out / kept.SAMPLES, begun.key, say))
        others = [make(stack.enter_context(Log.opened(out / name, begun.key))) for name, make in ready.others.items()]
        todo = d, begun.protocol, begun.limits
        measure.run(*todo, files, log, source=ready.source, others=others, progress=progress, say=say)
    if not any(files.iterdir()):
        files.rmdir()
    return draw(out, profiles)


def draw(out: Path, profiles: Sequence[tuple[str, DeviceProfile]]) -> Study:
    """What the folder's samples say, written there. Raises InputRejected for a folder of no study."""
    begun = kept.read(out)
    samples, failed = measure.replay(kept.read_log(out / kept.SAMPLES))
    qualities, unjudged = judging.replay(kept.read_log(out / kept.QUALITY))
    left_out = [*begun.refused, *failed.values(), *unjudged.values()]
    stock = [Stock.model_validate(x) for x in kept.read_log(out / kept.STOCK)]
    made = conclude(begun, samples, left_out, profiles=profiles, qualities=qualities, stock=stock)
    write_text(out / kept.RESULT, made.to_json(), force=True)
    page.write(made, out)
    return made


def conclude(
    begun: Kept, samples: Sequence[Sample], left_out: Sequence[str], *,
    profiles: Sequence[tuple[str, DeviceProfile]], qualities: Sequence[Quality] = (),
    stock: Sequence[Stock] = (),
) -> Study:  # fmt: skip
    """What the samples say, and what the terms foretell."""
    d, p, host = begun.design, begun.protocol, begun.host
    specs = {t.variant.name: t.variant.spec for t in d.tasks}
    cells = [c for threads in p.threads for c in explain.cells(samples, specs, host, threads)]
    rows = [o for o in explain.observations(samples, specs, p.threads[-1]) if o.what == "decode"]
    here = explain.fitted(rows, host) if rows else host
    models = tuple(_model(t, samples) for t in d.tasks)
    place = {(m.variant, m.quant): i for i, m in enumerate(models)}
    qualities = sorted(qualities, key=lambda q: (place[q.variant, q.quant], q.healed))
    pairs = verdict.pairs(d, samples, cells)
    curves = project.curves(d, profiles, here)
    if shown := project.shown(d):
        curves += verdict.along_threads(pairs, {m.variant: m.label for m in models}, *shown)
    return Study(
        model=d.model, speed_only=d.whole.of is None, ratios=tuple(sorted({t.variant.ratio for t in d.tasks} - {0.0})),
        contexts=p.contexts, n_prompt=p.n_prompt, n_gen=p.n_gen, repetitions=p.repetitions, threads=p.threads,
        models=models, cells=tuple(cells),
        pairs=tuple(pairs), projections=tuple(project.projections(d, profiles, p.contexts)),
        curves=tuple(curves), qualities=tuple(qualities), llama_bench=tuple(stock),
        equal_quality=tuple(verdict.at_equal_quality(models, qualities, cells)), left_out=tuple(left_out),
        environment=begun.here["versions"] | _machine(begun.here["host"], samples), command=begun.command, created=begun.begun,
    )  # fmt: skip


def _model(t: Task, samples: Sequence[Sample]) -> Model:
    v = t.variant
    mine = [s for s in samples if (s.variant, s.runtime, s.quant) == (v.name, t.runtime, t.quant)]
    return Model(
        variant=v.name, label=v.label(), kind=v.kind, ratio=v.ratio, rounding=v.rounding, equal=v.equal, method=v.method,
        n_blocks=v.shape.n_blocks, heads=v.shape.heads, kv_heads=v.shape.kv_heads, ffn=v.shape.ffn, params=v.params,
        runtime=t.runtime, quant=t.quant, predicted_bytes=measure.task_bytes(t),
        file_bytes=max((s.file_bytes for s in mine), default=None),
        memory_bytes=max((s.memory_bytes for s in mine if s.what == "memory"), default=None),
    )  # fmt: skip


def _machine(facts: dict[str, Any], samples: Sequence[Sample]) -> dict[str, str]:
    builds = ", ".join(dict.fromkeys(f"{s.build} on {s.backend}" for s in samples))
    return {"machine": str(facts["cpu"]), "cores": str(facts["physical_cores"]), "runtimes": builds}


def _seconds(t: Task, p: Protocol, host: DeviceProfile) -> float:
    """About how long a task takes in its group."""
    backend = best_backend(host, t.runtime)
    rates = find(host, t.runtime, backend, None, t.quant) if backend else None
    if not rates:
        return 0.0
    each = [explain.token(t.variant.spec, t.runtime, t.quant, rates, c).seconds for c in p.contexts]
    fills = sum(c * s / PREFILL for c, s in zip(p.contexts, each, strict=True))
    prompts = (p.repetitions + 1) * p.n_prompt * each[0] / PREFILL
    return OPEN_S + fills + prompts + p.repetitions * p.n_gen * sum(each)
