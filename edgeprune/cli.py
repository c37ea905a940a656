"""The verbs. The only module that prints; each verb imports what it needs when it runs."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeprune import __version__, _show
from edgeprune._options import (
    Calibration,
    Context,
    Device,
    Force,
    Json,
    MaxMem,
    MaxSteps,
    MaxTtft,
    Metric,
    MinTps,
    Mode,
    Prompt,
    Quant,
    Runtime,
    Texts,
    Window,
    Windows,
)
from edgeprune._terminal import emit, guarded, note, progress, say
from edgeprune.errors import UsageError
from edgeprune.files import refuse_existing
from edgeprune.types import Budget

EXIT_CODES = (
    "Exit codes: 0 ok, 1 internal, 2 usage, 3 budget infeasible, 4 input rejected, 5 made for other weights, "
    "6 out of disk or memory, 130 interrupted."
)
app = typer.Typer(
    name="edgeprune",
    help="Fit a language model to a device: plan, prune, export to GGUF and ONNX, measure, report.\n\n"
    "MODEL is a transformers folder, a .gguf file or a hub id (org/name or org/name@revision).",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def verb(example: str):
    """Register a function as a verb: errors in one line, an example in its help."""

    def register(fn: Any) -> Any:
        name = fn.__name__.rstrip("_")
        app.command(name, epilog=f"Example: {example}\n\n{EXIT_CODES}")(guarded(fn))
        return fn

    return register


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False) -> None:
    if version:
        say(f"edgeprune {__version__}")
        raise typer.Exit(0)


@verb("edgeprune devices jetson-orin")
def devices(
    name: Annotated[str | None, typer.Argument(help="A profile's name or alias, or 'host'.")] = None, json: Json = False
) -> None:
    """List device profiles, or show one with the source of every figure."""
    from edgeprune import devices as library

    if name:
        profile = library.load(name)
        emit(profile) if json else _show.device(profile, name)
    else:
        profiles = [library.load(n) for n in library.names()]
        emit(profiles) if json else _show.device_table(profiles)


@verb("edgeprune inspect ./SmolLM2-135M-Instruct")
def inspect(model: Annotated[str, typer.Argument(metavar="MODEL")], json: Json = False) -> None:
    """Show a model's shape, sizes and fingerprint, from its headers alone."""
    from edgeprune import model as models

    spec = models.inspect(models.resolve(model))
    emit(spec) if json else _show.model(spec)


