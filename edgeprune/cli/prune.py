"""edgeprune prune"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli import _show
from edgeprune.cli._app import command_line, verb
from edgeprune.cli._options import Force, Json
from edgeprune.cli._terminal import emit, note, progress
from edgeprune.errors import UsageError
from edgeprune.files import refuse_existing


@verb("edgeprune prune ./SmolLM2-135M-Instruct --plan plan.json -o pruned")
def prune(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    plan: Annotated[Path, typer.Option(help="From `edgeprune plan -o`.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A transformers folder to make; of a .gguf also a .gguf (no torch).")
    ],
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the model a plan leaves, as a transformers folder or, from a .gguf, as a .gguf. Kept tensors stay bit-identical."""
    from edgeprune import folders
    from edgeprune import model as models
    from edgeprune import prune as pruning
    from edgeprune.gguf_prune import prune_gguf
    from edgeprune.types import Plan

    refuse_existing(output, force)
    made = folders.read_record(plan, Plan)
    path = models.resolve(model)
    if output.suffix == ".gguf" and path.is_dir():
        raise UsageError(
            f"{model} is a transformers folder: prune it to a folder, then `edgeprune export` writes the .gguf"
        )
    spec = models.inspect(path)
    pruning.check_plan(made, spec)
    note(f"pruning {spec.name}: {made.removed or 'nothing'} removed, {len(made.blocks)} of {spec.n_blocks} blocks stay")
    name = folders.public_name(model)
    with progress() as tick:

        def show(done: int, total: int) -> None:
            tick("writing", done, total)

        if output.suffix == ".gguf":
            prune_gguf(path, spec, made, output, base_model=name, force=force, progress=show)
        else:
            with folders.as_folder(path) as folder:
                pruning.prune(
                    folder, spec, made, output, base_model=name, command=command_line(), force=force, progress=show
                )
    result = models.inspect(output)
    emit(result) if json else _show.pruned(output, spec, result, made)
