"""Calibration of this machine: real runs of small generated models, and of models named, fitted to the terms of the cost model.

Every runtime runs two shapes, one narrow and deep, one wide and shallow, in each tensor type, at two contexts, their
repetitions in turn. The shapes differ in blocks per byte and in how much of them is the output matrix, so the fit can
tell bytes, blocks and attention apart; types are what file quantisations are made of, so those are foretold.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune import _generated as generated
from edgeprune import _host, _host_runs, catalog, model
from edgeprune import _profile_write as profile_write
from edgeprune._generated import Geometry
from edgeprune._host_runs import Job, Pass, Runs
from edgeprune._sizes import Shapes, Sizes, sizes
from edgeprune._terms import Fitted, Observation, fit_all
from edgeprune.bench import physical_cores
from edgeprune.blocks import whole
from edgeprune.cost import compute_bytes, kv_bytes, runtime_bytes, weight_bytes
from edgeprune.errors import UsageError
from edgeprune.files import need_space, staging, tree_bytes, write_text
from edgeprune.types import DeviceProfile, ModelSpec

Progress = Callable[[str, int, int], None]

NARROW = Geometry(hidden=768, ffn=2048, heads=12, kv_heads=12, n_blocks=10, vocab=32000)
WIDE = Geometry(hidden=1536, ffn=4096, heads=24, kv_heads=6, n_blocks=3, vocab=16384)
PASSES = (Pass(32, 24), Pass(128, 0), Pass(512, 24))
REPETITIONS = 3
# What llama.cpp's usual file quantisations are made of, with the types that stand in where 256 does not divide a row.
GGUF_TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K")
ONNX_QUANTS = ("int8", "int4")
FOLDER_QUANTS = {"llamacpp": ("Q8_0", "Q4_K_M"), "onnxruntime": ("int8", "int4")}  # of a model that is named
MODULES = {"llamacpp": "llama_cpp", "onnxruntime": "onnxruntime"}
PROCESS_BYTES = 150_000_000  # an interpreter with the bindings, and the buffers of a small model
SECONDS_PER_RUN = 1.5  # of one model's passes on two cores of a server from 2023; told before the work
SECONDS_PER_MODEL = 4.0  # to make and open one


class Item(NamedTuple):
    """A model to run: generated, or a path of the user's."""

    name: str
    runtime: str
    quant: str
    geometry: Geometry | None
    path: Path | None = None


class Plan(NamedTuple):
    items: tuple[Item, ...]
    passes: tuple[Pass, ...]
    repetitions: int
    n_threads: int

    @property
    def bytes(self) -> int:
        """Of all generated files."""
        return sum(work_bytes(i) for i in self.items if i.geometry)

    @property
    def seconds(self) -> float:
        return len(self.items) * ((self.repetitions + 1) * SECONDS_PER_RUN + SECONDS_PER_MODEL)

    def digest(self) -> str:
        return hashlib.sha256(repr([self, _host.read_facts()]).encode()).hexdigest()


class Result(NamedTuple):
    device_id: str
    document: dict[str, Any]  # the profile
    fitted: list[Fitted]
    memory: list[dict[str, Any]]  # model, measured and predicted bytes
    runs: list[Runs]


def installed() -> list[str]:
    return [r for r, module in MODULES.items() if importlib.util.find_spec(module)]


