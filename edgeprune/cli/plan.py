"""edgeprune plan"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeprune.cli import _show
from edgeprune.cli._app import budget_of, device_profile, verb
from edgeprune.cli._options import (
    Context,
    Device,
    Force,
    Json,
    MaxMem,
    MaxTtft,
    MinTps,
    Mode,
    ModelOrBuiltin,
    Prompt,
    Quant,
    Runtime,
)
from edgeprune.cli._terminal import emit, note
from edgeprune.files import refuse_existing


@verb("edgeprune plan --device jetson-orin --max-mem 8GB")
def plan(
    device: Device,
    model: ModelOrBuiltin = None,
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
    budget = budget_of(max_mem, min_tps, max_ttft, prompt, context, quant, runtime)
    spec, known = _spec_and_scores(model, scores)
    profile = device_profile(device)
    made = planner.make_plan(spec, known, profile, budget, mode=mode)
    if output:
        files.write_text(output, made.to_json(), force)
        note(f"wrote {output}")
    emit(made) if json else _show.plan(made, profile, spec)


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
