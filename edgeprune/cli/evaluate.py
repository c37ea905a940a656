"""edgeprune evaluate"""

from __future__ import annotations

from typing import Annotated

import typer

from edgeprune.cli import _show
from edgeprune.cli._app import verb
from edgeprune.cli._options import CacheType, Json, Texts, Window, Windows
from edgeprune.cli._terminal import emit, progress


@verb("edgeprune evaluate pruned-Q4_K_M.gguf --against ./SmolLM2-135M-Instruct")
def evaluate(
    subjects: Annotated[list[str], typer.Argument(metavar="MODEL_OR_ARTIFACT…")],
    against: Annotated[str | None, typer.Option(metavar="MODEL", help="The whole model, for KL.")] = None,
    text: Texts = None,
    windows: Windows = 16,
    window: Window = 512,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1)] = None,
    kv_type: CacheType = None,
    json: Json = False,
) -> None:
    """Perplexity, and KL divergence from the whole model, on the same tokens for every runtime."""
    from edgeprune import evaluate as evaluating
    from edgeprune import model as models

    paths = {s: models.resolve(s) for s in subjects}
    with progress() as tick:
        found = evaluating.evaluate(
            paths, whole=models.resolve(against) if against else None, files=text or [], n_windows=windows,
            context_tokens=window, n_threads=threads, kv_type=kv_type, progress=tick,
        )  # fmt: skip
    emit(found) if json else _show.qualities(found)