def make_plan(
    runtimes: Sequence[str] = (), paths: Sequence[Path] = (), types: Sequence[str] = (), repetitions: int = REPETITIONS,
    threads: int | None = None, passes: Sequence[Pass] = (),
) -> Plan:  # fmt: skip
    """What to run; `passes` are PASSES unless said. `types` narrows the generated models' tensor types.

    Raises UsageError for what is not there.
    """
    have = installed()
    wanted = list(runtimes) or have
    for r in wanted:
        if r not in have:
            raise UsageError(
                f"{r} can't be calibrated: it is not installed here; installed: {', '.join(have) or 'none'}"
            )
    known = {"llamacpp": GGUF_TYPES, "onnxruntime": ONNX_QUANTS}
    unknown = set(types) - {t for r in wanted for t in known[r]}
    if unknown:
        raise UsageError(
            f"no generated model of type {sorted(unknown)[0]}; known: {', '.join(t for r in wanted for t in known[r])}"
        )
    items = [
        Item(f"{r} {t} {g.name}", r, t, g)
        for r in wanted
        for t in known[r]
        if not types or t in types
        for g in (NARROW, WIDE)
    ]
    for path in paths:
        model.inspect(path)
        for r in wanted:
            if path.is_dir():
                items += [Item(f"{r} {q} {path.name}", r, q, None, path) for q in FOLDER_QUANTS[r]]
            elif r == "llamacpp":
                quant = catalog.load("edgeprune.runtimes", r).quant(path)
                items.append(Item(f"{r} {quant} {path.name}", r, quant, None, path))
    return Plan(tuple(items), tuple(passes or PASSES), repetitions, threads or physical_cores())


def work_bytes(item: Item) -> int:
    assert item.geometry
    spec = generated.spec(item.geometry)
    return spec.params * (6 if item.runtime == "onnxruntime" else 2)  # with the float32 folder that it is made from


def run(plan: Plan, folder: Path, *, progress: Progress, kept: Path | None = None) -> list[Runs]:
    """Make the models in `folder` and run them. `kept`: a file of finished rounds, to go on from and to add to."""
    need_space(folder, plan.bytes)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for n, item in enumerate(plan.items):
        progress("making models", n, len(plan.items))
        jobs.append(Job(item.name, _make(item, folder), item.runtime, plan.passes))
    found = {r.name: r for r in _read_kept(kept, plan)}
    for group in _groups(jobs):
        before = [found[j.name] for j in group] if all(j.name in found for j in group) else []
        done = len(before[0].prefill_ns[0]) if before else 0

        def save(new: list[Runs], before: list[Runs] = before) -> None:
            found.update({r.name: r for r in _joined(before, new)})
            if kept:
                text = json.dumps({"plan": plan.digest(), "runs": [r._asdict() for r in found.values()]})
                write_text(kept, text, force=True)

        if done < plan.repetitions:
            _host_runs.measure(group, plan.repetitions - done, plan.n_threads, progress, save)
    return [found[j.name] for j in jobs]


