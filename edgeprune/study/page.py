"""The page, from study.json alone: as Markdown with figures beside it, and as one HTML file."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from edgeprune.files import write_text
from edgeprune.study import words
from edgeprune.study.figures import all_figures
from edgeprune.study.record import Study


class Heading(NamedTuple):
    text: str
    level: int = 2


class Para(NamedTuple):
    text: str
    strong: bool = False


class Table(NamedTuple):
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


class Figure(NamedTuple):
    file: str
    caption: str


class Code(NamedTuple):
    text: str


Part = Heading | Para | Table | Figure | Code

CAPTIONS = {
    "speed.svg": "Each row is a thinner model beside the one with fewer blocks, of the same size, run in turns. Right of 1 "
    "depth is faster. Bars: 95 % of repetitions' mean; | : what the cost model foretold without having seen either model.",
    "time.svg": "What a token's time goes to, by the cost model fitted to these rows; the black stroke is what was measured.",
    "predicted.svg": "Every model foretold by a fit that saw none of its rows. On the line, the terms explain it.",
    "context.svg": "Foretold, not measured. Longer contexts move time from weights to attention: fewer blocks save there in "
    "proportion, thinner ones only where heads went too.",
    "model.svg": "Foretold, not measured. The larger the model, the less the fixed cost of a block weighs beside its bytes.",
    "bandwidth.svg": "Foretold from this machine's terms: as if memory alone were faster and everything else as it is.",
    "quality.svg": "Damage against speed, measured: higher and further left is better.",
}


def write(s: Study, out: Path) -> None:
    """report.md with its figures, and report.html, which holds them."""
    figures = all_figures(s)
    for name, svg in figures.items():
        write_text(out / name, svg, force=True)
    parts = list(content(s, figures))
    write_text(out / "report.md", markdown(parts), force=True)
    write_text(out / "report.html", page(parts, figures), force=True)


def content(s: Study, figures: Iterable[str]) -> Iterable[Part]:
    yield Heading(f"Depth against width: {s.model}", 1)
    if s.speed_only:
        yield Para(
            "Speed only: random weights of this model's true shape. Nothing here says what removal does to its answers.",
            True,
        )
    yield Para(words.question(s))
    yield Heading("The verdict")
    for line in words.verdicts(s):
        yield Para(line)
    yield Table(words.VERDICT_COLUMNS, tuple(words.verdict_rows(s)), words.VERDICT_CAPTION)
    lost = tuple(words.lost(s))
    yield Heading("Where depth loses", 3)
    yield Para("Nowhere among the pairs measured here." if not lost else "Measured here, width is faster:")
    for line in lost:
        yield Para(line)
    yield Heading("What was measured")
    yield from _figure("speed.svg", figures)
    yield Table(words.PAIR_COLUMNS, tuple(words.pair_rows(s)), words.PAIR_CAPTION)
    yield Table(
        words.model_columns(s),
        tuple(words.model_rows(s)),
        "Files as they were measured; memory is what one adds to a process.",
    )
    if s.qualities:
        yield Heading("What it does to the model")
        yield from _figure("quality.svg", figures)
        yield Table(words.QUALITY_COLUMNS, tuple(words.quality_rows(s)), words.QUALITY_CAPTION)
        yield Heading("At equal quality", 3)
        yield Table(words.EQUAL_COLUMNS, tuple(words.equal_rows(s)), words.EQUAL_CAPTION)
        if not s.equal_quality:
            yield Para(
                "No thinner model has a damage between those of two depth models, so nothing can be said at equal quality."
            )
    yield Heading("Why")
    for line in words.reasons(s):
        yield Para(line)
    yield from _figure("time.svg", figures)
    yield Table(words.WHY_COLUMNS, tuple(words.why_rows(s)), words.WHY_CAPTION)
    yield Heading("Does the cost model foresee it?", 3)
    yield Para(words.foresight(s))
    yield from _figure("predicted.svg", figures)
    yield Heading("Where it turns: predictions")
    for line in words.crossings(s):
        yield Para(line)
    for axis in ("context", "model", "bandwidth"):
        yield from _figure(f"{axis}.svg", figures)
    yield Table(words.PROJECTION_COLUMNS, tuple(words.projection_rows(s)), words.PROJECTION_CAPTION)
    yield Heading("What is not here")
    for line in words.missing(s):
        yield Para(line)
    yield Heading("How it was measured")
    yield Para(words.method(s))
    yield Table(("", ""), tuple(sorted(s.environment.items())))
    yield Code(s.command)


def _figure(name: str, figures: Iterable[str]) -> Iterable[Part]:
    if name in figures:
        yield Figure(name, CAPTIONS[name])


def markdown(parts: Sequence[Part]) -> str:
    out: list[str] = []
    for p in parts:
        if isinstance(p, Heading):
            out.append("#" * p.level + " " + p.text)
        elif isinstance(p, Para):
            out.append(f"**{p.text}**" if p.strong else p.text)
        elif isinstance(p, Figure):
            out.append(f"![{p.caption}]({p.file})\n\n{p.caption}")
        elif isinstance(p, Code):
            out.append(f"```\n{p.text}\n```")
        elif p.rows:
            rows = [p.columns, tuple("---" for _ in p.columns), *p.rows]
            lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
            out.append("\n".join(lines) + (f"\n\n{p.caption}" if p.caption else ""))
    return "\n\n".join(out) + "\n"


STYLE = """
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; color: #1c2127; margin: 0 auto;
  max-width: 900px; padding: 32px 20px 64px; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
