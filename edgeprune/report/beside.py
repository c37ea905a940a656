"""Two or more runs side by side: what each was asked, gives and costs, and what keeps their figures apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeprune import report as single
from edgeprune.errors import UsageError
from edgeprune.report import doc, facts, files, page, sheet, words
from edgeprune.report.beside_cells import table_of
from edgeprune.report.doc import Code, Facts, Figures, Items, Part, Section, SignOff, Strip, Table, Text
from edgeprune.report.facts import Row
from edgeprune.report.record import Beside, Report
from edgeprune.report.speed import protocol
from edgeprune.report.text import figure, runtime_name

LETTERS = "ABCDEFGH"
BEST_FIRST = ("good", "warn", "bad")


def build(folders: Sequence[Path]) -> Beside:
    """Raises UsageError for fewer than two folders or more than a page can hold, InputRejected as report.build."""
    if not 2 <= len(folders) <= len(LETTERS):
        raise UsageError(f"{len(folders)} runs were named; name 2 to {len(LETTERS)} to see side by side")
    runs = tuple(single.build(folder) for folder in folders)
    made = Beside(
        title=f"{len(runs)} runs side by side",
        headline="",
        folders=tuple(Path(folder).resolve().name for folder in folders),
        runs=runs,
        unlike=unlike(runs),
    )
    return made.model_copy(update={"headline": headline(made)})


def write(made: Beside, out_html: Path, force: bool = False) -> list[Path]:
    """Write OUT.html, OUT.md, OUT.json and OUT.csv; returns the paths. Raises as files.write_all."""
    as_page = page_of(made)
    csv = sheet.to_csv([(r, table) for r, table in zip(made.runs, tables(made), strict=True)])
    texts = {"html": page.to_html(as_page), "md": doc.to_markdown(as_page), "json": made.to_json(), "csv": csv}
    return files.write_all(texts, out_html, force)


def tables(made: Beside) -> list[list[Row]]:
    return [facts.rows(r, letter) for letter, r in zip(LETTERS, made.runs, strict=False)]


# --- what is not alike --------------------------------------------------------------------------


def unlike(runs: Sequence[Report]) -> tuple[str, ...]:
    """What keeps the runs' figures from being compared, a line each."""
    rows = [facts.planned_row(facts.rows(r)) for r in runs]
    quality = [row.quality if row else None for row in rows]
    timed = [row.measurement if row else None for row in rows]
    asked: list[tuple[str, list[Any], Callable[[Any], str]]] = [
        (
            "The models differ, and each is compared with its own whole model",
            [r.plan.fingerprint for r in runs],
            _model(runs),
        ),
        ("The plans are for different devices", [r.plan.device for r in runs], str),
        ("Different contexts are reserved", [r.plan.budget.context_tokens for r in runs], lambda n: f"{n:,} tokens"),
        (
            "Quality was read on different texts",
            [
                q and (q.text.sha256, q.text.context_tokens, q.text.stride_tokens, q.windows, q.text.name)
                for q in quality
            ],
            _text,
        ),
        ("Speeds are of different machines", [m and str(sorted(m.host.items())) for m in timed], lambda _: "one"),
        ("Speeds were timed differently", [m and protocol(m) for m in timed], str),
    ]
    return tuple(f"{what}: {_parted(values, show)}." for what, values, show in asked if len(_known(values)) > 1)


def _known(values: list[Any]) -> list[Any]:
    found: list[Any] = []
    for v in values:
        if v is not None and v not in found:
            found.append(v)
    return found


def _parted(values: list[Any], show: Callable[[Any], str]) -> str:
    """ "A and C host, B rpi5-8gb"."""
    said = []
    for v in _known(values):
        who = [letter for letter, other in zip(LETTERS, values, strict=False) if other == v]
        said.append(f"{_listed(who)} {show(v)}")
    return "; ".join(said)


def _model(runs: Sequence[Report]) -> Callable[[str], str]:
    return lambda fingerprint: next(r.plan.model for r in runs if r.plan.fingerprint == fingerprint)


