"""Run: the whole job in one folder. The only place that chains verbs; a step already done and verified is skipped.

DIR/  model.json scores.json device.json plan.json          what was decided
      base/ pruned/ healed/ gguf/ onnx/ whole/              what was made
      artifacts.json measurements.json quality.json predictions.json run.json report.{html,md,json,csv}
      journal.json                                          what each step read and wrote, by SHA-256
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune import __version__, bench, catalog, cost, heal, model, plan, prune
from edgeprune._run_facts import chat_templates, environment, fewer_bits, late_workloads
from edgeprune.blocks import whole
from edgeprune.calibration import keep_apart, read_texts
from edgeprune.errors import EdgepruneError, UsageError
from edgeprune.files import check_sums, sha256_tree, write_text
from edgeprune.types import (
    Artifact,
    Budget,
    DeviceProfile,
    Measurement,
    ModelSpec,
    Plan,
    Prediction,
    Quality,
    Record,
    Scores,
    Workload,
)

Progress = Callable[[str, int, int], None]
DEFAULT_EXPORTS = ("gguf:Q8_0", "gguf:Q4_K_M", "onnx:int8", "onnx:int4-mixed")


class Options(NamedTuple):
    metric: str = "kl_search"
    effort: int = 1
    calibration: tuple[Path, ...] = ()
    texts: tuple[Path, ...] = ()
    windows: int = 8
    context: int = 512
    max_steps: int | None = None
    exports: tuple[str, ...] = DEFAULT_EXPORTS
    baseline: bool = True
    workload: Workload = Workload()
    depths: tuple[int, ...] | None = None  # of the context, at which decoding is timed too; None: its end
    mode: str | None = None
    heal: str = "none"  # or a healer


class Journal:
    """Remembers by hash what each step read and wrote."""

    def __init__(self, path: Path, say: Callable[[str], None]):
        self.path, self.say = path, say
        try:
            self.entries: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        except ValueError:
            self.entries = {}

    def step(self, name: str, inputs: Any, outputs: Sequence[Path], work: Callable[[], None]) -> None:
        """Do `work`, which must write `outputs`, unless the same inputs already gave outputs that still verify."""
        key = hashlib.sha256(json.dumps([__version__, inputs], sort_keys=True, default=str).encode()).hexdigest()
        entry = self.entries.get(name)
        if entry and entry["inputs"] == key and all(_verified(p, entry["outputs"].get(p.name)) for p in outputs):
            self.say(f"{name}: already done")
            return
        self.say(name)
        work()
        self.entries[name] = {"inputs": key, "outputs": {p.name: sha256_tree(p) for p in outputs}}
        write_text(self.path, json.dumps(self.entries, indent=1) + "\n", force=True)


def _verified(path: Path, sha: str | None) -> bool:
    if not path.exists() or sha256_tree(path) != sha:
        return False
    try:
        check_sums(path) if path.is_dir() else None
    except EdgepruneError:
        return False
    return True


def run(
    source: Path, spec: ModelSpec, device: DeviceProfile, budget: Budget, out: Path, options: Options, *,
    base_model: str, scores: Scores | None, command: str, say: Callable[[str], None], progress: Progress,
) -> Plan:  # fmt: skip
    """Score, plan, prune, export, measure, evaluate and report into `out`. Returns the plan."""
    out = Path(out)
    _claim(out)
    journal = Journal(out / "journal.json", say)
    _write(out / "model.json", spec)
    late_workloads(options.depths, Workload(context_tokens=budget.context_tokens))
    base = _base(source, spec, out, journal)
    if options.heal != "none":
        heal.check(base, options.heal)
    if scores is None:
        scores = _score(base, spec, out, options, journal, progress)
    _write(out / "scores.json", scores)
    keep_apart(read_texts(options.texts, "evaluation"), scores.text)
    _write(out / "device.json", device)
    made = plan.make_plan(spec, scores, device, budget, mode=options.mode)
    _write(out / "plan.json", made)
    say(
        f"plan: {made.runtime} {made.quant}, remove {made.removed or 'nothing'}; {len(made.blocks)} of {spec.n_blocks} blocks stay"
    )

    def do_prune() -> None:
        prune.prune(base, spec, made, out / "pruned", base_model=base_model, command=command, force=True)

    journal.step("prune", [made.digest(), spec.fingerprint, command], [out / "pruned"], do_prune)
    final = _heal(base, spec, made, out, options, base_model, command, journal, progress)
    if final.name == "healed":
        made = heal.pruned_plan(final)  # with what healing gave back
    artifacts = _export_all(base, final, spec, made, device, out, options, journal, progress)
    _write_list(out / "artifacts.json", artifacts)
    _write_predictions(spec, made, device, budget, artifacts, out, options.mode)
    _measure_all(artifacts, made, out, options, workload(options.workload, budget, made), journal, progress)
    _evaluate(base, final, spec, made, artifacts, scores, out, options, journal, progress)
    templates = chat_templates(
        {"whole": base, "pruned": out / "pruned"} | ({} if final.name == "pruned" else {final.name: final})
    )
    told = {"command": command, "environment": environment(), "chat_templates": templates}
    write_text(out / "run.json", json.dumps(told, indent=1) + "\n", force=True)
    return made


def _claim(out: Path) -> None:
    """A run folder is new, empty, or a run of ours to go on with."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "journal.json").exists())):
        raise UsageError(f"{out} exists and is not a run folder of edgeprune; choose another output")
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "journal.json").exists():
        write_text(out / "journal.json", "{}\n")


