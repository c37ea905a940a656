"""What a report page is made of. Sections are built once and rendered twice, as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from edgeprune.report.text import MARKS, Cell, Num, fence, markdown
from edgeprune.types import Blocks


@dataclass(frozen=True)
class Text:
    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """The first column names the row. `strong` are indices of rows to stress."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    title: str = ""
    strong: tuple[int, ...] = ()
    kind: str = "table"


@dataclass(frozen=True)
class Figures:
    """(name of a plot, title, what to see) side by side where the page is wide."""

    items: tuple[tuple[str, str, str], ...]
    kind: str = "figures"


@dataclass(frozen=True)
class Items:
    items: tuple[str, ...]
    title: str = ""
    kind: str = "items"


@dataclass(frozen=True)
class Facts:
    """Name and value, such as "RAM" and "8 GB"."""

    pairs: tuple[tuple[str, str], ...]
    title: str = ""
    kind: str = "facts"


@dataclass(frozen=True)
class Code:
    text: str
    kind: str = "code"


@dataclass(frozen=True)
class Strip:
    """Which halves of which layers stay."""

    blocks: Blocks
    n_blocks: int
    title: str = ""
    legend: bool = True
    kind: str = "strip"


@dataclass(frozen=True)
class SignOff:
    columns: tuple[str, ...] = ("Role", "Name", "Date", "Decision: ship / heal first / reject")
    rows: tuple[str, ...] = ("Model owner", "Deployment reviewer", "Approver")
    kind: str = "signoff"


Part = Text | Table | Figures | Items | Facts | Code | Strip | SignOff


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    parts: tuple[Part, ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class Page:
    eyebrow: str  # what kind of page it is
    title: str
    headline: str
    tone: str  # of the headline: good, warn or bad
    lead: str
    sections: tuple[Section, ...]
    plots: Callable[[], dict[str, str]]  # SVG by name, drawn when asked for: Markdown has none
    footer: str = "Made by edgeprune from the records of the run. The same facts are in the .md, .json and .csv files of this name."


# --- Markdown -----------------------------------------------------------------------------------


def to_markdown(page: Page, pictures: Collection[str] = ()) -> str:
    """`pictures`: names of plots that lie beside the text as NAME.svg; else they are in the HTML only, their numbers in
    the tables."""
    out = [f"# {markdown(page.title)}", f"**{markdown(page.headline)}**", markdown(page.lead)]
    marks = ", ".join(f"{mark} {kind}" for kind, mark in MARKS.items() if mark)
    out.append(f"Marks: {marks}.")
    for n, section in enumerate(page.sections, 1):
        out.append(f"## {n}. {markdown(section.title)}")
        out += [text for part in section.parts if (text := _part(part, pictures))]
    return "\n\n".join(out) + "\n"


def _part(part: Part, pictures: Collection[str]) -> str:
    if isinstance(part, Text):
        return markdown(part.text)
    if isinstance(part, Table):
        rows = [
            [f"**{_cell(c)}**" if i in part.strong and j == 0 else _cell(c) for j, c in enumerate(r)]
            for i, r in enumerate(part.rows)
        ]
        title = f"**{markdown(part.title)}**" if part.title else ""
        table = _table([markdown(c) for c in part.columns], rows)
        return "\n\n".join(text for text in (title, table, markdown(part.caption)) if text)
    if isinstance(part, Items):
        head = [f"**{markdown(part.title)}**\n"] if part.title else []
        return "\n".join([*head, *(f"- {markdown(item)}" for item in part.items)])
    if isinstance(part, Facts):
        head = f"**{markdown(part.title)}**\n\n" if part.title else ""
        return head + _table(["what", "value"], [[markdown(k), markdown(v)] for k, v in part.pairs])
    if isinstance(part, Code):
        return fence(part.text)
    if isinstance(part, SignOff):
        return _table(
            [markdown(c) for c in part.columns], [[markdown(r), *[" "] * (len(part.columns) - 1)] for r in part.rows]
        )
    if isinstance(part, Figures):
        shown = [(f"{markdown(title)} {markdown(see)}", name) for name, title, see in part.items if name in pictures]
        return "\n\n".join(f"![{text}]({name}.svg)\n\n{text}" for text, name in shown)
    return ""


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell) -> str:
    if not isinstance(cell, Num):
        return markdown(cell)
    mark = f" {MARKS[cell.kind]}" if cell.kind else ""
    return markdown(cell.text) + mark + (f" ({markdown(cell.sub)})" if cell.sub else "")
