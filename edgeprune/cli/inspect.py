"""edgeprune inspect"""

from __future__ import annotations

from typing import Annotated

import typer

from edgeprune.cli import _show
from edgeprune.cli._app import verb
from edgeprune.cli._options import Json
from edgeprune.cli._terminal import emit


@verb("edgeprune inspect ./SmolLM2-135M-Instruct")
def inspect(model: Annotated[str, typer.Argument(metavar="MODEL")], json: Json = False) -> None:
    """Show a model's shape, sizes and fingerprint, from its headers alone."""
    from edgeprune import model as models

    spec = models.inspect(models.resolve(model))
    emit(spec) if json else _show.model(spec)
