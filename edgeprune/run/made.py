"""What a run makes: the pruned folder, the healed one, the artifacts, and what is foretold of them."""

from __future__ import annotations

from pathlib import Path

from edgeprune import catalog, cost, heal, prune
from edgeprune.blocks import whole
from edgeprune.calibration import read_texts
from edgeprune.errors import UsageError
from edgeprune.files import sha256_tree
from edgeprune.heal_text import keep_from_judging
from edgeprune.run.facts import fewer_bits
from edgeprune.run.job import Job, Options, shas, write, write_all
from edgeprune.training.retrain import settings
from edgeprune.types import Artifact, DeviceProfile, Plan, Prediction


def pruned(job: Job, made: Plan) -> Path:
    out = job.out / "pruned"

    def work() -> None:
        prune.prune(job.base, job.spec, made, out, base_model=job.base_model, command=job.command, force=True)

    job.journal.step("prune", [made.digest(), job.spec.fingerprint], [out], work)
    return out


# --- healing ------------------------------------------------------------------------------------


def check_heal(base: Path, options: Options) -> None:
    """Raises, before any work, UsageError or InputRejected for what can't be healed as asked for."""
    trained = []
    for method in options.heal:
        heal.check(base, method)
        healer = catalog.load("edgeprune.healers", method)
        if heal.is_trained(healer):
            trained.append(method)
            settings(healer, method, options.settings)
        elif method != options.heal[0]:
            raise UsageError(
                f"--heal {','.join(options.heal)}: {method} is solved from the whole model's weights; name it first"
            )
    if len(set(options.heal)) < len(options.heal):
        raise UsageError(f"--heal {','.join(options.heal)} names a method twice; once with more --tokens does as much")
    if (options.budget or options.settings) and not trained:
        raise UsageError(
            "--tokens, --minutes and --set are for healing by training; add a --heal such as refit,distill"
        )
    if options.heal_windows and len(trained) == len(options.heal):
        raise UsageError("--heal-windows is for healing in closed form; add --heal refit, or leave it out")
    if options.heal:
        keep_from_judging(read_texts(options.calibration, "calibration"), options.texts)


def healed(job: Job, made: Plan) -> Path:
    """The folder to export: healed by each method in turn, where that was asked for and something was removed."""
    folder, methods = job.out / "pruned", job.options.heal if made.removed else ()
    for method in methods:
        out = job.out / ("healed" if method == methods[-1] else f"healed-{method}")
        _heal(job, method, folder, out)
        folder = out
    return folder


def _heal(job: Job, method: str, folder: Path, out: Path) -> None:
    options = job.options
    trains = heal.is_trained(catalog.load("edgeprune.healers", method))
    trained = {"budget": options.budget, "options": options.settings}
    more = trained if trains else {"n_windows": options.heal_windows or heal.WINDOWS}

    def work() -> None:
        heal.heal(
            folder, job.base, job.spec, out, method=method, files=options.calibration, avoid=options.texts,
            context_tokens=options.context, max_bytes=options.max_bytes, base_model=job.base_model, command=job.command,
            force=True, say=job.journal.say, progress=job.progress, **more,
        )  # fmt: skip

    inputs = [method, sha256_tree(folder), options.context, shas(options.calibration), shas(options.texts), more]
    job.journal.step(f"heal by {method}", inputs, [out], work)


# --- artifacts ----------------------------------------------------------------------------------


def exported(job: Job, folder: Path, made: Plan, device: DeviceProfile) -> list[Artifact]:
    """Of `folder` the planned file first, then what else was asked for; of the whole model what the plan competes with."""
    from edgeprune.export import export, formats

    fmt = formats()[made.runtime]
    jobs = [(folder, name, "") for name in dict.fromkeys([f"{fmt}:{made.quant}", *job.options.exports])]
    if job.options.baseline and made.removed:
        jobs.append((job.base, f"{fmt}:{made.quant}", "whole/"))
        if fewer := fewer_bits(job.spec, made, device):
            jobs.append((job.base, f"{fmt}:{fewer}", "whole/"))
    artifacts = []
    for source, name, prefix in jobs:
        fmt, quant = _split(name)
        path = f"{prefix}{fmt}/{artifact_name(job.spec.name, source != job.base and bool(made.removed), fmt, quant)}"
        record = job.out / f"{prefix}{fmt}" / f"{quant}.artifact.json"

        def told(what: str, share: float, path: str = path) -> None:
            job.progress(f"{path}: {what}", round(share * 100), 100)

        def work(
            source: Path = source,
            fmt: str = fmt,
            quant: str = quant,
            path: str = path,
            record: Path = record,
            told=told,
        ) -> None:
            found = export(source, fmt, quant, job.out / path, force=True, progress=told)
            write(record, found.model_copy(update={"path": path}))

        job.journal.step(f"export {path}", [fmt, quant, sha256_tree(source)], [job.out / path, record], work)
        artifacts.append(Artifact.from_json(record.read_text()))
    write_all(job.out / "artifacts.json", artifacts)
    return artifacts


def artifact_name(model_name: str, pruned: bool, fmt: str, quant: str) -> str:
    """A folder is named by its quantisation, a GGUF file as its readers expect: Name-pruned-Q4_K_M.gguf."""
    if fmt == "onnx":
        return quant
    name = model_name.removesuffix(".gguf").rsplit(".Q", 1)[0]
    return f"{name}{'-pruned' if pruned else ''}-{quant}.gguf"


def _split(name: str) -> tuple[str, str]:
    fmt, _, quant = name.partition(":")
    if fmt not in catalog.names("exporters") or not quant:
        raise UsageError(f"--export {name!r}: write FORMAT:QUANT, for example gguf:Q4_K_M or onnx:int8")
    return fmt, quant


def foretold(job: Job, made: Plan, device: DeviceProfile, artifacts: list[Artifact]) -> None:
    found: dict[str, Prediction] = {}
    n, prompt = made.budget.context_tokens, made.budget.prompt_tokens
    for a in artifacts:
        blocks = whole(job.spec.n_blocks) if a.path.startswith("whole/") else made.blocks
        runtime = catalog.load("exporters", a.format).RUNTIME
        backend = made.backend if runtime == made.runtime else cost.best_backend(device, runtime)
        if backend is None:
            continue
        kv_type = made.kv_type if runtime == made.runtime else None
        found[a.path] = cost.predict(
            job.spec, blocks, device, runtime, backend, a.quant, n, prompt, job.options.mode, kv_type
        )
    write_all(job.out / "predictions.json", found)
