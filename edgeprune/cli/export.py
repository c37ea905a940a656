"""edgeprune export"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli import _show
from edgeprune.cli._app import verb
from edgeprune.cli._options import Force, Json
from edgeprune.cli._terminal import emit, progress
from edgeprune.files import refuse_existing


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