def _base(source: Path, spec: ModelSpec, out: Path, journal: Journal) -> Path:
    """The whole model as a transformers folder."""
    if source.is_dir():
        return source
    from edgeprune.materialise import materialise

    base = out / "base"
    journal.step("read the GGUF into torch", spec.fingerprint, [base], lambda: materialise(source, base, force=True))
    return base


def _score(base: Path, spec: ModelSpec, out: Path, options: Options, journal: Journal, progress: Progress) -> Scores:
    from edgeprune import score

    path = out / "scores.json"
    steps = options.max_steps or score.default_steps(spec.n_blocks)

    def work() -> None:
        scores = score.score_folder(
            base, spec, score.Method(options.metric, steps, effort=options.effort), files=options.calibration,
            n_windows=options.windows, context_tokens=options.context, log=out / ".scores.progress", progress=progress,
        )  # fmt: skip
        _write(path, scores)
        (out / ".scores.progress").unlink(missing_ok=True)

    inputs = [
        spec.fingerprint,
        options.metric,
        options.effort,
        steps,
        options.windows,
        options.context,
        _shas(options.calibration),
    ]
    journal.step("score", inputs, [path], work)
    return Scores.from_json(path.read_text())


def _heal(
    base: Path, spec: ModelSpec, made: Plan, out: Path, options: Options, base_model: str, command: str, journal: Journal,
    progress: Progress,
) -> Path:  # fmt: skip
    """The folder to export: healed, where that was asked for and something was removed."""
    pruned, healed = out / "pruned", out / "healed"
    if options.heal == "none" or not made.removed:
        return pruned

    def work() -> None:
        heal.heal(
            pruned, base, spec, healed, method=options.heal, files=options.calibration, avoid=options.texts,
            context_tokens=options.context, base_model=base_model, command=command, force=True, progress=progress,
        )  # fmt: skip

    inputs = [options.heal, sha256_tree(pruned), options.context, _shas(options.calibration), _shas(options.texts)]
    journal.step(f"heal by {options.heal}", inputs, [healed], work)
    return healed


def _export_all(
    base: Path,
    final: Path,
    spec: ModelSpec,
    made: Plan,
    device: DeviceProfile,
    out: Path,
    options: Options,
    journal: Journal,
    progress: Progress,
) -> list[Artifact]:
    from edgeprune.export import export, formats

    planned = f"{formats()[made.runtime]}:{made.quant}"
    wanted = list(dict.fromkeys([planned, *options.exports]))
    jobs = [(final, name, "") for name in wanted]
    if options.baseline and made.removed:
        jobs.append((base, planned, "whole/"))
        if fewer := fewer_bits(spec, made, device):
            jobs.append((base, f"{formats()[made.runtime]}:{fewer}", "whole/"))
    artifacts = []
    for folder, name, prefix in jobs:
        fmt, quant = _split(name)
        path = f"{prefix}{fmt}/{artifact_name(spec.name, folder != base and bool(made.removed), fmt, quant)}"
        record = out / f"{prefix}{fmt}" / f"{quant}.artifact.json"

        def work(
            folder: Path = folder, fmt: str = fmt, quant: str = quant, path: str = path, record: Path = record
        ) -> None:
            made_of = export(
                folder,
                fmt,
                quant,
                out / path,
                force=True,
                progress=lambda what, f: progress(f"{path}: {what}", round(f * 100), 100),
            )
            _write(record, made_of.model_copy(update={"path": path}))

        journal.step(f"export {path}", [fmt, quant, sha256_tree(folder)], [out / path, record], work)
        artifacts.append(Artifact.from_json(record.read_text()))
    return artifacts


