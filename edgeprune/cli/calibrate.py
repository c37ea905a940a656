"""edgeprune calibrate"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli._app import device_profile, verb
from edgeprune.cli._options import Force, Json
from edgeprune.cli._terminal import emit, note, progress, say, table
from edgeprune.errors import UsageError
from edgeprune.files import refuse_existing

Models = Annotated[list[str] | None, typer.Argument(metavar="[MODEL…]", help="A .gguf or a transformers folder to run beside the generated models, whole and cut to half its blocks. With --from: the models that the files are of; also a name of the catalogue, such as llama-3.1-8b.")]  # fmt: skip  # noqa: E501
Files = Annotated[list[Path] | None, typer.Option("--from", metavar="FILE", help="Output of llama-bench (-o json, jsonl or csv) or of onnxruntime-genai's benchmark_e2e.py on the device; repeatable. Nothing is run here.")]  # fmt: skip  # noqa: E501
Base = Annotated[str | None, typer.Option("--device", "-d", help="With --from: the device that the files are of; its profile is extended.")]  # fmt: skip  # noqa: E501
Only = Annotated[list[str] | None, typer.Option("--runtime", help="llamacpp or onnxruntime; repeatable. Default: those that are installed.")]  # fmt: skip  # noqa: E501
Types = Annotated[list[str] | None, typer.Option("--type", help="A tensor type to run (Q8_0, Q4_K, int8, …); repeatable. Default: all usual ones.")]  # fmt: skip  # noqa: E501
Work = Annotated[Path | None, typer.Option("--work", help="Where generated models and finished rounds are kept, to go on after a kill. Default: the cache folder.")]  # fmt: skip  # noqa: E501


@verb("edgeprune calibrate -o my-host.toml")
def calibrate(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The profile to write, a .toml; its fit and plot go beside it.")
    ],
    models: Models = None,
    files: Files = None,
    device: Base = None,
    runtime: Only = None,
    type: Types = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="With --from: the power mode that the files are of. Default: the first."),
    ] = None,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1)] = 3,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Default: physical cores.")] = None,
    work: Work = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Fit the cost model to real runs on this machine, or to benchmark files of a device, and write a profile.

    Runs small generated models of two shapes in every tensor type, at two contexts, in each runtime; a few minutes on an
    idle machine. The same command goes on where it was stopped.
    """
    from edgeprune import _calibrate_write as writing

    if output.suffix != ".toml":
        raise UsageError(f"{output} is to be a profile; name it something.toml")
    for path in writing.paths(output):
        refuse_existing(path, force)
    if files:
        document, fitted, memory = _from_files(files, models or [], device, mode, output)
    elif device or mode:
        raise UsageError("--device and --mode are for --from; without files this machine is calibrated")
    else:
        document, fitted, memory = _on_host(models or [], runtime, type, repetitions, threads, work, output)
    found = writing.write(output, document, fitted, memory, force)
    emit(found) if json else _show(output, found)


def _from_files(files: list[Path], models: list[str], device: str | None, mode: str | None, output: Path):
    from edgeprune import _calibrate_files as library
    from edgeprune import known_models, model
    from edgeprune.cli._models import in_catalogue

    if device is None:
        raise UsageError("--from needs --device: the profile of the device that the files are of, or 'host'")
    base = device_profile(device)
    shapes = {m: in_catalogue(m) for m in models}
    specs = [known_models.load(s) if (s := shapes[m]) else model.inspect(model.resolve(m)) for m in models]
    document = library.base_document(device)
    document, fitted, said = library.calibrate_files(files, specs, base, document, output.stem, mode)
    for line in said:
        note(line)
    return document, fitted, []


def _on_host(models, runtimes, types, repetitions, threads, work: Path | None, output: Path):
    from edgeprune import calibrate as library
    from edgeprune import model
    from edgeprune.units import show_bytes

    paths = [model.resolve(m) for m in models]
    plan = library.make_plan(runtimes or (), paths, types or (), repetitions, threads)
    folder = work or _cache() / "calibrate"
    note(
        f"{len(plan.items)} models in turn, {repetitions} repetitions of {len(plan.passes)} contexts, {plan.n_threads} "
        f"threads; about {max(1, round(plan.seconds / 60))} min on an idle machine, {show_bytes(plan.bytes)} in {folder}"
    )
    kept = folder / "rounds.json"
    with progress() as tick:
        runs = library.run(plan, folder, progress=tick, kept=kept)
    result = library.calibrate_host(plan, runs, output.stem, time.strftime("%Y-%m-%d", time.gmtime()))
    kept.unlink(missing_ok=True)
    return result.document, result.fitted, result.memory


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "edgeprune"
    return folder if os.access(folder.parent, os.W_OK) else Path(tempfile.gettempdir()) / "edgeprune"


def _show(output: Path, found: dict) -> None:
    from edgeprune._calibrate_write import paths

    for c in found["calibrations"]:
        say(f"{c['runtime']} on {c['backend']}: {c['status']}, {c['n_rows']} rows of {c['n_models']} models")
        prompt = c.get("prefill_rates", {})
        rows = [
            [kind, _span(f, 1e9), _span(prompt.get(kind), 1e9)]
            for kind, f in (c.get("weight_rates") or dict.fromkeys(prompt)).items()
        ]
        table(None, ["type", "reading weights, GB/s", "a prompt's matrices, GFLOP/s"], rows)
        for key, name, unit, scale in _SINGLE:
            if key in c:
                say(f"{name}: {_span(c[key], scale)} {unit}")
    rows = [
        [f"{e['runtime']} on {e['backend']}", e["what"], str(e["rows"]), f"{e['median']:.1%}", f"{e['worst']:.1%}"]
        for e in found["errors"]
    ]
    table("how far the fit is from its own rows", ["runtime", "", "rows", "median", "worst"], rows, right=(2, 3, 4))
    for line in found["unclear"]:
        say(line)
    say("wrote " + ", ".join(str(p) for p in paths(output)))
    say(f"use it: edgeprune plan MODEL --device {output if output.is_absolute() else './' + str(output)}")


_SINGLE = (
    ("overhead_per_block", "per block", "us", 1.0),
    ("attention_rate", "attention of a token", "GFLOP/s", 1e9),
    ("prefill_attention_rate", "attention of a prompt", "GFLOP/s", 1e9),
    ("runtime_memory", "runtime", "MB", 1e6),
)


def _span(figure: dict | None, scale: float) -> str:
    if figure is None:
        return "not measured"
    text = f"{figure['value'] / scale:.3g}"
    low, high = figure.get("low"), figure.get("high")
    return text if low is None or low == high else f"{text} ({low / scale:.3g} to {high / scale:.3g})"
