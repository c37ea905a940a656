"""edgeprune report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli._app import verb
from edgeprune.cli._options import Force, Json
from edgeprune.cli._terminal import emit
from edgeprune.errors import UsageError


@verb("edgeprune report demo -o report.html")
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="Folders `edgeprune run` made, or one of `edgeprune study`.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A .html file or a folder. Default: DIR/report.html.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the report of a run, or of several side by side: one HTML file without scripts, the same as .md, .json, .csv."""
    from edgeprune import report as single
    from edgeprune.cli import _show_report
    from edgeprune.report import beside
    from edgeprune.study import kept, project
    from edgeprune.study import run as running

    if len(folders) == 1 and kept.is_study(folders[0]):
        if output is not None:
            raise UsageError(f"{folders[0]} is a study's folder, whose report stands in it; leave -o out")
        drawn = running.draw(folders[0], project.chosen([]))
        emit(drawn) if json else _show_report.study(drawn, folders[0])
        return
    if output is None and len(folders) > 1:
        raise UsageError(f"{len(folders)} runs were named; say with -o where their report is to go")
    if len(folders) > 1:
        many = beside.build(folders)
        paths = beside.write(many, _file(output), force)
        emit(many) if json else _show_report.beside(many, paths)
        return
    made = single.build(folders[0])
    paths = single.write(made, _file(output or folders[0]), force)
    emit(made) if json else _show_report.report(made, paths)


def _file(output: Path) -> Path:
    """A folder gets its report.html; what is neither is refused when it is written."""
    return output / "report.html" if output.is_dir() or not output.suffix else output
