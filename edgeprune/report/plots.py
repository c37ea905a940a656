"""The report's plots as SVG text. Same records, same bytes; colours are CSS variables, text stays text."""

from __future__ import annotations

from edgeprune.report import facts, plot_lines, plot_points, plot_rows
from edgeprune.report.facts import Row
from edgeprune.report.record import Report


def plots(report: Report) -> dict[str, str]:
    """name -> SVG, for every plot the data allows."""
    plan = report.plan
    table = facts.rows(report)
    asked = plan.budget.min_decode_tok_per_s if facts.is_host(plan) else None
    made = of_files(table, plan.memory_limit_bytes, asked)
    made |= {
        "damage": plot_lines.damage(report),
        "contexts": plot_lines.contexts(table),
        "front": plot_points.front(plan),
    }
    return {name: svg for name, svg in made.items() if svg}


def of_files(table: list[Row], limit_bytes: int | None, asked_tok_per_s: float | None) -> dict[str, str | None]:
    """What is drawn of files alike, whether they are of one run or of several."""
    unit, mb = _unit([r.process.memory_bytes for r in table if r.process])
    size, file_mb = _unit([r.artifact.bytes for r in table])
    return {
        "memory": plot_rows.memory(table, limit_bytes),
        "decode": plot_rows.speed(table, "decode, tokens/s", facts.decode_rates, asked_tok_per_s, foretold=True),
        "prefill": plot_rows.speed(table, "prefill, tokens/s", facts.prefill_rates, None, foretold=False),
        "quality_memory": plot_points.pareto(
            "quality_memory", table, f"memory of the process, {mb}",
            lambda r: [r.process.memory_bytes / unit] if r.process else [], limit=limit_bytes and limit_bytes / unit,
        ),
        "quality_speed": plot_points.pareto(
            "quality_speed", table, "decode, tokens/s",
            lambda r: facts.decode_rates(r.measurement) if r.measurement else [], limit=asked_tok_per_s, more_is_better=True,
        ),
        "quality_file": plot_points.pareto(
            "quality_file", table, f"file, {file_mb}", lambda r: [r.artifact.bytes / size]
        ),
    }  # fmt: skip


def _unit(found: list[int]) -> tuple[float, str]:
    return (1e9, "GB") if max(found, default=0) >= 2e9 else (1e6, "MB")
