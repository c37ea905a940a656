"""Report -> section: quality before, after the cut and after healing; the whole model at equal bytes; tasks."""

from __future__ import annotations

from edgeprune.evaluation import Evaluation
from edgeprune.healing import Healing
from edgeprune.report import behaviour, facts, words
from edgeprune.report.cells import NONE, damage, name_of, rate, strong
from edgeprune.report.doc import Facts, Figures, Part, Section, Table, Text
from edgeprune.report.facts import Row
from edgeprune.report.record import Report
from edgeprune.report.text import Cell, Num, figure, missing, num, percent, runtime_name, size

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
    subjects = [(_subject(q), q) for q in _folders(report)] + [(name_of(r), r.quality) for r in table if r.quality]
    parts += [*equal_bytes(table), *behaviour.tasks(subjects), *behaviour.generation(subjects), *healing(report)]
    if report.scores:
        see = f"Every step removes more. Read on {report.scores.text.name} while scoring, before quantisation."
        parts.append(Figures((("damage", "Damage along the removal path", see),)))
    else:
        parts.append(Text("The damage curve of the removal path is not measured: no scores of this model."))
    return Section("quality", "Quality", tuple(parts))


def _folders(report: Report) -> list[Evaluation]:
    """What was read before any export: whole, after the cut, healed."""
    return [q for subject in ("whole", "pruned", "healed") for q in report.qualities if q.subject == subject]


def _subject(q: Evaluation) -> Num:
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


def _row(name: Cell, q: Evaluation | None, report: Report, table: list[Row], row: Row | None) -> tuple[Cell, ...]:
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


# --- healing ------------------------------------------------------------------------------------


def healing(report: Report) -> list[Part]:
    """What healing won back on text held aside, and what it cost, step by step."""
    if report.healing is None:
        return [Text("Healing was not tried.")] if facts.removes(report.plan) else []
    steps = report.healing.steps()
    return [
        part
        for n, h in enumerate(steps, 1)
        for part in _healing(h, f", step {n}: {h.method}" if len(steps) > 1 else "")
    ]


def _healing(h: Healing, step: str) -> tuple[Part, Part]:
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
    changed = ", ".join(h.changed) or "nothing: no attempt was better on every kind of text"
    cost = [("method", f"{h.method} ({h.source})"), ("changed", changed)]
    if h.scope:
        cost.append(("solved", h.scope))
    if t := h.trained:
        cost.append(
            (
                "training",
                f"{t.steps:,} of {t.planned_steps:,} steps, {t.tokens:,} tokens, {t.parameters:,} parameters trained",
            )
        )
        cost.append(("processes", str(t.processes)))
        if t.added:
            cost.append(("given back", f"{', '.join(t.added)}: the healed model is larger than the cut one"))
    text = f"{h.text.name}, {h.fit_windows * h.text.context_tokens:,} tokens (SHA-256 {h.text.sha256[:12]}…)"
    cost += [("text", text), ("time", f"{figure(h.seconds)} s, once")]
    caption = "Before quantisation, on text that healing did not read. Cut: the folder before this step."
    return Table(HEALED, rows, caption, f"What healing won back{step}"), Facts(tuple(cost), f"What healing cost{step}")
