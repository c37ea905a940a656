"""edgeprune prune"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli import _show
from edgeprune.cli._app import command_line, verb
from edgeprune.cli._options import Force, Json
from edgeprune.cli._terminal import emit, note, progress
from edgeprune.files import refuse_existing


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
