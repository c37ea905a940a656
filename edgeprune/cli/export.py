"""edgeprune export"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli import _show
from edgeprune.cli._app import verb
from edgeprune.cli._options import Force, Json
from edgeprune.cli._terminal import emit, note, progress
from edgeprune.files import refuse_existing


@verb("edgeprune export pruned --format gguf --quant Q4_K_M -o pruned-Q4_K_M.gguf")
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A .gguf to GGUF takes no torch: any architecture.")],
    format: Annotated[str, typer.Option(help="gguf or onnx.")],
    quant: Annotated[
        str, typer.Option(help="gguf: F32 F16 BF16 Q8_0 Q6_K Q5_K_M Q4_K_M Q4_0 …; onnx: fp32 fp16 int8 int4 ….")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A .gguf file, or a folder: for GGUF with card and Modelfile.")
    ],
    imatrix: Annotated[Path | None, typer.Option(help="Importance matrix from llama-imatrix, for GGUF.")] = None,
    tokenizer_pre: Annotated[str | None, typer.Option(help="llama.cpp's name of an unknown pre-tokenizer.")] = None,
    verify: Annotated[bool, typer.Option(help="Load the result and compare its logits with the source's.")] = True,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a GGUF file or folder, or an ONNX folder, then load it and compare its logits with the source's."""
    from edgeprune import export as exporting
    from edgeprune import model as models
    from exporters import Options

    refuse_existing(output, force)
    source = models.resolve(model)
    for line in exporting.notes(source, format, quant):
        note(line)
    with progress() as tick:
        artifact = exporting.export(
            source, format, quant, output, options=Options(tokenizer_pre=tokenizer_pre, imatrix=imatrix), force=force,
            verify=verify, progress=lambda what, fraction: tick(what, round(fraction * 100), 100),
        )  # fmt: skip
    emit(artifact) if json else _show.artifact(artifact)
