"""edgeprune score"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli import _show
from edgeprune.cli._app import verb
from edgeprune.cli._options import (
    AfterHeal,
    Calibration,
    Effort,
    Force,
    Granularity,
    Json,
    MaxSteps,
    Memory,
    Metric,
    Precision,
    Protect,
    Through,
    Window,
    Windows,
)
from edgeprune.cli._terminal import emit, note, progress
from edgeprune.files import refuse_existing
from edgeprune.work import ranks


@verb("edgeprune score ./SmolLM2-135M-Instruct -o scores.json")
def score(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    output: Annotated[Path, typer.Option("-o", "--output")],
    metric: Metric = "kl_search",
    calibration: Calibration = None,
    windows: Windows = 16,
    window: Window = 512,
    max_steps: MaxSteps = None,
    granularity: Granularity = "portable",
    protect: Protect = "0,0",
    effort: Effort = 1,
    after_heal: AfterHeal = None,
    precision: Precision = "auto",
    max_memory: Memory = None,
    through: Through = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Choose what to remove, step by step, and measure the damage of every step. Slow, once per model.

    The same command goes on where it was stopped. `torchrun -m edgeprune.cli score` shares the work among processes.
    """
    from edgeprune import files, folders, score_gguf
    from edgeprune import model as models
    from edgeprune import score as scoring

    metric = scoring.of_granularity(metric, granularity)
    refuse_existing(output, force)
    path = models.resolve(model)
    spec = models.inspect(path)
    method = scoring.Method(metric, max_steps or scoring.default_steps(spec.n_blocks), protect, effort, after_heal)
    scoring.check_method(method)
    for_torch = max_memory is not None or precision != "auto"
    in_llamacpp = scoring.in_llamacpp(spec, path, method, through, for_torch)
    note(
        f"scoring {spec.name} in {'llama.cpp' if in_llamacpp else 'torch'}: {metric}, {method.max_steps} steps, up to"
        f" {windows} windows of {window} tokens; when stopped, the same command goes on from there"
    )
    log = output.with_name(f".{output.name}.progress")
    with progress() as tick, contextlib.ExitStack() as stack:
        shared = {"files": calibration or [], "n_windows": windows, "context_tokens": window, "log": log}
        shared |= {"progress": tick, "say": note}
        if in_llamacpp:
            scores = score_gguf.score_gguf(path, spec, method, **shared)
        else:
            folder = stack.enter_context(folders.as_folder(path))
            scores = scoring.score_folder(folder, spec, method, precision=precision, max_bytes=max_memory, **shared)
    if ranks()[0]:
        return  # one process of several writes
    files.write_text(output, scores.to_json(), force)
    log.unlink(missing_ok=True)
    emit(scores) if json else _show.scores(scores, output)
