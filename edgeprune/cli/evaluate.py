"""edgeprune evaluate"""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli import _show, _show_evaluation
from edgeprune.cli._app import verb
from edgeprune.cli._options import (
    CacheType,
    Generate,
    Include,
    Json,
    Limit,
    Shots,
    TaskData,
    TaskNames,
    Texts,
    Window,
    Windows,
    names,
)
from edgeprune.cli._terminal import emit, note, progress, say
from edgeprune.files import write_text

Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="For lm-eval's own table and JSON, and ours; the same command goes on there.")]  # fmt: skip  # noqa: E501
Precise = Annotated[bool, typer.Option("--precise", help="llama.cpp's arithmetic for tasks and generation as close to torch's as it gets, slower than its users'.")]  # fmt: skip  # noqa: E501


@verb("edgeprune evaluate pruned-Q4_K_M.gguf --against ./SmolLM2-135M-Instruct --tasks arc_easy --limit 200 --generate")
def evaluate(
    subjects: Annotated[list[str], typer.Argument(metavar="MODEL_OR_ARTIFACT…")],
    against: Annotated[str | None, typer.Option(metavar="MODEL", help="The whole model, for KL.")] = None,
    text: Texts = None,
    windows: Windows = 16,
    window: Window = 512,
    tasks: TaskNames = None,
    task_data: TaskData = None,
    include_path: Include = None,
    limit: Limit = None,
    num_fewshot: Shots = None,
    apply_chat_template: Annotated[bool, typer.Option("--apply-chat-template", help="Ask as a user of a dialogue does.")] = False,
    context: Annotated[int, typer.Option(min=16, help="Longest text of a task, tokens.")] = 2048,
    generate: Generate = False,
    output: Output = None,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1)] = None,
    kv_type: CacheType = None,
    precise: Precise = False,
    json: Json = False,
) -> None:  # fmt: skip
    """Perplexity, and KL divergence from the whole model, on the same tokens for every runtime; lm-eval's tasks and generated
    text in the artifact's own runtime."""
    from edgeprune import evaluate as evaluating
    from edgeprune import model as models
    from edgeprune.behaviour import behaviour
    from edgeprune.behaviour.tasks import Asked, suite

    paths = {s: models.resolve(s) for s in subjects}
    asked = Asked(
        names(tasks), task_data, include_path, limit, num_fewshot, apply_chat_template, context, threads, kv_type, precise,
        generate,
    )  # fmt: skip
    with progress() as tick, suite(asked, output, note) as ready:
        found = evaluating.evaluate(
            paths, whole=models.resolve(against) if against else None, files=text or [], n_windows=windows,
            context_tokens=window, n_threads=threads, kv_type=kv_type, progress=tick,
        )  # fmt: skip
        for i, q in enumerate(found):
            found[i] = q.model_copy(update=dict(behaviour(ready, q.subject, paths[q.subject], q.sha256, tick)))
    if output:
        write_text(
            output / "quality.json", dumps([q.model_dump(mode="json") for q in found], indent=1) + "\n", force=True
        )
    if json:
        emit(found)
        return
    _show.qualities(found)
    _show_evaluation.beyond(found)
    if output:
        say(f"wrote {output}")