def _groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that are open together: all, where half of the free memory holds them, else neighbours, two at least."""
    import psutil

    room, groups = psutil.virtual_memory().available / 2, [[]]
    for job in jobs:
        if len(groups[-1]) >= 2 and sum(map(_footprint, (*groups[-1], job))) > room:
            groups.append([])
        groups[-1].append(job)
    return [g for g in groups if g]


def _footprint(job: Job) -> float:
    return 1.5 * tree_bytes(job.path) + PROCESS_BYTES


def _make(item: Item, folder: Path) -> Path:
    """The artifact to run; made once."""
    from edgeprune.export import export, formats

    g, fmt = item.geometry, formats()[item.runtime]
    if item.path and item.path.is_file():
        return item.path
    name = g.name if g else item.path.name
    out = folder / f"{name}-{item.quant}{'.gguf' if fmt == 'gguf' else ''}"
    if out.exists():
        return out
    if g and fmt == "gguf":
        with staging(out, flush=False) as partial:
            generated.make_gguf(g, item.quant, partial)
        return out
    source = item.path or folder / name
    if not source.exists():
        with staging(source, flush=False) as partial:
            generated.make_folder(g, partial)
    export(source, fmt, item.quant, out, verify=False)
    return out


def observations(plan: Plan, runs: Sequence[Runs], profile: DeviceProfile) -> list[Observation]:
    """Medians of the runs beside what each did."""
    found = []
    for item, r in zip(plan.items, runs, strict=True):
        spec, matrices = _spec(item), _size(item, profile).matrices
        shape = item.geometry.name if item.geometry else item.name
        base = Observation(shape, spec, item.runtime, r.backend, r.build, item.quant, matrices, "decode", 0, 0.0)
        for p, prefill, tokens in zip(plan.passes, r.prefill_ns, r.token_ns, strict=True):
            every = tuple(ns / 1e9 for repetition in tokens for ns in repetition)
            if every:
                depth = p.prompt + (p.gen + 1) // 2
                found.append(base._replace(tokens=depth, seconds=statistics.median(every), samples=every))
            read = tuple(ns / 1e9 for ns in prefill)
            found.append(base._replace(what="prefill", tokens=p.prompt, seconds=statistics.median(read), samples=read))
    return found


def _spec(item: Item) -> ModelSpec:
    if item.geometry:
        return generated.spec(item.geometry)
    assert item.path
    return model.inspect(item.path)


def runtime_memory(
    plan: Plan, runs: Sequence[Runs], profile: DeviceProfile
) -> tuple[dict[tuple[str, str], float], list[dict[str, Any]]]:
    """((runtime, backend) -> bytes of the runtime beside all that the cost model knows; one row per model)."""
    left: dict[tuple[str, str], list[float]] = {}
    rows = []
    context = max(p.prompt + p.gen for p in plan.passes)
    prompt = max(p.prompt for p in plan.passes)
    for item, r in zip(plan.items, runs, strict=True):
        spec, key = _spec(item), (item.runtime, r.backend)
        size = _size(item, profile)
        known = weight_bytes(size, *key) + runtime_bytes(spec, item.runtime, spec.n_blocks, 0)
        known += kv_bytes(spec, whole(spec.n_blocks), item.runtime, item.quant, context)
        known += compute_bytes(spec, *key, context, prompt)
        measured = r.memory["peak"] - r.memory["before"]
        left.setdefault(key, []).append(measured - known)
        rows.append({"model": item.name, "measured_bytes": measured, "key": key, "known": known})
    middle = {key: max(1.0, statistics.median(values)) for key, values in left.items()}
    for row in rows:
        row["predicted_bytes"] = round(row.pop("known") + middle[row.pop("key")])
    return middle, rows


def _size(item: Item, profile: DeviceProfile) -> Sizes:
    isa = frozenset((profile.isa or "").split()) if item.runtime == "llamacpp" else frozenset()
    if item.geometry and item.runtime == "llamacpp":
        return generated.pure_size(item.geometry, item.quant, isa)
    spec = _spec(item)
    return sizes(Shapes(spec), whole(spec.n_blocks), item.runtime, item.quant, isa)


def calibrate_host(plan: Plan, runs: list[Runs], device_id: str, when: str) -> Result:
    """This machine's profile with the terms that the runs say."""
    profile = _host.profile()
    memory, rows = runtime_memory(plan, runs, profile)
    source = (
        f"edgeprune calibrate on this machine, {when}: {len(plan.items)} models × {plan.repetitions} repetitions, "
        f"{plan.n_threads} threads"
    )
    fitted = fit_all(observations(plan, runs, profile), profile.bandwidth.value, "host-calibrated", source, memory)
    document = profile_write.host_document(profile, device_id)
    document = profile_write.with_calibrations(document, [f.calibration for f in fitted], source)
    return Result(device_id, document, fitted, rows, runs)


def _joined(a: list[Runs], b: list[Runs]) -> list[Runs]:
    """Repetitions of both; memory of the later."""
    if not a:
        return b
    return [
        y._replace(
            prefill_ns=[p + q for p, q in zip(x.prefill_ns, y.prefill_ns, strict=True)],
            token_ns=[p + q for p, q in zip(x.token_ns, y.token_ns, strict=True)],
        )
        for x, y in zip(a, b, strict=True)
    ]


def _read_kept(path: Path | None, plan: Plan) -> list[Runs]:
    """Finished rounds of the same plan on the same machine; anything else is left behind."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path else {}
        return [Runs(**r) for r in found["runs"]] if found.get("plan") == plan.digest() else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
