"""edgeprune run"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli._app import budget_of, command_line, device_profile, verb
from edgeprune.cli._options import (
    Calibration,
    Context,
    Device,
    Effort,
    Json,
    KvType,
    MaxFile,
    MaxKl,
    MaxMem,
    MaxPplRatio,
    MaxSteps,
    MaxTtft,
    Metric,
    MinTps,
    Mode,
    ModelOrBuiltin,
    Objective,
    Prompt,
    Quant,
    Runtime,
    Texts,
    Window,
    Windows,
)
from edgeprune.cli._terminal import emit, note, progress


@verb("edgeprune run --device host --max-mem 200MB -o demo")
def run(
    device: Device,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A folder for everything; the same call goes on where it stopped.")
    ],
    model: ModelOrBuiltin = None,
    max_mem: MaxMem = None,
    min_tps: MinTps = None,
    max_ttft: MaxTtft = None,
    max_file: MaxFile = None,
    max_kl: MaxKl = None,
    max_ppl_ratio: MaxPplRatio = None,
    prompt: Prompt = 512,
    context: Context = 2048,
    quant: Quant = "auto",
    kv_type: KvType = "auto",
    runtime: Runtime = "auto",
    objective: Objective = "quality",
    mode: Mode = None,
    scores: Annotated[Path | None, typer.Option(help="From `edgeprune score`; else scored here.")] = None,
    metric: Metric = "kl_search",
    effort: Effort = 1,
    calibration: Calibration = None,
    text: Texts = None,
    windows: Windows = 8,
    window: Window = 512,
    max_steps: MaxSteps = None,
    heal: Annotated[
        str, typer.Option(help="none, or how to heal what is cut: refit, distill, …, as in `edgeprune heal`.")
    ] = "none",
    exports: Annotated[
        list[str] | None,
        typer.Option(
            "--export", help="FORMAT:QUANT, repeatable. Default: gguf:Q8_0 gguf:Q4_K_M onnx:int8 onnx:int4-mixed."
        ),
    ] = None,  # noqa: E501
    baseline: Annotated[
        bool,
        typer.Option(
            help="Also the whole model, at the planned quantisation and in fewer bits at about the same bytes."
        ),
    ] = True,
    depth: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            help="Also time decoding after so many tokens, repeatable; 0: not at all. Default: at the end of --context.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Score, plan, prune, export, measure, evaluate and report in one folder, skipping what is done and verified."""
    from edgeprune import catalog, folders
    from edgeprune import model as models
    from edgeprune import report as reporting
    from edgeprune import run as running
    from edgeprune.cli import _show_report
    from edgeprune.types import Scores

    budget = budget_of(
        max_mem_bytes=max_mem, min_decode_tok_per_s=min_tps, max_ttft_s=max_ttft, max_file_bytes=max_file, max_kl=max_kl,
        max_ppl_ratio=max_ppl_ratio, prompt_tokens=prompt, context_tokens=context, quant=quant, kv_type=kv_type,
        runtime=runtime, objective=objective,
    )  # fmt: skip
    profile = device_profile(device)
    if heal != "none":
        catalog.load("edgeprune.healers", heal)
    if model is None:
        note(f"no MODEL named: using the built-in {models.BUILTIN}")
    source = models.resolve(model or models.BUILTIN)
    options = running.Options(
        metric=metric, effort=effort, calibration=tuple(calibration or ()), texts=tuple(text or ()), windows=windows,
        context=window, max_steps=max_steps, exports=tuple(exports or running.DEFAULT_EXPORTS), baseline=baseline, mode=mode,
        heal=heal, depths=None if depth is None else tuple(depth),
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
    emit(made) if json else _show_report.report(made, paths)
