"""Run folders' records -> a report a deployment reviewer can sign: HTML, and the same facts as Markdown, JSON and CSV.

Nothing here measures, and nothing asks the clock: the same records give the same bytes. What a folder does not hold is
called "not measured". Only plan.json is required.
"""

from __future__ import annotations

from pathlib import Path

from edgeprune.report import (
    appendix,
    budget,
    doc,
    facts,
    files,
    fit,
    load,
    page,
    quality,
    risks,
    sheet,
    speed,
    verdict,
    words,
)
from edgeprune.report.record import Report
from edgeprune.report.text import runtime_name

__all__ = ["Report", "build", "page_of", "render_csv", "render_html", "render_md", "sections", "write"]


def build(folder: Path) -> Report:
    """Read DIR's records and draw the conclusions.

    Raises InputRejected when plan.json is missing or a record is malformed, naming file and field.
    """
    found = load.read(Path(folder))
    plan = found.plan
    notes = []
    scores = words.usable_scores(found.scores, plan.fingerprint)
    if found.scores and not scores:
        notes.append("scores.json belongs to other weights than the plan; its curve was left out.")
    elif scores and plan.scores_sha256 and scores.digest() != plan.scores_sha256:
        notes.append("scores.json is not the file the plan was made from; its curve is shown all the same.")
    model = found.model if found.model and found.model.fingerprint == plan.fingerprint else None
    if found.model and not model:
        notes.append("model.json belongs to other weights than the plan; it was left out.")
    device = found.device if found.device and plan.device in (found.device.id, *found.device.aliases) else None
    if found.device and not device:
        notes.append(f"device.json is {found.device.id}, the plan is for {plan.device}; it was left out.")
    times = sorted(m.test_time for m in found.measurements)
    report = Report(
        title=f"{plan.model} on {plan.device}",
        headline="",
        plan=plan,
        device=device,
        model=model,
        scores=scores,
        healing=found.healing,
        verdict=(),
        artifacts=found.artifacts,
        measurements=found.measurements,
        qualities=found.qualities,
        predictions=found.predictions,
        not_measured=(),
        risks=(),
        environment={k: appendix.flat(v) for k, v in found.run.environment.items()},
        command=found.run.command,
        chat_templates=found.run.chat_templates,
        created=found.run.created or (times[-1] if times else ""),
    )
    row = facts.planned_row(facts.rows(report))
    report = report.model_copy(update={"verdict": budget.budget_lines(plan, row)})
    return report.model_copy(
        update={
            "headline": words.headline(report),
            "not_measured": risks.not_measured(report),
            "risks": (*notes, *risks.risks(report)),
        }
    )


def write(report: Report, out_html: Path, force: bool = False) -> list[Path]:
    """Write OUT.html, OUT.md, OUT.json and OUT.csv; returns the paths. Raises as files.write_all."""
    as_page = page_of(report)
    texts = {
        "html": page.to_html(as_page),
        "md": doc.to_markdown(as_page),
        "json": report.to_json(),
        "csv": render_csv(report),
    }
    return files.write_all(texts, out_html, force)


def render_html(report: Report) -> str:
    """One self-contained page: no scripts, nothing loaded, plots inline."""
    return page.to_html(page_of(report))


def render_md(report: Report) -> str:
    return doc.to_markdown(page_of(report))


def render_csv(report: Report) -> str:
    """A line per file, raw figures."""
    return sheet.to_csv([(report, facts.rows(report))])


def sections(report: Report) -> list[doc.Section]:
    """The page's ten sections, the same for HTML and Markdown."""
    table = facts.rows(report)
    first = [
        verdict.verdict(report, table),
        fit.removal(report),
        fit.fit(report, table),
        quality.quality(report, table),
        speed.speed(report, table),
    ]
    return first + appendix.all_after_speed(report, table)


def page_of(report: Report) -> doc.Page:
    def draw() -> dict[str, str]:
        from edgeprune.report import plots

        return plots.plots(report)

    return doc.Page(
        eyebrow="Deployment report",
        title=report.title,
        headline=report.headline,
        tone=words.tone(report),
        lead=_lead(report),
        sections=tuple(sections(report)),
        plots=draw,
    )


def _lead(report: Report) -> str:
    plan = report.plan
    parts = [
        f"Deployment report by edgeprune for {plan.model} ({plan.family}), {plan.quant} with {runtime_name(plan.runtime)}"
    ]
    parts.append(f"device {plan.device}")
    if report.created:
        parts.append(f"records of {report.created}")
    return "; ".join(parts) + "."
