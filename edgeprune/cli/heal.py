"""edgeprune heal"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli import _show_healing
from edgeprune.cli._app import command_line, verb
from edgeprune.cli._options import Calibration, Force, Json, Memory, Minutes, Settings, Tokens, Window, pairs
from edgeprune.cli._terminal import emit, note, progress
from edgeprune.files import refuse_existing
from edgeprune.work import ranks


@verb("edgeprune heal pruned -o healed")
def heal(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that `edgeprune prune` wrote; to train, also a healed one.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The healed folder to make.")],
    method: Annotated[
        str,
        typer.Option(
            help="Solved: refit, replaceme, replaceme_cosine. Trained: distill, lora (needs peft), streamline, perp, full."
        ),
    ] = "refit",
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The whole model. Default: what edgeprune.json in DIR names.")
    ] = None,
    calibration: Calibration = None,
    avoid: Annotated[
        list[Path] | None, typer.Option(help="Text that is to judge the result and so can't heal it; repeatable.")
    ] = None,
    windows: Annotated[
        int | None, typer.Option(min=1, help="Windows of text to solve by, all kinds together. Default: 192.")
    ] = None,
    tokens: Tokens = None,
    minutes: Minutes = None,
    settings: Settings = None,
    window: Window = 512,
    precision: Annotated[
        str, typer.Option(help="Type of the weights meanwhile: float32, bfloat16 or 'auto', the fastest here.")
    ] = "auto",
    max_memory: Memory = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Win back quality that a cut lost: same speed, and same size but for streamline, which puts a block back.

    Solved, without gradients: weights before the cuts are solved anew, by refit those of thinner layers too (prune --width).
    Trained: weights learn from text, or from the whole model; a run that was stopped goes on with the same command, and
    `accelerate launch` shares it among devices. Nothing is changed where that would be worse on any kind of text held aside.
    Text to train on may be .jsonl files of chat messages.
    """
    from edgeprune import catalog, folders, healed_folder
    from edgeprune import heal as healing
    from edgeprune import model as models

    refuse_existing(output, force)
    healer = catalog.load("edgeprune.healers", method)
    plan = healed_folder.pruned_plan(folder)
    path, name = healing.find_base(folder, base)
    spec = models.inspect(path)
    budget = healing.Budget(tokens, minutes) if tokens or minutes else None
    note(f"healing {plan.model} by {method}: {healed_folder.taken_out(plan)} removed; {healer.SOURCE}")
    with progress() as tick, folders.as_folder(path) as whole:
        made = healing.heal(
            folder, whole, spec, output, method=method, files=calibration or [], avoid=avoid or [], n_windows=windows,
            context_tokens=window, budget=budget, options=pairs(settings), precision=precision,
            max_bytes=max_memory, base_model=name, command=command_line(), force=force, say=note,
            progress=tick,
        )  # fmt: skip
    if ranks()[0] == 0:
        emit(made) if json else _show_healing.healed(made, output)
