"""edgeprune recipe"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli._app import verb
from edgeprune.cli._options import Force, Json
from edgeprune.cli._terminal import emit, note
from edgeprune.files import write_text


@verb("edgeprune recipe plan.json --format mergekit --model HuggingFaceTB/SmolLM2-135M-Instruct -o mergekit.yaml")
def recipe(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="From `edgeprune plan -o`.")],
    format: Annotated[str, typer.Option(help="mergekit, or prune-layers for llama-quantize.")] = "mergekit",
    model: Annotated[str | None, typer.Option(help="Hub id or path for mergekit to load. Default: as planned.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A file instead of stdout.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a plan as other tools take it: a mergekit YAML, or the list for llama-quantize --prune-layers."""
    from edgeprune import folders
    from edgeprune import recipe as recipes
    from edgeprune.types import Plan

    text = recipes.recipe(folders.read_record(plan, Plan), format, model)
    if output is not None:
        write_text(output, text, force)
        note(f"wrote {output}")
    if json:
        emit({"format": format, "text": text, "output": None if output is None else str(output)})
    elif output is None:
        sys.stdout.write(text)
