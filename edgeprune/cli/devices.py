"""edgeprune devices"""

from __future__ import annotations

from typing import Annotated

import typer

from edgeprune.cli import _show_device
from edgeprune.cli._app import verb
from edgeprune.cli._options import Json
from edgeprune.cli._terminal import emit
from edgeprune.errors import InputRejected


@verb("edgeprune devices jetson-orin")
def devices(
    name: Annotated[
        str | None, typer.Argument(help="A profile's name or alias, a .toml of your own, or 'host'.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a profile.")] = False,
    json: Json = False,
) -> None:
    """List device profiles, or show one: what is known, from where, and how sure it is."""
    from edgeprune import devices as library

    if schema:
        from edgeprune._profile_schema import schema as document

        emit(document())
    elif name:
        profile = library.load(name)
        emit(profile) if json else _show_device.device(profile, name, library.origin(profile.id))
    else:
        profiles, faults = [], {}
        for device_id in library.names():
            try:
                profiles.append(library.load(device_id))
            except InputRejected as e:
                faults[device_id] = str(e)
        origins = {p.id: library.origin(p.id) for p in profiles}
        emit(profiles) if json else _show_device.device_table(profiles, origins, faults)
