"""Report -> sections: alternatives, risks, environment, reproduction, sign-off."""

from __future__ import annotations

from edgeprune.report import facts
from edgeprune.report.cells import foretold
from edgeprune.report.doc import Code, Facts, Figures, Items, Section, SignOff, Table, Text
from edgeprune.report.facts import Row
from edgeprune.report.record import Report
from edgeprune.report.text import Cell, Num, figure, num, runtime_name, size
from edgeprune.report.words import removed_text
from edgeprune.types import Figure, Prediction
from edgeprune.units import show_bytes

MAX_ALTERNATIVES = 40


def alternatives(report: Report) -> Section:
    plan = report.plan
    chosen = _row(
        plan.quant,
        plan.runtime,
        len(plan.blocks),
        removed_text(report),
        plan.damage_kl,
        plan.quant_kl,
        plan.prediction,
        "chosen",
    )
    lost = plan.alternatives[:MAX_ALTERNATIVES]
    rows = [
        chosen,
        *(
            _row(
                a.quant, a.runtime, a.n_blocks, a.removed or "nothing", a.damage_kl, a.quant_kl, a.prediction, a.reason
            )
            for a in lost
        ),
    ]
    columns = (
        "Candidate",
        "Blocks",
        "Removed",
        "KL of removal",
        "KL of quantisation",
        "Memory",
        "Decode, tok/s",
        "Why it lost",
    )
    text = "For every runtime and quantisation, the best block list the planner found, and why it was not taken."
    if len(plan.alternatives) > len(lost):
        text += f" {len(plan.alternatives) - len(lost)} more are in the JSON."
    if not lost:
        text = "The plan names no alternatives."
    parts = [Text(text), Table(columns, tuple(rows), strong=(0,))]
    if plan.front:
        see = "What the planner expected of every candidate that none beats in damage, memory and speed at once, with 90 % intervals."
        parts.append(Figures((("front", "The planner's front, predicted", see),)))
    return Section("alternatives", "Alternatives considered", tuple(parts))


def _row(
    quant: str, runtime: str, n: int, removed: str, kl: float | None, quant_kl: float | None, p: Prediction, why: str
) -> tuple[Cell, ...]:
    return (
        Num(quant, sub=runtime_name(runtime) + (", chosen" if why == "chosen" else "")),
        str(n),
        removed,
        num(kl, "measured"),
        num(quant_kl, "prior") if quant_kl is not None else Num("no prior", tone="mute"),
        size(p.memory_bytes, "predicted"),
        foretold(p),
        "–" if why == "chosen" else why,
    )


def risks(report: Report) -> Section:
    parts = (Items(report.risks, "Risks"), Items(report.not_measured, "Not measured"))
    return Section("risks", "Risks, and what was not measured", tuple(p for p in parts if p.items))


def environment(report: Report, table: list[Row]) -> Section:
    parts: list = []
    host = next((r.measurement.host for r in table if r.measurement and r.measurement.host), {})
    if host:
        parts.append(Facts(tuple(host_fact(k, v) for k, v in sorted(host.items())), "Machine that measured"))
    else:
        parts.append(Text("The machine that measured is not recorded."))
    builds = {
        (f"{runtime_name(r.runtime)}, {r.measurement.backend}", r.measurement.build) for r in table if r.measurement
    }
    software = [*sorted(builds), *sorted(report.environment.items())]
    if software:
        parts.append(Facts(tuple(software), "Software"))
    else:
        parts.append(Text("Package versions are not recorded."))
    times = sorted({r.measurement.test_time for r in table if r.measurement})
    if times:
        span = times[0] if len(times) == 1 else f"{times[0]} to {times[-1]}"
        parts.append(Text(f"Measured {span}."))
    parts.append(Facts(tuple(_device(report)), f"Planned device: {report.plan.device}"))
    return Section("environment", "Environment", tuple(parts))


def host_fact(key: str, value: object) -> tuple[str, str]:
    """("memory", "25.3 GB (23.5 GiB)") for memory_bytes."""
    name = str(key).removesuffix("_bytes").replace("_", " ")
    is_size = str(key).endswith("_bytes") and isinstance(value, (int, float))
    return name, show_bytes(value) if is_size else flat(value)


def flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {flat(v)}" for k, v in sorted(value.items(), key=lambda kv: str(kv[0])))
    if isinstance(value, (list, tuple)):
        return ", ".join(flat(v) for v in value)
    return "not known" if value is None else str(value)


def _device(report: Report) -> list[tuple[str, str]]:
    d = report.device
    if d is None:
        return [("profile", "not recorded")]
    out = [("name", f"{d.vendor} {d.name}")]
    out += [(name, value) for name, value in (("CPU", d.cpu), ("instruction set", d.isa), ("GPU", d.gpu)) if value]
    out += [
        ("memory", _sourced(d.memory_total)),
        ("memory for a model", _sourced(d.memory_available)),
        ("memory bandwidth", _sourced(d.bandwidth)),
    ]
    if report.plan.mode:
        out.append(("power mode", report.plan.mode))
    out.append(("prediction from", report.plan.prediction.basis))
    return out


def _sourced(f: Figure) -> str:
    sign = "~" if f.kind == "unsourced" else ""
    unit = {"bytes/s": "/s"}.get(f.unit, f" {f.unit}")
    text = (
        show_bytes(f.value)
        if f.unit == "bytes"
        else f"{show_bytes(f.value).partition(' (')[0]}{unit}"
        if f.unit == "bytes/s"
        else f"{figure(f.value)}{unit}"
    )
    return f"{sign}{text}, {f.kind}: {f.source}"


def reproduction(report: Report, table: list[Row]) -> Section:
    plan = report.plan
    parts: list = [Code(report.command) if report.command else Text("The command of the run is not recorded.")]
    pairs = [
        ("model", f"{plan.model} ({plan.family})"),
        ("model fingerprint", plan.fingerprint),
        ("plan.json, SHA-256", plan.digest()),
    ]
    if plan.scores_sha256:
        pairs.append(("scores, SHA-256", plan.scores_sha256))
    pairs += [(f"chat template of {name}, SHA-256", sha) for name, sha in report.chat_templates.items()]
    parts.append(Facts(tuple(pairs)))
    if table:
        rows = tuple(
            (r.artifact.path, size(r.artifact.bytes, "measured"), r.artifact.sha256, *_agreement(r)) for r in table
        )
        parts.append(
            Table(
                ("File", "Size", "SHA-256", "Largest logit error", "KL to torch"),
                rows,
                "Of a folder, SHA-256 is that of its SHA256SUMS; `sha256sum -c SHA256SUMS` inside it checks the files. Errors are "
                "against torch on the exporter's check prompt; quantised files differ by what quantisation costs.",
            )
        )
    return Section("reproduction", "Reproduction", tuple(parts))


def _agreement(r: Row) -> tuple[Cell, Cell]:
    a = r.artifact
    return num(a.max_logit_error, "measured"), num(a.mean_kl, "measured")


def sign_off(report: Report, table: list[Row]) -> Section:
    row = facts.planned_row(table)
    file = f"{row.artifact.path}, SHA-256 {row.artifact.sha256}" if row else "no file: none is listed"
    text = f"Signed for is {file}; plan.json, SHA-256 {report.plan.digest()}."
    return Section("signoff", "Sign-off", (Text(text), SignOff()))


def all_after_speed(report: Report, table: list[Row]) -> list[Section]:
    return [
        alternatives(report),
        risks(report),
        environment(report, table),
        reproduction(report, table),
        sign_off(report, table),
    ]
