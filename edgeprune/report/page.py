"""A page as one self-contained HTML file: no scripts, nothing loaded, plots inline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeprune.report import strip
from edgeprune.report.doc import Page
from edgeprune.report.text import MARKS, clean
from edgeprune.types import Blocks

TEMPLATES = Path(__file__).parent / "templates"
KINDS = {
    "measured": "read from a process or a file",
    "predicted": "computed by edgeprune's cost model",
    "prior": "typical of other models or machines, not fitted to this one",
}


def to_html(page: Page) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    def strips(blocks: Blocks, n_blocks: int) -> list[Markup]:
        """For wide pages and for phones."""
        return [
            Markup(strip.strip(blocks, n_blocks)),
            Markup(strip.strip(blocks, n_blocks, per_line=14, narrow=True)),
        ]

    env = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=finalize,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return env.get_template("report.html.j2").render(
        page=page,
        plots={name: Markup(svg) for name, svg in page.plots().items()},
        strips=strips,
        swatches={name: Markup(svg) for name, svg in strip.swatches().items()},
        marks=MARKS,
        kinds=KINDS,
    )