def _text(read: Any) -> str:
    sha256, context, stride, windows, name = read
    return f"{name} (SHA-256 {sha256[:12]}…), {windows} windows of {context:,} tokens, stride {stride:,}"


# --- headline -----------------------------------------------------------------------------------


def headline(made: Beside) -> str:
    """Which fit, and which of those loses least, where that can be said."""
    lettered = list(zip(LETTERS, made.runs, strict=False))
    said = []
    for word, one, many in _FITS:
        if who := [letter for letter, r in lettered if r.verdict and words.word(r.verdict) == word]:
            said.append(f"{_listed(who)} {many if len(who) > 1 else one}")
    if who := [letter for letter, r in lettered if not r.verdict]:
        said.append(f"of {_listed(who)} nothing was asked")
    able = [letter for letter, r in lettered if not any(line.verdict == "missed" for line in r.verdict)]
    return "; ".join([*said, *_least(made, able)]) + "."


_FITS = (
    ("Fits", "fits", "fit"),
    ("Not yet shown to fit", "is not yet shown to fit", "are not yet shown to fit"),
    ("Does not fit", "does not fit", "do not fit"),
)


def _listed(letters: Sequence[str]) -> str:
    """ "A, B and C"."""
    return " and ".join([*filter(None, [", ".join(letters[:-1])]), letters[-1]])


def _least(made: Beside, able: list[str]) -> list[str]:
    """Of the runs that miss no limit, the one with the least KL, and those that can't be told from it."""
    found = {}
    for letter, table in zip(LETTERS, tables(made), strict=False):
        row = facts.planned_row(table)
        if letter in able and row and row.quality and row.quality.kl is not None:
            found[letter] = row.quality
    if len(found) < 2:
        return []
    if any(text.startswith(("The models", "Quality")) for text in made.unlike):
        return ["what they lose can't be compared as it was read"]
    best = min(found, key=lambda letter: found[letter].kl)
    ours = facts.kl_interval(found[best])
    near = [
        letter
        for letter, q in found.items()
        if letter != best and (ours is None or (theirs := facts.kl_interval(q)) is None or theirs[0] <= ours[1])
    ]
    told = f"{best} loses least, KL {figure(found[best].kl)}"
    return [told + (f", though {_listed(near)} can't be told from it" if near else "")]


# --- the page -----------------------------------------------------------------------------------


def sections(made: Beside) -> list[Section]:
    per_run = list(zip(LETTERS, made.folders, made.runs, tables(made), strict=False))
    names = tuple(f"{letter} {folder}" for letter, folder, *_ in per_run)
    verdict: list[Part] = [Table(("Run", *names), table_of([(r, t) for *_, r, t in per_run]), _CAPTION)]
    verdict.append(
        Items(made.unlike, "What is not alike") if made.unlike else Text("Models, texts, machines and tests are alike.")
    )
    strips = tuple(
        Strip(r.plan.blocks, r.plan.n_blocks_whole, f"{name}: {words.removed_text(r)}", legend=r is made.runs[-1])
        for name, r in zip(names, made.runs, strict=True)
    )
    judged = "The planned file of each run is bold, its whole models stand beside it."
    each = f"Each dot is one repetition, the bar their median, × the gain over the run's own whole model. {judged}"
    late = "Runs were measured at different times: where a machine drifts, compare gains over the whole model."
    return [
        Section("verdict", "Verdicts side by side", tuple(verdict)),
        Section("removal", "What was removed", strips),
        Section("fit", "Device fit", (Figures((("memory", "Memory of each file", judged),)),)),
        Section("quality", "Quality", (Figures(_PARETO),)),
        Section("speed", "Speed at batch 1", (Text(late), Figures((("decode", "Decode", each), ("prefill", "Prefill", each))))),
        Section("risks", "Risks, and what was not measured", tuple(_risks(names, made.runs))),
        Section("environment", "Environment", tuple(_environment(names, made.runs))),
        Section("reproduction", "Reproduction", tuple(p for name, r in zip(names, made.runs, strict=True) for p in _again(name, r))),
        Section("signoff", "Sign-off", (SignOff(("Role", "Name", "Date", f"Decision: {' / '.join(LETTERS[: len(names)])} / none")),)),
    ]  # fmt: skip


