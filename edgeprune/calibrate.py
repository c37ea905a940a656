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
from edgeprune._host_runs import Job, Pass, Runs, undisturbed
from edgeprune._sizes import Shapes, Sizes, named, sizes
from edgeprune._terms import Fitted, Observation, fit_all
from edgeprune.bench import physical_cores
from edgeprune.blocks import whole
from edgeprune.cost import compute_bytes, kv_bytes, running_bytes, runtime_bytes, weight_bytes
from edgeprune.errors import UsageError
from edgeprune.files import need_space, staging, tree_bytes, write_text
from edgeprune.types import Blocks, DeviceProfile, ModelSpec
from edgeprune.what_if import typical_removal

Progress = Callable[[str, int, int], None]

# 24 blocks against 3: at 10, the blocks' own time was no more than what other work on a shared machine adds.
NARROW = Geometry(hidden=512, ffn=1536, heads=8, kv_heads=8, n_blocks=24, vocab=32000)
WIDE = Geometry(hidden=1536, ffn=4096, heads=24, kv_heads=6, n_blocks=3, vocab=16384)
PASSES = (Pass(32, 24), Pass(128, 0), Pass(512, 24))
LONGEST = max(p.prompt + p.gen for p in PASSES)
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
    n_blocks: int | None = None  # of the user's model, what is left after a cut; None: all


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
        whole_one = model.inspect(path).n_blocks
        for r in wanted:
            if path.is_dir():
                made = FOLDER_QUANTS[r]
            else:
                made = (_file_quant(path),) if r == "llamacpp" else ()
            for n in sorted({whole_one, max(1, whole_one // 2)}, reverse=True):  # two depths tell bytes from blocks
                kept = None if n == whole_one else n
                name = path.name if kept is None else f"{path.name}, {n} of {whole_one} blocks"
                items += [Item(f"{r} {q} {name}", r, q, None, path, kept) for q in made]
    return Plan(tuple(items), tuple(passes or PASSES), repetitions, threads or physical_cores())


def _file_quant(path: Path) -> str:
    said = catalog.load("edgeprune.runtimes", "llamacpp").quant(path)
    if not named("llamacpp", said):
        raise UsageError(
            f"{path} is of quantisation {said!r}, whose size can't be foretold; name a folder or another file"
        )
    return said


def work_bytes(item: Item) -> int:
    assert item.geometry
    spec = generated.spec(item.geometry)
    return spec.params * (6 if item.runtime == "onnxruntime" else 2)  # with the float32 folder that it is made from


def run(plan: Plan, folder: Path, *, progress: Progress, kept: Path | None = None) -> list[Runs]:
    """Make the models in `folder` and run them. `kept`: a file of finished rounds, to go on from and to add to."""
    jobs = make(plan, folder, progress=progress)
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


def make(plan: Plan, folder: Path, *, progress: Progress) -> list[Job]:
    """The models of a plan, those that are not there yet made, as jobs to run. Raises OutOfResources without room."""
    need_space(folder, plan.bytes)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for n, item in enumerate(plan.items):
        progress("making models", n, len(plan.items))
        jobs.append(Job(item.name, _make(item, folder), item.runtime, plan.passes))
    return jobs


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
    source = _source(item, folder)
    if item.path and source.is_file():
        return source
    name = g.name if g else source.name
    out = folder / f"{name}-{item.quant}{'.gguf' if fmt == 'gguf' else ''}"
    if out.exists():
        return out
    if g and fmt == "gguf":
        with staging(out, flush=False) as partial:
            generated.make_gguf(g, item.quant, partial)
        return out
    if g and not source.exists():
        with staging(source, flush=False) as partial:
            generated.make_folder(g, partial)
    export(source, fmt, item.quant, out, verify=False)
    return out


def _source(item: Item, folder: Path) -> Path:
    """What the artifact is made from: a folder of the generated shape, or the user's model, cut where that is asked."""
    if item.geometry:
        return folder / item.geometry.name
    assert item.path
    if item.n_blocks is None:
        return item.path
    from edgeprune import gguf_prune, prune
    from edgeprune.plan import make_plan
    from edgeprune.types import Budget

    one_file = item.path.is_file()
    stem, suffix = (item.path.stem, item.path.suffix) if one_file else (item.path.name, "")
    out = folder / f"{stem}-{item.n_blocks}b{suffix}"
    if not out.exists():
        spec = model.inspect(item.path)
        budget = Budget(context_tokens=min(LONGEST, spec.context_length_tokens), prompt_tokens=1)
        cut = make_plan(spec, None, _host.profile(), budget, blocks=_blocks(item, spec))
        if one_file:
            gguf_prune.prune_gguf(item.path, spec, cut, out, base_model=spec.name)
        else:
            prune.prune(item.path, spec, cut, out, base_model=spec.name, command="edgeprune calibrate")
    return out


def _blocks(item: Item, spec: ModelSpec) -> Blocks:
    return typical_removal(spec.n_blocks, spec.n_blocks - (item.n_blocks or spec.n_blocks))


def observations(plan: Plan, runs: Sequence[Runs], profile: DeviceProfile) -> list[Observation]:
    """Times of the runs, as far as nothing else disturbed them, beside what each did."""
    found = []
    for item, r in zip(plan.items, runs, strict=True):
        spec, matrices = _spec(item), _size(item, profile).matrices
        shape = item.geometry.name if item.geometry else item.name
        base = Observation(shape, spec, item.runtime, r.backend, r.build, item.quant, matrices, "decode", 0, 0.0)
        for p, prefill, tokens in zip(plan.passes, r.prefill_ns, r.token_ns, strict=True):
            every = tuple(ns / 1e9 for repetition in tokens for ns in repetition)
            if every:
                depth = p.prompt + (p.gen + 1) // 2
                found.append(base._replace(tokens=depth, seconds=undisturbed(every), samples=every))
            read = tuple(ns / 1e9 for ns in prefill)
            found.append(base._replace(what="prefill", tokens=p.prompt, seconds=undisturbed(read), samples=read))
    return found


def _spec(item: Item) -> ModelSpec:
    if item.geometry:
        return generated.spec(item.geometry)
    assert item.path
    spec = model.inspect(item.path)
    left = tuple(spec.blocks[b.attn] for b in _blocks(item, spec) if b.attn is not None)
    return spec.model_copy(update={"n_blocks": len(left), "blocks": left})


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
        known += compute_bytes(spec, *key, context, prompt) + running_bytes(spec, size, *key, prompt)
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


def calibrate_host(
    plan: Plan, runs: list[Runs], device_id: str, when: str, profile: DeviceProfile | None = None
) -> Result:
    """This machine's profile with the terms that the runs say; `profile`: its facts, where they are known already."""
    profile = profile or _host.profile()
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