@verb("edgeprune score ./SmolLM2-135M-Instruct -o scores.json")
def score(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    output: Annotated[Path, typer.Option("-o", "--output")],
    metric: Metric = "block_influence",
    calibration: Calibration = None,
    windows: Windows = 16,
    window: Window = 512,
    max_steps: MaxSteps = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Rate the blocks, order their removal and measure the damage of every step. Slow, once per model."""
    from edgeprune import catalog, files, folders
    from edgeprune import model as models
    from edgeprune import score as scoring

    catalog.load("edgeprune.metrics", metric)
    refuse_existing(output, force)
    path = models.resolve(model)
    spec = models.inspect(path)
    steps = max_steps or scoring.default_steps(spec.n_blocks)
    note(f"scoring {spec.name}: {metric}, {steps} steps, up to {windows} windows of {window} tokens")
    with folders.as_folder(path) as folder, progress() as tick:
        scores = scoring.score_folder(
            folder, spec, files=calibration or [], metric=metric, max_steps=steps, n_windows=windows,
            context_tokens=window, progress=tick,
        )  # fmt: skip
    files.write_text(output, scores.to_json(), force)
    emit(scores) if json else _show.scores(scores, output)


@verb("edgeprune plan --device jetson-orin --max-mem 8GB")
def plan(
    device: Device,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Default: the built-in SmolLM2-135M-Instruct.")
    ] = None,
    max_mem: MaxMem = None,
    min_tps: MinTps = None,
    max_ttft: MaxTtft = None,
    prompt: Prompt = 512,
    context: Context = 2048,
    quant: Quant = "auto",
    runtime: Runtime = "auto",
    mode: Mode = None,
    scores: Annotated[Path | None, typer.Option(help="From `edgeprune score`.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the plan here.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Choose what to remove and how to quantise for a device and a budget. Milliseconds; reads no weights."""
    from edgeprune import files
    from edgeprune import plan as planner

    if output:
        refuse_existing(output, force)
    budget = _budget(max_mem, min_tps, max_ttft, prompt, context, quant, runtime)
    spec, known = _spec_and_scores(model, scores)
    profile = _device(device)
    made = planner.make_plan(spec, known, profile, budget, mode=mode)
    if output:
        files.write_text(output, made.to_json(), force)
        note(f"wrote {output}")
    emit(made) if json else _show.plan(made, profile, spec)


@verb("edgeprune prune ./SmolLM2-135M-Instruct --plan plan.json -o pruned")
def prune(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    plan: Annotated[Path, typer.Option(help="From `edgeprune plan -o`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A transformers folder to make.")],
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the transformers folder a plan leaves. Kept tensors stay bit-identical; opens with from_pretrained."""
    from edgeprune import folders
    from edgeprune import model as models
    from edgeprune import prune as pruning
    from edgeprune.types import Plan

    refuse_existing(output, force)
    made = folders.read_record(plan, Plan)
    path = models.resolve(model)
    spec = models.inspect(path)
    pruning.check_plan(made, spec)
    note(f"pruning {spec.name}: {made.removed or 'nothing'} removed, {len(made.blocks)} of {spec.n_blocks} blocks stay")
    with folders.as_folder(path) as folder, progress() as tick:
        pruning.prune(
            folder, spec, made, output, base_model=folders.public_name(model), command=command_line(), force=force,
            progress=lambda done, total: tick("writing", done, total),
        )  # fmt: skip
    result = models.inspect(output)
    emit(result) if json else _show.pruned(output, spec, result, made)


@verb("edgeprune export pruned --format gguf --quant Q4_K_M -o pruned-Q4_K_M.gguf")
def export(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A transformers folder, or any MODEL.")],
    format: Annotated[str, typer.Option(help="gguf or onnx.")],
    quant: Annotated[
        str, typer.Option(help="gguf: F32 F16 BF16 Q8_0 Q6_K Q5_K_M Q4_K_M Q4_0 …; onnx: fp32 fp16 int8 int4.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .gguf file, or a folder for ONNX.")],
    verify: Annotated[bool, typer.Option(help="Load the result and compare its logits with torch.")] = True,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a GGUF file or an ONNX folder, then load it and compare its logits with torch."""
    from edgeprune import export as exporting
    from edgeprune import folders
    from edgeprune import model as models

    refuse_existing(output, force)
    with folders.as_folder(models.resolve(folder)) as source, progress() as tick:
        artifact = exporting.export(
            source, format, quant, output, force=force, verify=verify,
            progress=lambda what, fraction: tick(what, round(fraction * 100), 100),
        )  # fmt: skip
    emit(artifact) if json else _show.artifact(artifact)


@verb("edgeprune bench pruned-Q4_K_M.gguf onnx-int8")
def bench(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT…")],
    n_prompt: Annotated[int, typer.Option("--n-prompt", "-p", min=0)] = 512,
    n_gen: Annotated[int, typer.Option("--n-gen", "-n", min=0)] = 128,
    n_depth: Annotated[int, typer.Option("--n-depth", min=0, help="Tokens already in the cache.")] = 0,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1)] = 5,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Default: physical cores.")] = None,
    llama_bench: Annotated[
        Path | None, typer.Option(help="A llama-bench binary to run beside ours on GGUF files.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure batch-1 speed and memory as llama-bench does, each artifact in a fresh process."""
    from edgeprune import bench as benching
    from edgeprune import llama_bench as real
    from edgeprune.types import Workload

    if not n_prompt and not n_gen:
        raise UsageError("nothing to measure: --n-prompt and --n-gen are both 0")
    load = Workload(n_prompt=n_prompt, n_gen=n_gen, n_depth=n_depth, repetitions=repetitions, n_threads=threads)
    for path in artifacts:
        benching.runtime_for(path)
    turns = "interleaved" if benching.fits_together(artifacts) else "one after another"
    note(
        f"measuring {len(artifacts)} artifact(s), {turns}: prompt {n_prompt}, generate {n_gen}, {repetitions} repetitions"
    )
    theirs = []
    with progress() as tick:
        results = benching.measure({str(p): p for p in artifacts}, load, progress=tick)
        for m in results if llama_bench else ():
            if m.runtime == "llamacpp":
                theirs += real.run(llama_bench, Path(m.artifact), load, m)
    emit([row for m in results for row in real.rows(m)] + theirs) if json else _show.measurements(results, theirs)


@verb("edgeprune evaluate pruned-Q4_K_M.gguf --against ./SmolLM2-135M-Instruct")
def evaluate(
    subjects: Annotated[list[str], typer.Argument(metavar="MODEL_OR_ARTIFACT…")],
    against: Annotated[str | None, typer.Option(metavar="MODEL", help="The whole model, for KL.")] = None,
    text: Texts = None,
    windows: Windows = 16,
    window: Window = 512,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1)] = None,
    json: Json = False,
) -> None:
    """Perplexity, and KL divergence from the whole model, on the same tokens for every runtime."""
    from edgeprune import evaluate as evaluating
    from edgeprune import model as models

    paths = {s: models.resolve(s) for s in subjects}
    with progress() as tick:
        found = evaluating.evaluate(
            paths, whole=models.resolve(against) if against else None, files=text or [], n_windows=windows,
            context_tokens=window, n_threads=threads, progress=tick,
        )  # fmt: skip
    emit(found) if json else _show.qualities(found)


@verb("edgeprune report demo -o report.html")
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder `edgeprune run` made.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: DIR/report.html.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the report of a run: one HTML file without scripts, and the same facts as .md and .json."""
    from edgeprune import report as reporting

    made = reporting.build(folder)
    paths = reporting.write(made, output or folder / "report.html", force)
    emit(made) if json else _show.report(made, paths)


@verb("edgeprune run --device host --max-mem 200MB -o demo")
def run(
    device: Device,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A folder for everything; the same call goes on where it stopped.")
    ],
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Default: the built-in SmolLM2-135M-Instruct.")
    ] = None,
    max_mem: MaxMem = None,
    min_tps: MinTps = None,
    max_ttft: MaxTtft = None,
    prompt: Prompt = 512,
    context: Context = 2048,
    quant: Quant = "auto",
    runtime: Runtime = "auto",
    mode: Mode = None,
    scores: Annotated[Path | None, typer.Option(help="From `edgeprune score`; else scored here.")] = None,
    metric: Metric = "block_influence",
    calibration: Calibration = None,
    text: Texts = None,
    windows: Windows = 8,
    window: Window = 512,
    max_steps: MaxSteps = None,
    exports: Annotated[
        list[str] | None,
        typer.Option("--export", help="FORMAT:QUANT, repeatable. Default: gguf:Q8_0 gguf:Q4_K_M onnx:int8 onnx:int4."),
    ] = None,  # noqa: E501
    baseline: Annotated[bool, typer.Option(help="Also measure the whole model at the planned quantisation.")] = True,
    json: Json = False,
) -> None:
    """Score, plan, prune, export, measure, evaluate and report in one folder, skipping what is done and verified."""
    from edgeprune import folders
    from edgeprune import model as models
    from edgeprune import report as reporting
    from edgeprune import run as running
    from edgeprune.types import Scores

    budget = _budget(max_mem, min_tps, max_ttft, prompt, context, quant, runtime)
    profile = _device(device)
    if model is None:
        note(f"no MODEL named: using the built-in {models.BUILTIN}")
    source = models.resolve(model or models.BUILTIN)
    options = running.Options(
        metric=metric, calibration=tuple(calibration or ()), texts=tuple(text or ()), windows=windows, context=window,
        max_steps=max_steps, exports=tuple(exports or running.DEFAULT_EXPORTS), baseline=baseline, mode=mode,
    )  # fmt: skip
    note(f"run in {output}: score, plan, prune, export {' '.join(options.exports)}, measure, evaluate, report")
    with progress() as tick:
        running.run(
            source, models.inspect(source, model and folders.public_name(model)), profile, budget, output, options,
            base_model=folders.public_name(model or models.BUILTIN), command=command_line(), say=note, progress=tick,
            scores=folders.read_record(scores, Scores) if scores else None,
        )  # fmt: skip
    made = reporting.build(output)
    paths = reporting.write(made, output / "report.html", force=True)
    emit(made) if json else _show.report(made, paths)


def _budget(max_mem: Any, min_tps: Any, max_ttft: Any, prompt: int, context: int, quant: str, runtime: str) -> Budget:
    return Budget(
        max_mem_bytes=max_mem, min_decode_tok_per_s=min_tps, max_ttft_s=max_ttft, prompt_tokens=prompt,
        context_tokens=context, quant=quant, runtime=runtime,
    )  # fmt: skip


def _device(name: str) -> Any:
    from edgeprune import devices as library

    profile = library.load(name)
    if profile.siblings and name != profile.id:
        note(f"{name} is taken as {profile.id} ({profile.name}); it could also mean {', '.join(profile.siblings)}")
    return profile


def _spec_and_scores(model: str | None, scores: Path | None) -> tuple[Any, Any]:
    from edgeprune import folders
    from edgeprune import model as models
    from edgeprune.types import ModelSpec, Scores

    known = folders.read_record(scores, Scores) if scores else None
    if model is None or model == models.BUILTIN:
        if model is None:
            note(
                f"no MODEL named: planning the built-in {models.BUILTIN}. For yours: edgeprune plan MODEL --scores scores.json …"
            )
        spec = ModelSpec.from_json(models.builtin_text("spec"))
        return spec, known or Scores.from_json(models.builtin_text("scores"))
    return models.inspect(models.resolve(model)), known


def command_line() -> str:
    """What the user typed, for the report and the model card."""
    return shlex.join(["edgeprune", *sys.argv[1:]])


def main() -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # one progress display: ours
    app()


if __name__ == "__main__":
    main()
