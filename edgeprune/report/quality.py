"""Report -> section: quality before, after the cut and after healing; the whole model at equal bytes; tasks."""

from __future__ import annotations

from edgeprune.report import facts, words
from edgeprune.report.cells import NONE, damage, name_of, rate, strong
from edgeprune.report.doc import Facts, Figures, Part, Section, Table, Text
from edgeprune.report.facts import Row
from edgeprune.report.record import Report
from edgeprune.report.text import Cell, Num, figure, missing, num, percent, runtime_name, size
from edgeprune.types import Quality

COLUMNS = ("What", "Perplexity", "Whole model", "Ratio", "KL, nats/token", "Top-1 agrees", "File")
EQUAL = ("What", "File", "Against the plan's", "Memory", "Perplexity", "KL, nats/token", "Decode, tok/s")
HEALED = (
    "Text held aside",
    "Perplexity, whole",
    "Perplexity, cut",
    "Perplexity, healed",
    "KL, cut",
    "KL, healed",
    "KL won back",
)


def quality(report: Report, table: list[Row]) -> Section:
    rows = [_row(_subject(q), q, report, table, None) for q in _folders(report)]
    marked = tuple(len(rows) + i for i in strong(table))
    rows += [_row(name_of(r), r.quality, report, table, r) for r in table]
    parts: list[Part] = []
    if report.qualities:
        parts.append(Table(COLUMNS, tuple(rows), _caption(report), strong=marked))
        parts.append(Figures(_pareto(report)))
    else:
        parts.append(Text("Perplexity, KL and agreement are not measured."))
    parts += [*equal_bytes(table), *tasks(report, table), *healing(report)]
    if report.scores:
        see = f"Every step removes more. Read on {report.scores.text.name} while scoring, before quantisation."
        parts.append(Figures((("damage", "Damage along the removal path", see),)))
    else:
        parts.append(Text("The damage curve of the removal path is not measured: no scores of this model."))
    return Section("quality", "Quality", tuple(parts))


def _folders(report: Report) -> list[Quality]:
    """What was read before any export: whole, after the cut, healed."""
    return [q for subject in ("whole", "pruned", "healed") for q in report.qualities if q.subject == subject]


def _subject(q: Quality) -> Num:
    title = {"whole": "whole model", "pruned": "after the cut", "healed": "healed"}[q.subject]
    return Num("unquantised", sub=f"{runtime_name(q.runtime)}, {title}")


def _caption(report: Report) -> str:
    texts = {(q.text, q.windows) for q in report.qualities}
    told = [
        f"Text: {t.name} (SHA-256 {t.sha256[:12]}…), {windows} windows of {t.context_tokens:,} tokens, stride {t.stride_tokens:,}."
        for t, windows in sorted(texts, key=lambda pair: (pair[0].name, pair[0].sha256, pair[1]))
    ]
    told.append("KL is from the whole model to this one, over its 95 % interval (Student's t over windows).")
    return " ".join(told)


def _pareto(report: Report) -> tuple[tuple[str, str, str], ...]:
    see = "Good is down and to the {side}. Bars: 95 % interval of KL{across}; dashed: what nothing measured beats."
    where = "" if facts.is_host(report.plan) else " Speeds are of the machine in section 8."
    ranged = ", range of the repetitions"
    return (
        ("quality_memory", "Damage against memory", see.format(side="left", across="")),
        ("quality_speed", "Damage against decode speed", see.format(side="right", across=ranged) + where),
        ("quality_file", "Damage against file size", see.format(side="left", across="")),
    )


def _row(name: Cell, q: Quality | None, report: Report, table: list[Row], row: Row | None) -> tuple[Cell, ...]:
    file = size(row.artifact.bytes, "measured") if row else NONE
    if q is None:
        return (name, missing(), missing(), NONE, missing(), missing(), file)
    if q.subject == "whole":
        return (name, num(q.perplexity, "measured"), NONE, NONE, Num("the reference", tone="mute"), NONE, file)
    before = facts.whole_quality(q, report, table)
    agree = Num(percent(q.top1_agreement), "measured") if q.top1_agreement is not None else missing()
    ratio = Num(f"{q.perplexity / before:.2f}", "measured") if before else NONE
    return (name, num(q.perplexity, "measured"), num(before, "measured"), ratio, damage(q), agree, file)