def artifact_name(model_name: str, pruned: bool, fmt: str, quant: str) -> str:
    """A folder is named by its quantisation, a GGUF file as its readers expect: Name-pruned-Q4_K_M.gguf."""
    if fmt == "onnx":
        return quant
    name = model_name.removesuffix(".gguf").rsplit(".Q", 1)[0]
    return f"{name}{'-pruned' if pruned else ''}-{quant}.gguf"


def workload(base: Workload, budget: Budget, made: Plan) -> Workload:
    """The usual tests with the planned context and cache, so that measured memory is of what was planned."""
    n = budget.context_tokens
    sizes = {"n_prompt": min(base.n_prompt, n), "n_gen": min(base.n_gen, n), "context_tokens": n}
    return base.model_copy(update={**sizes, "kv_type": made.kv_type if made.runtime == "llamacpp" else None})


def _measure_all(
    artifacts: list[Artifact], made: Plan, out: Path, options: Options, load: Workload, journal: Journal, progress: Progress
) -> None:  # fmt: skip
    """All in one step: numbers to be compared belong to one run. Late in the context, only what the plan is judged by."""
    path = out / "measurements.json"
    judged = [a for a in artifacts if a is artifacts[0] or a.path.startswith("whole/")]  # the planned file is the first
    late = late_workloads(options.depths, load)

    def work() -> None:
        found = bench.measure({a.path: out / a.path for a in artifacts}, load, progress=progress)
        for at_depth in late:
            found += bench.measure({a.path: out / a.path for a in judged}, at_depth, progress=progress)
        _write_list(path, found)

    inputs = [[(a.path, a.sha256) for a in artifacts], load.model_dump(), [w.n_depth for w in late]]
    journal.step("measure", inputs, [path], work)


def _evaluate(
    base: Path, final: Path, spec: ModelSpec, made: Plan, artifacts: list[Artifact], scores: Scores, out: Path, options: Options,
    journal: Journal, progress: Progress,
) -> None:  # fmt: skip
    from edgeprune.evaluate import evaluate

    subjects = {"whole": base, "pruned": out / "pruned", final.name: final}
    subjects |= {a.path: out / a.path for a in artifacts}
    path = out / "quality.json"

    def work() -> None:
        found = evaluate(
            subjects, whole=base, files=options.texts, n_windows=options.windows, context_tokens=options.context,
            avoid=scores.text, kv_type=made.kv_type if made.runtime == "llamacpp" else None, progress=progress,
        )  # fmt: skip
        _write_list(path, found)

    inputs = [spec.fingerprint, made.digest(), [a.sha256 for a in artifacts], options.windows, options.context]
    journal.step("evaluate", [*inputs, _shas(options.texts)], [path], work)


def _write_predictions(
    spec: ModelSpec,
    made: Plan,
    device: DeviceProfile,
    budget: Budget,
    artifacts: list[Artifact],
    out: Path,
    mode: str | None,
) -> None:
    found: dict[str, Prediction] = {}
    for a in artifacts:
        blocks = whole(spec.n_blocks) if a.path.startswith("whole/") else made.blocks
        runtime = catalog.load("exporters", a.format).RUNTIME
        backend = made.backend if runtime == made.runtime else cost.best_backend(device, runtime)
        if backend is None:
            continue
        kv_type = made.kv_type if runtime == made.runtime else None
        found[a.path] = cost.predict(
            spec, blocks, device, runtime, backend, a.quant, budget.context_tokens, budget.prompt_tokens, mode, kv_type
        )
    text = json.dumps({k: p.model_dump(mode="json") for k, p in found.items()}, indent=1)
    write_text(out / "predictions.json", text + "\n", force=True)


def _split(name: str) -> tuple[str, str]:
    fmt, _, quant = name.partition(":")
    if fmt not in catalog.names("exporters") or not quant:
        raise UsageError(f"--export {name!r}: write FORMAT:QUANT, for example gguf:Q4_K_M or onnx:int8")
    return fmt, quant


def _shas(files: Sequence[Path]) -> list[str]:
    return [sha256_tree(model.resolve(str(p))) for p in files]


def _write(path: Path, record: Record) -> None:
    write_text(path, record.to_json(), force=True)


def _write_list(path: Path, records: Sequence[Artifact | Measurement | Quality]) -> None:
    text = json.dumps([r.model_dump(mode="json") for r in records], indent=1, ensure_ascii=False)
    write_text(path, text + "\n", force=True)
