"""edgeprune prune"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli import _show
from edgeprune.cli._app import command_line, verb
from edgeprune.cli._options import Calibration, Force, Json, Memory, Window, Windows
from edgeprune.cli._terminal import emit, note, progress
from edgeprune.errors import UsageError
from edgeprune.files import refuse_existing


@verb("edgeprune prune ./SmolLM2-135M-Instruct --plan plan.json -o pruned")
def prune(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A transformers folder to make; of a .gguf also a .gguf (no torch).")
    ],
    plan: Annotated[Path | None, typer.Option(help="From `edgeprune plan -o`: which layers stay.")] = None,
    width: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD", help="Instead of a plan, make every layer thinner: flap, taylor, wanda_sp or slicegpt."
        ),
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="With --width: share of the blocks' parameters to remove, e.g. 0.2.")
    ] = None,
    round_to: Annotated[
        int,
        typer.Option(
            "--round", min=1, help="With --width: widths are multiples of 1, of 32 (Q4_0, ONNX) or of 256 (K-quants)."
        ),
    ] = 32,
    uniform: Annotated[
        bool,
        typer.Option(
            "--uniform/--per-layer",
            help="With --width: one width for all layers, or each its own as the method is published.",
        ),
    ] = True,
    calibration: Calibration = None,
    windows: Windows = 32,
    window: Window = 512,
    max_memory: Memory = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the model a plan leaves, as a transformers folder or, from a .gguf, as a .gguf. Kept tensors stay bit-identical.

    With --width the layers stay, and heads and channels go by whole groups: smaller matrices, not masks.
    """
    from edgeprune import model as models

    refuse_existing(output, force)
    if (plan is None) == (width is None):
        raise UsageError("say either --plan (which layers stay) or --width with --ratio (how thin they become)")
    if width is not None and ratio is None:
        raise UsageError(
            f"--width {width} needs --ratio, the share of the blocks' parameters to remove, e.g. --ratio 0.2"
        )
    path = models.resolve(model)
    if output.suffix == ".gguf" and (width is not None or path.is_dir()):
        what = f"{model} is a transformers folder" if path.is_dir() else "--width writes transformers folders"
        raise UsageError(f"{what}: prune it to a folder, then `edgeprune export` writes the .gguf")
    if width is None:
        _by_plan(model, path, plan, output, force, json)
        return
    from edgeprune import folders, width_plan
    from edgeprune import width as widths

    spec = models.inspect(path)
    width_plan.check(width, ratio, round_to, spec)
    note(
        f"thinning {spec.name} by {width}: {ratio:.1%} of its blocks' parameters, {windows} windows of {window} tokens"
    )
    with progress() as tick, folders.as_folder(path) as folder:
        rated = widths.rate(
            folder, spec, width, files=calibration or [], n_windows=windows, context_tokens=window, max_bytes=max_memory,
            progress=tick,
        )  # fmt: skip
        made = widths.plan(spec, rated, ratio, round_to, uniform)
        widths.prune(
            folder, spec, rated, made, output, base_model=folders.public_name(model), command=command_line(), force=force,
            progress=tick,
        )  # fmt: skip
    result = models.inspect(output)
    emit(result) if json else _show.thinner(output, spec, result)


def _by_plan(model: str, path: Path, plan: Path, output: Path, force: bool, json: bool) -> None:
    from edgeprune import folders
    from edgeprune import model as models
    from edgeprune import prune as pruning
    from edgeprune.gguf_prune import prune_gguf
    from edgeprune.types import Plan

    made = folders.read_record(plan, Plan)
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
