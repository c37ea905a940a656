"""The study's page, from study.json alone, as reports are written: one HTML file, Markdown with its figures beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgeprune.files import write_text
from edgeprune.report import doc
from edgeprune.report.doc import Code, Facts, Figures, Items, Section, Text
from edgeprune.report.page import to_html
from edgeprune.report.svg import alone
from edgeprune.study import figures, tables, words
from edgeprune.study.record import Study

SPEED = "Right of the line depth is faster. Filled: nothing in the context{}. Bars: 95 %; stroke: predicted by a fit that saw neither "
SPEED += "model."
FORETOLD = "Predicted, not measured; band: 90 %."


def write(s: Study, out: Path) -> None:
    """report.html, report.md, and the figures that it shows."""
    drawn = figures.drawn(s)
    page = page_of(s, drawn)
    for name, svg in drawn.items():
        write_text(out / f"{name}.svg", alone(svg), force=True)
    write_text(out / "report.md", doc.to_markdown(page, pictures=drawn), force=True)
    write_text(out / "report.html", to_html(page), force=True)


def page_of(s: Study, drawn: dict[str, str]) -> doc.Page:
    return doc.Page(
        eyebrow="Study",
        title=f"Depth against width: {s.model}",
        headline=words.headline(s),
        tone=words.tone(s),
        lead=words.question(s),
        sections=tuple(_sections(s)),
        plots=lambda: drawn,
        footer="Made by edgeprune from design.json and the samples beside it; every figure of the page is in study.json.",
    )


def _sections(s: Study) -> Iterator[Section]:
    lost = tuple(words.lost(s))
    yield Section(
        "verdict",
        "Verdict",
        (
            Items(tuple(words.verdicts(s))),
            tables.verdict(s),
            Items(lost or ("Nowhere among the pairs measured here.",), "Where depth is slower, measured"),
        ),
    )
    found = tables.stock(s)
    stock = (found,) if found else ()
    held = " or ".join(f"{n:,}" for n in s.contexts if n)
    longest = f"; hollow: {held} tokens" if held else ""
    speed = tuple((f"speed-{q}", f"{q}.", SPEED.format(longest)) for q in figures.quants(s))
    yield Section("measured", "Measured side by side", (Figures(speed), tables.pairs(s), tables.models(s), *stock))
    if s.qualities:
        equal = (tables.equal_quality(s),) if s.equal_quality else (Text(NO_EQUAL),)
        see = (
            (
                "quality",
                "Damage against speed, measured.",
                "Lower and further right is better; points along a line: ratios.",
            ),
        )
        scored = tables.zeroshot(s)
        tasks = (scored,) if scored else ()
        yield Section("quality", "What it does to the model", (Figures(see), tables.quality(s), *tasks, *equal))
    yield Section("why", "Why", tuple(_why(s)))
    yield Section("turns", "Where it turns", tuple(_turns(s)))
    yield Section("missing", "Not measured", (Items(tuple(words.missing(s))),))
    made = tuple(sorted(s.environment.items()))
    yield Section("method", "Method and environment", (Text(words.method(s)), Facts(made), Code(s.command)))


NO_EQUAL = "No thinner model has a damage between those of two depth models, so nothing can be said at equal quality."


def _why(s: Study) -> Iterator[doc.Part]:
    yield Items(tuple(words.reasons(s)))
    quant = figures.main_quant(s)
    yield Figures(
        (
            *(
                (f"time-{c}", f"{quant}, {c:,} tokens in the context.", "What a token's time goes to.")
                for c in s.contexts
            ),
            (
                "predicted",
                "Predicted against measured.",
                "By a fit that saw no row of the model; on the line, terms explain it.",
            ),
        )
    )
    yield Text(words.foresight(s))
    yield tables.why(s)


def _turns(s: Study) -> Iterator[doc.Part]:
    crossings = tuple(words.crossings(s))
    if crossings:
        yield Items(crossings)
    devices = dict.fromkeys(c.device for c in s.curves if c.axis == "context")
    yield Figures(
        (
            *((f"context-{d}", f"Context, on {d}.", f"{FORETOLD} Thinner blocks keep their cache.") for d in devices),
            ("model", "Size of the model.", f"{FORETOLD} Larger models hang less on the fixed cost of a block."),
            ("bandwidth", "Bandwidth.", f"{FORETOLD} As if memory alone were faster than here."),
            ("threads", "Threads.", "Measured here, decode; band: 95 %."),
        )
    )
    yield tables.projections(s)
