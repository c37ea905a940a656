"""edgeprune run"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli._app import budget_of, command_line, device_profile, verb
from edgeprune.cli._options import (
    AfterHeal,
    Calibration,
    Context,
    Device,
    Effort,
    Generate,
    Granularity,
    Include,
    Json,
    KvType,
    Limit,
    MaxFile,
    MaxKl,
    MaxMem,
    MaxPplRatio,
    MaxSteps,
    MaxTtft,
    Memory,
    Metric,
    MinTps,
    Minutes,
    Mode,
    ModelOrBuiltin,
    Objective,
    Prompt,
    Quant,
    Runtime,
    Settings,
    Shots,
    TaskData,
    TaskNames,
    Texts,
    Through,
    Tokens,
    Window,
    Windows,
    names,
    pairs,
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
    after_heal: AfterHeal = None,
    calibration: Calibration = None,
    text: Texts = None,
    windows: Windows = 8,
    window: Window = 512,
    max_steps: MaxSteps = None,
    granularity: Granularity = "portable",
    through: Through = "auto",
    max_memory: Memory = None,
    heal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,…",
            help="How to heal what is cut, as in `edgeprune heal`: refit, distill, …; of several, such as refit,distill, each"
            " goes on from the one before. Default: none.",
        ),
    ] = None,
    heal_windows: Annotated[
        int | None, typer.Option(min=1, help="Windows of text that refit or replaceme solve by. Default: 192.")
    ] = None,
    tokens: Tokens = None,
    minutes: Minutes = None,
    settings: Settings = None,
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
    tasks: TaskNames = None,
    task_data: TaskData = None,
    include_path: Include = None,
    limit: Limit = None,
    num_fewshot: Shots = None,
    generate: Generate = False,
    json: Json = False,
) -> None:
    """Score, plan, prune, heal, export, measure, evaluate and report in one folder, skipping what is done and verified.

    --tokens, --minutes and --set are for each way to heal that trains. Tasks and text are asked of the whole model, of the
    cut and the healed one, and of the planned file, in the planned context.
    """
    from edgeprune import catalog, folders
    from edgeprune import heal as healing
    from edgeprune import model as models
    from edgeprune import report as reporting
    from edgeprune import run as running
    from edgeprune import score as scoring
    from edgeprune.behaviour.tasks import Asked
    from edgeprune.cli import _show_report
    from edgeprune.types import Scores

    budget = budget_of(
        max_mem_bytes=max_mem, min_decode_tok_per_s=min_tps, max_ttft_s=max_ttft, max_file_bytes=max_file, max_kl=max_kl,
        max_ppl_ratio=max_ppl_ratio, prompt_tokens=prompt, context_tokens=context, quant=quant, kv_type=kv_type,
        runtime=runtime, objective=objective,
    )  # fmt: skip
    profile = device_profile(device)
    healers = tuple(name for name in names(heal) if name != "none")
    for name in healers:
        catalog.load("edgeprune.healers", name)
    if model is None:
        note(f"no MODEL named: using the built-in {models.BUILTIN}")
    model = model or models.BUILTIN
    source, public = models.resolve(model), folders.public_name(model)
    options = running.Options(
        metric=scoring.of_granularity(metric, granularity), effort=effort, after_heal=after_heal, through=through,
        calibration=tuple(calibration or ()), texts=tuple(text or ()), windows=windows, context=window,
        max_steps=max_steps, max_bytes=max_memory, exports=tuple(exports or running.DEFAULT_EXPORTS), baseline=baseline,
        mode=mode, heal=healers, heal_windows=heal_windows,
        budget=healing.Budget(tokens, minutes) if tokens or minutes else None, settings=pairs(settings),
        depths=None if depth is None else tuple(depth),
        asked=Asked(names(tasks), task_data, include_path, limit, num_fewshot, generate=generate),
    )  # fmt: skip
    steps = ["score", "plan", "prune", *(f"heal by {name}" for name in healers), f"export {' '.join(options.exports)}"]
    steps += ["measure", "evaluate", *(["ask tasks and text"] if tasks or generate else []), "report"]
    note(f"run in {output}: {', '.join(steps)}")
    with progress() as tick:
        running.run(
            source, models.inspect(source, None if model == models.BUILTIN else public), profile, budget, output, options,
            base_model=public, command=command_line(), say=note, progress=tick,
            scores=folders.read_record(scores, Scores) if scores else None,
        )  # fmt: skip
    made = reporting.build(output)
    paths = reporting.write(made, output / "report.html", force=True)
    emit(made) if json else _show_report.report(made, paths)
