"""edgeprune fit"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeprune.cli import _show_plan
from edgeprune.cli._app import budget_of, device_profile, verb
from edgeprune.cli._models import shape_of
from edgeprune.cli._options import (
    Context,
    Force,
    Json,
    KvType,
    MaxFile,
    MaxMem,
    MaxTtft,
    MinTps,
    ModelOrBuiltin,
    Prompt,
    Quant,
    Runtime,
)
from edgeprune.cli._terminal import emit, note
from edgeprune.errors import UsageError
from edgeprune.files import refuse_existing


@verb("edgeprune fit llama-3.1-8b --device rpi5-8gb --device jetson-orin -o fit.svg")
def fit(
    model: ModelOrBuiltin = None,
    device: Annotated[
        list[str] | None, typer.Option("--device", "-d", help="Repeatable. Default: every shipped device.")
    ] = None,
    max_mem: MaxMem = None,
    min_tps: MinTps = None,
    max_ttft: MaxTtft = None,
    max_file: MaxFile = None,
    prompt: Prompt = 512,
    context: Context = 2048,
    quant: Quant = "auto",
    kv_type: KvType = "auto",
    runtime: Runtime = "auto",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Draw it here: a heat map as .svg, or the figures as .json.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """How many blocks of a model must go, on every device at every quantisation. Reads no weights."""
    from edgeprune import _fit_svg, files
    from edgeprune.fit_table import fit_table

    if output:
        if output.suffix not in (".svg", ".json"):
            raise UsageError(f"--output {output}: a heat map is .svg, figures are .json")
        refuse_existing(output, force)
    budget = budget_of(
        max_mem_bytes=max_mem, min_decode_tok_per_s=min_tps, max_ttft_s=max_ttft, max_file_bytes=max_file,
        prompt_tokens=prompt, context_tokens=context, quant=quant, kv_type=kv_type, runtime=runtime,
    )  # fmt: skip
    spec, source = shape_of(model)
    made = fit_table(spec, _profiles(device), budget, source)
    if output:
        text = _fit_svg.draw(made) if output.suffix == ".svg" else made.to_json()
        files.write_text(output, text, force)
        note(f"wrote {output}")
    emit(made) if json else _show_plan.fit(made)


def _profiles(asked: list[str] | None) -> list[Any]:
    from edgeprune import devices

    if asked:
        return list({p.id: p for p in map(device_profile, asked)}.values())
    return devices.load_all()
