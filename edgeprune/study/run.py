"""The whole of a study: what it will do and about how long, its measurements, and what they say."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune import _host, devices
from edgeprune._rates import best_backend, find
from edgeprune.errors import UsageError
from edgeprune.files import need_space, write_text
from edgeprune.run import environment
from edgeprune.study import explain, measure, page, project, verdict
from edgeprune.study.design import Design, Task
from edgeprune.study.make import Source
from edgeprune.study.measure import Limits, Protocol, Sample
from edgeprune.study.record import Model, Quality, Study
from edgeprune.types import DeviceProfile
from edgeprune.work import Log

Progress = Callable[[str, int, int], None]
QUESTION, SAMPLES, RESULT = "question.json", "samples.jsonl", "study.json"
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


def outline(d: Design, p: Protocol, limits: Limits, host: DeviceProfile) -> Outline:
    groups = measure.groups(d, p, limits)
    sizes = [[measure.task_bytes(t) for t in g.tasks] for g in groups]
    seconds = sum(_seconds(t, p, host) for g in groups for t in g.tasks)
    seconds += sum(map(sum, sizes)) / WRITE_BYTES_PER_S
    return Outline(len(d.tasks), len(groups), sum(map(sum, sizes)), max(map(sum, sizes), default=0), seconds)


def begin(out: Path, question: dict[str, Any], force: bool) -> None:
    """Remember what `out` is about. Raises UsageError when it is about something else (unless `force`)."""
    text = json.dumps(question, indent=1) + "\n"
    path = out / QUESTION
    if path.exists() and path.read_text(encoding="utf-8") != text and not force:
        raise UsageError(f"{out} holds another study, or one of another machine; choose another -o, or pass --force")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, text, force=True)


def question(d: Design, p: Protocol, limits: Limits) -> dict[str, Any]:
    """All that samples depend on."""
    tasks = [[t.name, t.runtime, t.variant.params, measure.task_bytes(t)] for t in d.tasks]
    here = {"host": _host.read_facts(), "versions": environment()}
    return {"model": d.model, "tasks": tasks, "protocol": p._asdict(), "limits": limits._asdict()} | here


def study(
    d: Design, p: Protocol, limits: Limits, out: Path, *, source: Source, host: DeviceProfile,
    profiles: Sequence[tuple[str, DeviceProfile]], judge: Callable[[Path], list[Quality]] | None = None,
    command: str, force: bool = False, progress: Progress = lambda *_: None, say: Callable[[str], None] = lambda _: None,
) -> Study:  # fmt: skip
    """Measure what is not measured yet, explain it, and write study.json, report.md, report.html and figures to `out`.

    judge: gives the quality of every variant's files, which it makes in a folder for a while; None: speed only.
    Raises UsageError when `out` holds another study, OutOfResources for a full disk; a model that fails is left out.
    """
    asked = question(d, p, limits)
    begin(out, asked, force)
    need_space(out, outline(d, p, limits, host).disk_bytes)
    files = out / "files"
    files.mkdir(exist_ok=True)
    with Log.opened(out / SAMPLES, asked, say) as log:
        samples, failed = measure.run(d, p, limits, files, log, source=source, progress=progress, say=say)
    qualities = judge(files) if judge else []
    if files.is_dir() and not any(files.iterdir()):
        files.rmdir()
    found = conclude(
        d, p, samples, [*d.refused, *failed], host=host, profiles=profiles, speed_only=judge is None, command=command,
        qualities=qualities,
    )  # fmt: skip
    write_text(out / RESULT, found.to_json(), force=True)
    page.write(found, out)
    return found


def conclude(
    d: Design, p: Protocol, samples: Sequence[Sample], left_out: Sequence[str], *, host: DeviceProfile,
    profiles: Sequence[tuple[str, DeviceProfile]], speed_only: bool, command: str, qualities: Sequence[Quality] = (),
) -> Study:  # fmt: skip
    """What the samples say, and what the terms foretell."""
    specs = {t.variant.name: t.variant.spec for t in d.tasks}
    cells = [c for threads in p.threads for c in explain.cells(samples, specs, host, threads)]
    rows = [o for o in explain.observations(samples, specs, p.threads[-1]) if o.what == "decode"]
    here = explain.fitted(rows, host) if rows else host
    models = tuple(_model(t, samples) for t in d.tasks)
    return Study(
        model=d.model, speed_only=speed_only, ratios=tuple(sorted({t.variant.ratio for t in d.tasks} - {0.0})),
        contexts=p.contexts, n_prompt=p.n_prompt, n_gen=p.n_gen, repetitions=p.repetitions, threads=p.threads,
        models=models, cells=tuple(cells),
        pairs=tuple(verdict.pairs(d, samples, cells)), projections=tuple(project.projections(d, profiles, p.contexts)),
        curves=tuple(project.curves(d, profiles, here)), qualities=tuple(qualities),
        equal_quality=tuple(verdict.at_equal_quality(models, qualities, cells)), left_out=tuple(left_out),
        environment=environment() | _machine(samples), command=command,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
    )  # fmt: skip


def _model(t: Task, samples: Sequence[Sample]) -> Model:
    v = t.variant
    mine = [s for s in samples if (s.variant, s.runtime, s.quant) == (v.name, t.runtime, t.quant)]
    return Model(
        variant=v.name, label=v.label(), kind=v.kind, ratio=v.ratio, rounding=v.rounding, equal=v.equal,
        n_blocks=v.shape.n_blocks, heads=v.shape.heads, kv_heads=v.shape.kv_heads, ffn=v.shape.ffn, params=v.params,
        runtime=t.runtime, quant=t.quant, predicted_bytes=measure.task_bytes(t),
        file_bytes=max((s.file_bytes for s in mine), default=None),
        memory_bytes=max((s.memory_bytes for s in mine if s.what == "memory"), default=None),
    )  # fmt: skip


def _machine(samples: Sequence[Sample]) -> dict[str, str]:
    facts = _host.read_facts()
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


def load_host() -> DeviceProfile:
    return devices.load(devices.HOST)