# --- the honest alternative ---------------------------------------------------------------------


def equal_bytes(table: list[Row]) -> list[Part]:
    """The planned file beside the whole model, quantised further to about the same size."""
    row, other = facts.planned_row(table), facts.equal_bytes(table)
    if row is None or not row.pruned:
        return []
    same = facts.baseline_of(row, table)
    shown = [r for r in (row, other, same) if r]
    told = words.equal_bytes(table) or (
        "The whole model, quantised further until its file is as small as the planned one, is not measured."
    )
    if len(shown) < 2:
        return [Text(told)]
    rows = tuple(
        (
            name_of(r),
            size(r.artifact.bytes, "measured"),
            "–" if r is row else Num(percent(r.artifact.bytes / row.artifact.bytes - 1, sign=True), "measured"),
            size(r.process.memory_bytes if r.process else None, "measured"),
            num(r.quality.perplexity if r.quality else None, "measured"),
            damage(r.quality),
            rate(facts.decode_rates(r.measurement)) if r.measurement else missing(),
        )
        for r in shown
    )
    return [Table(EQUAL, rows, told, "Instead of removing: the whole model in fewer bits", (0,))]


# --- tasks --------------------------------------------------------------------------------------


def tasks(report: Report, table: list[Row]) -> list[Part]:
    """Zero-shot accuracy by task, where quality records hold it; nothing otherwise (it is listed as not measured)."""
    subjects = [(_subject(q), q) for q in _folders(report)] + [(name_of(r), r.quality) for r in table if r.quality]
    names = list(dict.fromkeys(name for _, q in subjects for name in facts.tasks(q)))
    if not names:
        return []
    whole = next((q for _, q in subjects if q.subject == "whole"), None)
    rows = tuple((name, *(_task(q, task, whole) for task in names)) for name, q in subjects if facts.tasks(q))
    caption = "Accuracy ± its standard error; in brackets the change from the whole model, in points."
    return [Table(("Task", *names), rows, caption, "Zero-shot tasks")]


def _task(q: Quality, task: str, whole: Quality | None) -> Num:
    found = facts.tasks(q).get(task)
    if found is None:
        return missing()
    before = facts.tasks(whole).get(task) if whole and whole is not q else None
    change = f" ({100 * (found.accuracy - before.accuracy):+.1f})".replace("-", "−") if before else ""
    return Num(percent(found.accuracy), "measured", f"± {100 * found.stderr:.1f}, n {found.n:,}{change}")


# --- healing ------------------------------------------------------------------------------------


def healing(report: Report) -> list[Part]:
    """What healing won back on text held aside, and what it cost."""
    h = report.healing
    if h is None:
        return [Text("Healing was not tried.")] if facts.removes(report.plan) else []
    rows = tuple(
        (
            Num(k.text, sub=f"{k.windows} window{'s' if k.windows > 1 else ''}"),
            num(k.perplexity_whole, "measured"),
            num(k.perplexity_cut, "measured"),
            num(k.perplexity_healed, "measured"),
            num(k.kl_cut, "measured"),
            num(k.kl_healed, "measured"),
            Num(percent(1 - k.kl_healed / k.kl_cut), "measured") if k.kl_cut else NONE,
        )
        for k in h.kinds
    )
    cost = (
        ("method", f"{h.method} ({h.source})"),
        ("changed", f"{len(h.changed)} projections, {h.scope}" if h.changed else "nothing: no attempt helped every kind of text"),
        ("text", f"{h.text.name}, {h.fit_windows * h.text.context_tokens:,} tokens (SHA-256 {h.text.sha256[:12]}…)"),
        ("time", f"{figure(h.seconds)} s, once; size and speed of the result stay as they were"),
    )  # fmt: skip
    caption = "Before quantisation, on text that healing did not read."
    return [Table(HEALED, rows, caption, "What healing won back"), Facts(cost, "What healing cost")]
