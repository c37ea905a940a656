"""A run folder's records -> a report a deployment reviewer can sign: HTML, and the same facts as Markdown and JSON.

Nothing here measures, and nothing asks the clock: the same records give the same bytes. What the folder
does not hold is called "not measured". Only plan.json is required.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeprune.errors import UsageError
from edgeprune.files import write_text
from edgeprune.report import appendix, doc, facts, front, load, verdict, words
from edgeprune.report.text import MARKS, clean, runtime_name
from edgeprune.types import Report

TEMPLATES = Path(__file__).parent / "templates"
KINDS = {
    "measured": "read from a process or a file",
    "predicted": "computed by edgeprune's cost model from the plan",
    "prior": "typical of other models or machines, not fitted to this one",
}


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
        verdict=(),
        artifacts=found.artifacts,
        measurements=found.measurements,
        qualities=found.qualities,
        predictions=found.predictions,
        not_measured=(),
        risks=(),
        environment={k: appendix.flat(v) for k, v in found.run.environment.items()},
        command=found.run.command,
        created=found.run.created or (times[-1] if times else ""),
    )
    row = facts.planned_row(facts.rows(report))
    report = report.model_copy(update={"verdict": facts.budget_lines(plan, row)})
    return report.model_copy(
        update={
            "headline": words.headline(report),
            "not_measured": words.not_measured(report),
            "risks": (*notes, *words.risks(report)),
        }
    )


def write(report: Report, out_html: Path, force: bool = False) -> list[Path]:
    """Write OUT.html, OUT.md and OUT.json, each complete or not at all; returns the three paths.

    Raises UsageError when one exists (unless `force`) or the name would fall on a record of the run.
    """
    out = Path(out_html)
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"a report was asked for as {out.name}; name a file that ends in .html")
    if out.stem in load.RECORDS:
        raise UsageError(f"{out.stem}.json is a record of a run; name the report otherwise, for example report.html")
    outs = [out, out.with_suffix(".md"), out.with_suffix(".json")]
    for path in outs:
        if path.exists() and not force:
            raise UsageError(f"{path} exists; choose another output, or pass --force to replace it")
    for path, text in zip(outs, (render_html(report), render_md(report), report.to_json()), strict=True):
        write_text(path, text, force)
    return outs


def sections(report: Report) -> list[doc.Section]:
    """The page's ten sections, the same for HTML and Markdown."""
    table = facts.rows(report)
    first = [
        verdict.verdict(report, table),
        front.removal(report),
        front.fit(report, table),
        front.quality(report, table),
        front.speed(report, table),
    ]
    return first + appendix.all_after_speed(report)


def render_html(report: Report) -> str:
    """One self-contained page: no scripts, nothing loaded, plots inline."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from edgeprune.report import plots, strip

    def finalize(value: Any) -> Any:
        return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    env = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=finalize,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    blocks, n = report.plan.blocks, report.plan.n_blocks_whole
    return env.get_template("report.html.j2").render(
        report=report,
        lead=_lead(report),
        sections=sections(report),
        plots={name: Markup(svg) for name, svg in plots.plots(report).items()},
        strips=[
            Markup(strip.strip(blocks, n)),
            Markup(strip.strip(blocks, n, per_line=14, narrow=True)),
        ],
        swatches={name: Markup(svg) for name, svg in strip.swatches().items()},
        marks=MARKS,
        kinds=KINDS,
        tone=_tone(report),
    )


def render_md(report: Report) -> str:
    return doc.to_markdown(report.title, report.headline, _lead(report), sections(report))


def _lead(report: Report) -> str:
    plan = report.plan
    parts = [
        f"Deployment report by edgeprune for {plan.model} ({plan.family}), {plan.quant} with {runtime_name(plan.runtime)}"
    ]
    parts.append(f"device {plan.device}")
    if report.created:
        parts.append(f"records of {report.created}")
    return "; ".join(parts) + "."


def _tone(report: Report) -> str:
    verdicts = {line.verdict for line in report.verdict}
    if "missed" in verdicts:
        return "bad"
    found = facts.damage(report, facts.rows(report))
    if found is None or found.ratio is None or found.ratio >= words.MUCH_WORSE:
        return "warn"
    return "warn" if "not measured" in verdicts or not verdicts else "good"
