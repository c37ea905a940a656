"""A report's conclusions, on stdout."""

from __future__ import annotations

from pathlib import Path

from edgeprune.cli._show import number
from edgeprune.cli._terminal import say, table
from edgeprune.report import facts
from edgeprune.report.beside import LETTERS
from edgeprune.report.record import Beside, BudgetLine, Report
from edgeprune.report.text import plain
from edgeprune.study import tables, words
from edgeprune.study.record import Study
from edgeprune.types import Measurement
from edgeprune.units import show_bytes

COLUMNS = (
    "artifact",
    "blocks",
    "file, MB",
    "memory, MB\npredicted / measured",
    "decode, tok/s\npredicted / measured",
    "perplexity",
    "KL",
)


def report(r: Report, paths: list[Path]) -> None:
    say(r.headline)
    table(None, ["budget", "asked", "predicted", "measured", "verdict"], [_line(v) for v in r.verdict])
    found = {row.artifact.path: row for row in facts.rows(r)}
    table(None, list(COLUMNS), [_file(found[a.path]) for a in r.artifacts], right=(1, 2, 3, 4, 5, 6))
    _wrote(paths)


def beside(b: Beside, paths: list[Path]) -> None:
    say(b.headline)
    for letter, r in zip(LETTERS, b.runs, strict=False):
        say(f"{letter}: {r.title}: {r.headline}")
    for text in b.unlike:
        say(f"not alike: {text}")
    _wrote(paths)


def _wrote(paths: list[Path]) -> None:
    for path in paths:
        say(f"wrote {path}")


def _line(v: BudgetLine) -> list[str]:
    def show(x: float | None) -> str:
        return show_bytes(x) if v.unit == "bytes" else "not measured" if x is None else f"{number(x)} {v.unit}"

    return [v.line, show(v.asked), show(v.predicted), show(v.measured), v.verdict]


def _file(row: facts.Row) -> list[str]:
    a, p, q = row.artifact, row.prediction, row.quality
    return [
        a.path,
        str(a.n_blocks),
        f"{a.bytes / 1e6:.1f}",
        f"{p.memory_bytes / 1e6:.0f} / {_mb(row.process)}" if p else "",
        f"{number(p.decode_tok_per_s)} / {_rate(row.measurement)}" if p else "",
        number(q.perplexity, 4) if q else "not measured",
        number(q.kl) if q else "not measured",
    ]


def _mb(m: Measurement | None) -> str:
    return "not measured" if m is None else f"{m.memory_bytes / 1e6:.0f}"


def _rate(m: Measurement | None) -> str:
    rate = facts.decode_rate(m)
    return "not measured" if rate is None else f"{rate:.1f}"


def study(found: Study, folder: Path) -> None:
    say(words.headline(found))
    of_pairs = tables.pairs(found)
    table(None, list(of_pairs.columns), [[plain(cell) for cell in row] for row in of_pairs.rows])
    for line in (*words.verdicts(found), *words.reasons(found), words.foresight(found)):
        say(line)
    if found.speed_only:
        say("Speed only: random weights of the true shape.")
    say(f"wrote {folder}/report.html, report.md, study.json; raw samples are in samples.jsonl")
