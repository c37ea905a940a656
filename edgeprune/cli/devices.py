"""edgeprune devices"""

from __future__ import annotations

from typing import Annotated

import typer

from edgeprune.cli import _show
from edgeprune.cli._app import verb
from edgeprune.cli._options import Json
from edgeprune.cli._terminal import emit


@verb("edgeprune devices jetson-orin")
def devices(
    name: Annotated[str | None, typer.Argument(help="A profile's name or alias, or 'host'.")] = None, json: Json = False
) -> None:
    """List device profiles, or show one with the source of every figure."""
    from edgeprune import devices as library

    if name:
        profile = library.load(name)
        emit(profile) if json else _show.device(profile, name)
    else:
        profiles = [library.load(n) for n in library.names()]
        emit(profiles) if json else _show.device_table(profiles)