_CAPTION = "Measured are the planned files. The smaller figures: MiB, ranges over repetitions, 95 % intervals, 90th percentiles."
_PARETO = (
    ("quality_memory", "Damage against memory", "Good is down and to the left; the ringed files are the plans."),
    ("quality_speed", "Damage against decode speed", "Good is down and to the right."),
    ("quality_file", "Damage against file size", "Good is down and to the left."),
)


def _risks(names: tuple[str, ...], runs: Sequence[Report]) -> list[Part]:
    """What all share, then what each has alone."""
    parts: list[Part] = []
    for title, of in (("Risks", lambda r: r.risks), ("Not measured", lambda r: r.not_measured)):
        shared = [text for text in of(runs[0]) if all(text in of(r) for r in runs)]
        if shared:
            parts.append(Items(tuple(shared), f"{title}, all runs"))
        for name, r in zip(names, runs, strict=True):
            if own := tuple(text for text in of(r) if text not in shared):
                parts.append(Items(own, f"{title}, {name}"))
    return parts


def _environment(names: tuple[str, ...], runs: Sequence[Report]) -> list[Part]:
    """What differs, as a table; what is alike in all."""
    told = [_software(r) for r in runs]
    keys = list(dict.fromkeys(k for t in told for k in t))
    unlike = [k for k in keys if len({t.get(k) for t in told}) > 1]
    parts: list[Part] = []
    if unlike:
        rows = tuple((k, *(t.get(k, "not recorded") for t in told)) for k in unlike)
        parts.append(Table(("What differs", *names), rows))
    if alike := tuple((k, told[0][k]) for k in keys if k not in unlike):
        parts.append(Facts(alike, "Alike in all runs"))
    return parts or [Text("Machines and package versions are not recorded.")]


def _software(r: Report) -> dict[str, str]:
    from edgeprune.report.appendix import host_fact

    row = next((row for row in facts.rows(r) if row.measurement), None)
    host = dict(host_fact(k, v) for k, v in sorted(row.measurement.host.items())) if row else {}
    builds = {runtime_name(m.runtime): m.build for m in r.measurements}
    return host | builds | dict(sorted(r.environment.items()))


def _again(name: str, r: Report) -> list[Part]:
    row = facts.planned_row(facts.rows(r))
    pairs = [("model fingerprint", r.plan.fingerprint), ("plan.json, SHA-256", r.plan.digest())]
    pairs += [(row.artifact.path, row.artifact.sha256)] if row else []
    command = Code(r.command) if r.command else Text(f"The command of {name} is not recorded.")
    return [Facts(tuple(pairs), name), command]


def page_of(made: Beside) -> doc.Page:
    def draw() -> dict[str, str]:
        from edgeprune.report import plots

        shown = [r for table in tables(made) for r in table if r.planned or r.baseline]
        limits = {r.plan.memory_limit_bytes for r in made.runs}
        asked = {r.plan.budget.min_decode_tok_per_s if facts.is_host(r.plan) else None for r in made.runs}
        drawn = plots.of_files(
            shown, limits.pop() if len(limits) == 1 else None, asked.pop() if len(asked) == 1 else None
        )
        return {name: svg for name, svg in drawn.items() if svg}

    tones = {words.tone(r) for r in made.runs}
    return doc.Page(
        eyebrow="Deployment reports compared",
        title=made.title,
        headline=made.headline,
        tone=next(t for t in BEST_FIRST if t in tones),
        lead="; ".join(
            f"{a} is {name}: {r.title}" for a, name, r in zip(LETTERS, made.folders, made.runs, strict=False)
        )
        + ".",
        sections=tuple(sections(made)),
        plots=draw,
    )
