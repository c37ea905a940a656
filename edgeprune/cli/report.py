"""edgeprune report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli import _show_report
from edgeprune.cli._app import verb
from edgeprune.cli._options import Force, Json
from edgeprune.cli._terminal import emit


@verb("edgeprune report demo -o report.html")
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder `edgeprune run` made.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: DIR/report.html.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the report of a run: one HTML file without scripts, and the same facts as .md and .json."""
    from edgeprune import report as reporting

    made = reporting.build(folder)
    paths = reporting.write(made, output or folder / "report.html", force)
    emit(made) if json else _show_report.report(made, paths)
