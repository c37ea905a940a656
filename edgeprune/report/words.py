"""The sentences a report says of itself: the headline, and what the honest alternative shows. All from data."""

from __future__ import annotations

from edgeprune.blocks import describe_removed
from edgeprune.report import budget, facts
from edgeprune.report.facts import Row
from edgeprune.report.record import BudgetLine, Report
from edgeprune.report.text import amount, figure, percent
from edgeprune.types import Scores
from edgeprune.units import show_bytes

# Perplexity after / before, from which the headline speaks of it. Our own convention, printed with the report.
NOTICEABLE, MUCH_WORSE, BROKEN = 1.05, 1.25, 10.0
COSTS_MUCH = {
    "whole": "quantisation alone costs that, weigh a larger one before shipping", "cut": "heal before shipping",
    "healed": "healed already, remove less or train longer before shipping",
}  # fmt: skip
NO_LONGER_WORKS = {"whole": "quantise less", "cut": "remove less or heal", "healed": "remove less"}
EQUAL = 0.10  # files whose sizes differ by less are called of equal bytes


def headline(report: Report) -> str:
    """One plain sentence: does it fit, by what, at what price."""
    lines = report.verdict
    if not lines:
        start = f"No limit was asked of {report.plan.device}"
    else:
        start = f"{word(lines)}: {'; '.join(_clause(line, report) for line in lines)}"
    return f"{start}{_quality_clause(report)}."


def word(lines: tuple[BudgetLine, ...]) -> str:
    """Does it fit? Nothing asked is nothing shown."""
    if any(line.verdict == "missed" for line in lines):
        return "Does not fit"
    if any(line.verdict == "not measured" for line in lines):
        return "Not yet shown to fit"
    return "Fits"


def _clause(line: BudgetLine, report: Report) -> str:
    """ "97.9 MB (93.4 MiB) of 105 MB (100 MiB) memory"."""
    asked = amount(line.asked, line.unit)
    if line.measured is None:
        told = f"predicted {amount(line.predicted, line.unit)}, " if line.predicted is not None else ""
        return f"{line.line} not measured ({told}asked {asked})"
    value = amount(line.measured, line.unit)
    elsewhere = "" if facts.is_host(report.plan) else ", measured on another machine"
    if line.line == "file size":
        return f"{line.line} {value}{' is over the' if line.verdict == 'missed' else ' of the'} {asked} allowed"
    if line.line == "memory":
        row = facts.planned_row(facts.rows(report))
        if line.verdict == "not measured" and row and row.process:
            full = line.measured + budget.missing_cache_bytes(row)
            elsewhere += f", with {budget.cache_tokens(row.process):,} of {report.plan.budget.context_tokens:,} tokens of context"
            elsewhere += f" (the full cache would make it {show_bytes(full)})"
        over = " is over the" if line.verdict == "missed" else " of the"
        return f"{line.line} {value}{over} {asked} allowed{elsewhere}"
    against = "under" if line.unit == "tok/s" else "over"
    return f"{line.line} {value}{f' {against} the ' if line.verdict == 'missed' else ' for the '}{asked} asked"


def _quality_clause(report: Report) -> str:
    found = facts.damage(report, facts.rows(report))
    if found is None:
        return "; quality was not measured"
    where = "" if found.of == "the finished file" else f" ({found.of})"
    if found.ratio is None:
        return f"; perplexity is {figure(found.after)}{where}, that of the whole model was not measured"
    change = f"from {figure(found.before)} to {figure(found.after)}{where}"
    joint = "and" if any(line.verdict == "missed" for line in report.verdict) else "but"
    state = "whole" if not facts.removes(report.plan) else "healed" if report.healing else "cut"
    if found.ratio >= BROKEN:
        return f", {joint} perplexity rises {change}: this model no longer works, {NO_LONGER_WORKS[state]}"
    if found.ratio >= MUCH_WORSE:
        return f", {joint} perplexity rises {change}: {COSTS_MUCH[state]}"
    if found.ratio >= NOTICEABLE:
        return f"; perplexity rises {change}"
    return f"; perplexity holds, {change}"


def equal_bytes(table: list[Row]) -> str | None:
    """What the whole model loses at about the planned file's size, in fewer bits; None where it was not measured."""
    row, other = facts.planned_row(table), facts.equal_bytes(table)
    if row is None or other is None:
        return None
    more = other.artifact.bytes / row.artifact.bytes - 1
    near = "about equal bytes" if abs(more) < EQUAL else "not equal bytes, but the nearest exported"
    said = f"The whole model at {other.artifact.quant} is {percent(abs(more))} {'larger' if more > 0 else 'smaller'} ({near}). "
    ours, theirs = facts.kl_interval(row.quality), facts.kl_interval(other.quality)
    if ours is None or theirs is None:
        said += "Which of the two loses more is not measured."
    elif ours[1] < theirs[0]:
        said += f"It loses more (KL {_against(other, row)}): here the cut is the better way to that size."
    elif theirs[1] < ours[0]:
        said += (
            f"It loses less (KL {_against(other, row)}): here fewer bits are the better way to that size, not the cut."
        )
    else:
        said += f"Their losses cannot be told apart on this text (KL {_against(other, row)})."
    limit = row.plan.memory_limit_bytes
    if limit is not None and other.process:
        full = other.process.memory_bytes + budget.missing_cache_bytes(other)
        said += f" With {show_bytes(full)} of memory it {_meets(full, limit)} the limit."
    most = row.plan.budget.max_file_bytes
    if most is not None:
        file = other.artifact.bytes
        said += f" With {show_bytes(file)} of file it {_meets(file, most)} the limit of {show_bytes(most)}."
    return said


def _meets(n_bytes: int, limit: int) -> str:
    return "meets" if n_bytes <= limit else "misses"


def _against(other: Row, row: Row) -> str:
    return f"{figure(other.quality.kl)} against {figure(row.quality.kl)}"


def removed_text(report: Report) -> str:
    return report.plan.removed or describe_removed(report.plan.blocks, report.plan.n_blocks_whole) or "nothing"


def usable_scores(scores: Scores | None, fingerprint: str) -> Scores | None:
    """Scores of other weights say nothing of this model."""
    return scores if scores and scores.fingerprint == fingerprint else None


def tone(report: Report) -> str:
    """Of the headline: bad, warn or good."""
    verdicts = {line.verdict for line in report.verdict}
    if "missed" in verdicts:
        return "bad"
    found = facts.damage(report, facts.rows(report))
    if found is None or found.ratio is None or found.ratio >= MUCH_WORSE:
        return "warn"
    return "warn" if "not measured" in verdicts or not verdicts else "good"
