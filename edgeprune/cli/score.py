"""edgeprune score"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli import _show
from edgeprune.cli._app import verb
from edgeprune.cli._options import (
    Calibration,
    Effort,
    Force,
    Json,
    MaxSteps,
    Metric,
    Precision,
    Protect,
    Window,
    Windows,
)
from edgeprune.cli._terminal import emit, note, progress
from edgeprune.files import refuse_existing


@verb("edgeprune score ./SmolLM2-135M-Instruct -o scores.json")
def score(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    output: Annotated[Path, typer.Option("-o", "--output")],
    metric: Metric = "greedy_kl",
    calibration: Calibration = None,
    windows: Windows = 16,
    window: Window = 512,
    max_steps: MaxSteps = None,
    protect: Protect = "0,0",
    effort: Effort = 1,
    precision: Precision = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Choose what to remove, step by step, and measure the damage of every step. Slow, once per model."""
    from edgeprune import files, folders
    from edgeprune import model as models
    from edgeprune import score as scoring

    scoring.load_metric(metric, protect)
    refuse_existing(output, force)
    path = models.resolve(model)
    spec = models.inspect(path)
    method = scoring.Method(metric, max_steps or scoring.default_steps(spec.n_blocks), protect, effort)
    note(f"scoring {spec.name}: {metric}, {method.max_steps} steps, up to {windows} windows of {window} tokens")
    with folders.as_folder(path) as folder, progress() as tick:
        scores = scoring.score_folder(
            folder, spec, method, files=calibration or [], n_windows=windows, context_tokens=window,
            precision=precision, log=output.with_name(f".{output.name}.progress"), progress=tick,
        )  # fmt: skip
    files.write_text(output, scores.to_json(), force)
    emit(scores) if json else _show.scores(scores, output)
