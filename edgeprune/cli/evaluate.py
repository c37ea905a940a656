"""edgeprune evaluate"""

from __future__ import annotations

import contextlib
import functools
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli import _show, _show_evaluation
from edgeprune.cli._app import verb
from edgeprune.cli._options import CacheType, Include, Json, Limit, TaskData, TaskNames, Texts, Window, Windows
from edgeprune.cli._terminal import emit, note, progress, say
from edgeprune.errors import UsageError
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
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Answered examples before each question.")] = None,
    apply_chat_template: Annotated[bool, typer.Option("--apply-chat-template", help="Ask as a user of a dialogue does.")] = False,
    context: Annotated[int, typer.Option(min=16, help="Longest text of a task, tokens.")] = 2048,
    generate: Annotated[bool, typer.Option("--generate", help="Also greedy text: continuations, repetition, exact answers.")] = False,
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
    from edgeprune.chat import Chat
    from edgeprune.generation import generate as generated
    from edgeprune.tasks import Asked, score, suite

    names = tuple(name for part in tasks or [] for name in part.split(",") if name)
    if not names and (task_data or include_path or limit or num_fewshot is not None):
        raise UsageError("--task-data, --include-path, --limit and --num-fewshot are for --tasks; name some")
    paths = {s: models.resolve(s) for s in subjects}
    asked = Asked(
        names, task_data, include_path, limit, num_fewshot, apply_chat_template, context, threads, kv_type, precise
    )
    with contextlib.ExitStack() as stack:
        tick = stack.enter_context(progress())
        ready = stack.enter_context(suite(asked, output, note)) if names else None
        found = evaluating.evaluate(
            paths, whole=models.resolve(against) if against else None, files=text or [], n_windows=windows,
            context_tokens=window, n_threads=threads, kv_type=kv_type, progress=tick,
        )  # fmt: skip
        for i, q in enumerate(found):
            path, more = paths[q.subject], {}
            if ready:
                more["tasks"] = score(ready, q.subject, path, q.sha256, tick)
            if generate:
                with Chat(path, n_ctx=1024, n_threads=threads, precise=precise, kv_type=kv_type) as chat:
                    told = functools.partial(tick, f"{q.subject}: generating")
                    more["generation"] = generated(chat, chat_template=apply_chat_template, tick=told)
            found[i] = q.model_copy(update=more)
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