h1 { font-size: 23px; line-height: 1.3; } h2 { border-top: 1px solid #1c2127; font-size: 18px; margin-top: 40px; padding-top: 10px; }
h3 { font-size: 15px; } p { max-width: 72ch; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; line-height: 1.35; margin: 6px 0 4px; width: 100%; }
th, td { border-bottom: 1px solid #dde1e5; padding: 6px 10px 6px 0; text-align: left; vertical-align: top; overflow-wrap: normal; }
th { color: #5c6670; font-weight: 500; } .caption { color: #5c6670; font-size: 13px; margin: 2px 0 20px; }
figure { margin: 16px 0 20px; } figure svg { height: auto; max-width: 100%; } pre { background: #f5f6f8; overflow-x: auto; padding: 10px; }
@media print { body { max-width: none; padding: 0; } figure, tr { break-inside: avoid; } }
"""


def page(parts: Sequence[Part], figures: dict[str, str]) -> str:
    """One file, nothing fetched."""
    title = next(p.text for p in parts if isinstance(p, Heading))
    out = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>',
        f"<style>{STYLE}</style></head><body>",
    ]
    for n, p in enumerate(parts):
        if isinstance(p, Heading):
            out.append(f"<h{p.level}>{html.escape(p.text)}</h{p.level}>")
        elif isinstance(p, Para):
            text = html.escape(p.text)
            out.append(f"<p><strong>{text}</strong></p>" if p.strong else f"<p>{text}</p>")
        elif isinstance(p, Figure):
            out.append(
                f'<figure>{_own_ids(figures[p.file], n)}<figcaption class="caption">{html.escape(p.caption)}</figcaption></figure>'
            )
        elif isinstance(p, Code):
            out.append(f"<pre>{html.escape(p.text)}</pre>")
        elif p.rows:
            out.append(_table(p))
    return "\n".join([*out, "</body></html>"]) + "\n"


def _table(t: Table) -> str:
    head = "".join(f"<th>{html.escape(c)}</th>" for c in t.columns)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in t.rows)
    caption = f'<p class="caption">{html.escape(t.caption)}</p>' if t.caption else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{caption}'


def _own_ids(svg: str, n: int) -> str:
    """Ids of one figure apart from another's on the same page."""
    return svg.replace(' id="', f' id="f{n}-').replace('href="#', f'href="#f{n}-').replace("url(#", f"url(#f{n}-")
