"""edgeprune plan"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeprune.cli import _show_plan
from edgeprune.cli._app import budget_of, device_profile, verb
from edgeprune.cli._models import BUILTIN, in_catalogue
from edgeprune.cli._options import (
    Context,
    Device,
    Force,
    Json,
    KvType,
    MaxFile,
    MaxKl,
    MaxMem,
    MaxPplRatio,
    MaxTtft,
    MinTps,
    Mode,
    ModelOrBuiltin,
    Objective,
    Prompt,
    Quant,
    Runtime,
)
from edgeprune.cli._terminal import emit, note
from edgeprune.errors import UsageError
from edgeprune.files import refuse_existing

if TYPE_CHECKING:
    from edgeprune.types import Blocks, ModelSpec, Scores


@verb("edgeprune plan llama-3.1-8b --device jetson-orin --max-mem 8GB --min-tps 15")
def plan(
    device: Device,
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
    scores: Annotated[Path | None, typer.Option(help="From `edgeprune score`.")] = None,
    remove: Annotated[
        str | None,
        typer.Option(metavar="LAYERS", help='Exactly these, as plans name them: "13-15, 17" or "16; F14 A15".'),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the plan here.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Choose what to remove and how to quantise for a device and a budget. Milliseconds; reads no weights.

    With --remove, which needs no scores, what to remove is said and the rest chosen.

    For a model of the shipped catalogue (llama-3.1-8b, Qwen/Qwen3-4B, …) and no scores: what would have to go at each
    quantisation, and what that is expected to cost, without a download.
    """
    from edgeprune import files, known_models
    from edgeprune import plan as planner
    from edgeprune.what_if import what_if

    if output:
        refuse_existing(output, force)
    budget = budget_of(
        max_mem_bytes=max_mem, min_decode_tok_per_s=min_tps, max_ttft_s=max_ttft, max_file_bytes=max_file, max_kl=max_kl,
        max_ppl_ratio=max_ppl_ratio, prompt_tokens=prompt, context_tokens=context, quant=quant, kv_type=kv_type,
        runtime=runtime, objective=objective,
    )  # fmt: skip
    shape = None if scores else in_catalogue(model)
    if shape and output:
        raise UsageError(
            f"a plan is made for exact weights, and of {shape} only the shape is known; download it, score it, and "
            f"plan with --scores, or leave out --output"
        )
    spec, known = (known_models.load(shape), None) if shape else _spec_and_scores(model, scores)
    profile = device_profile(device)
    if shape and not remove:
        found = what_if(spec, profile, budget, mode, known_models.source(shape))
        emit(found) if json else _show_plan.what_if(found, profile)
        return
    made = planner.make_plan(spec, known, profile, budget, mode=mode, blocks=_without(remove, spec))
    if output:
        files.write_text(output, made.to_json(), force)
        note(f"wrote {output}")
    emit(made) if json else _show_plan.plan(made, profile)


def _without(remove: str | None, spec: ModelSpec) -> Blocks | None:
    from edgeprune.blocks import without

    try:
        return without(remove, spec.n_blocks) if remove else None
    except ValueError as e:
        raise UsageError(f"--remove {remove}: {e}") from None


def _spec_and_scores(model: str | None, scores: Path | None) -> tuple[ModelSpec, Scores | None]:
    from edgeprune import folders
    from edgeprune import model as models
    from edgeprune.types import ModelSpec, Scores

    known = folders.read_record(scores, Scores) if scores else None
    if model is None or model == BUILTIN:
        if model is None:
            note(
                f"no MODEL named: planning the built-in {BUILTIN}. For yours: edgeprune plan MODEL --scores scores.json …"
            )
        spec = ModelSpec.from_json(models.builtin_text("spec"))
        return spec, known or Scores.from_json(models.builtin_text("scores"))
    return models.inspect(models.resolve(model)), known
