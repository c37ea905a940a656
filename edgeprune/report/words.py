"""The sentences a report says of itself: headline, risks, what was not measured. All from data."""

from __future__ import annotations

from edgeprune.blocks import describe_removed, is_portable
from edgeprune.report import facts
from edgeprune.report.facts import Row
from edgeprune.report.text import amount, figure, percent, runtime_name
from edgeprune.types import BudgetLine, Report, Scores
from edgeprune.units import show_bytes

# Perplexity after / before, from which the headline speaks of it. Our own convention, printed with the report.
NOTICEABLE, MUCH_WORSE, BROKEN = 1.05, 1.25, 10.0
NOISY = 0.10  # half-range over median of the repetitions


def headline(report: Report) -> str:
    """One plain sentence: does it fit, by what, at what price."""
    lines = report.verdict
    if not lines:
        start = f"No limit was asked of {report.plan.device}"
    else:
        start = f"{_word(lines)}: {'; '.join(_clause(line, report) for line in lines)}"
    return f"{start}{_quality_clause(report)}."


def _word(lines: tuple[BudgetLine, ...]) -> str:
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
        if line.verdict == "not measured" and row and row.measurement:
            full = line.measured + facts.missing_cache_bytes(report.plan, row)
            elsewhere += f", with {facts.cache_tokens(row.measurement):,} of {report.plan.budget.context_tokens:,} tokens of context"
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
    pruned = facts.removes(report.plan)
    if found.ratio >= BROKEN:
        advice = "remove less or heal" if pruned else "quantise less"
        return f", {joint} perplexity rises {change}: this model no longer works, {advice}"
    if found.ratio >= MUCH_WORSE:
        advice = (
            "heal before shipping" if pruned else "quantisation alone costs that, weigh a larger one before shipping"
        )
        return f", {joint} perplexity rises {change}: {advice}"
    if found.ratio >= NOTICEABLE:
        return f"; perplexity rises {change}"
    return f"; perplexity holds, {change}"


# --- what was not measured ----------------------------------------------------------------------


def not_measured(report: Report) -> tuple[str, ...]:
    """Facts the folder does not hold, most important first."""
    plan, table, out = report.plan, facts.rows(report), []
    row = facts.planned_row(table)
    if not row:
        out.append(
            f"the planned file ({plan.quant} for {runtime_name(plan.runtime)}): none is listed in artifacts.json"
        )
    for line in report.verdict:
        if line.verdict == "not measured":
            part = f", with all {plan.budget.context_tokens:,} tokens of context" if line.measured is not None else ""
            out.append(f"{line.line} on {plan.device}{part}")
    out += [f"memory and speed of {r.artifact.path}" for r in table if not r.measurement]
    out += [f"quality of {r.artifact.path}" for r in table if not r.quality]
    out += [f"agreement of {r.artifact.path} with torch" for r in table if r.artifact.max_logit_error is None]
    if not any(r.baseline and r.measurement for r in table) and facts.removes(plan):
        out.append("the whole model at the same quantisation: gains in speed and memory have no baseline")
    if report.scores is None:
        out.append("the damage of other removals: no scores.json of this model")
    if report.device is None:
        out.append("the device's figures and their sources: no device.json of this device")
    depths = {r.measurement.workload.n_depth for r in table if r.measurement}
    if depths == {0}:
        out.append(
            f"speed late in the context: timed from an empty cache, the plan reserves {plan.budget.context_tokens:,} tokens"
        )
    out.append("tasks, instruction following, safety and bias: perplexity and KL say nothing of them")
    out.append("sustained load: temperature, throttling and power")
    out.append("that the chat template gives the same tokens in every runtime")
    return tuple(out)


# --- risks --------------------------------------------------------------------------------------


def risks(report: Report) -> tuple[str, ...]:
    """What could make the verdict wrong, each with its number."""
    table = facts.rows(report)
    row = facts.planned_row(table)
    found = [*_device_risks(report, row), *_quality_risks(report, table, row), *_file_risks(report, table)]
    return tuple(found)


def _device_risks(report: Report, row: Row | None) -> list[str]:
    plan, out = report.plan, []
    m = row.measurement if row else None
    if not facts.is_host(plan):
        out.append(
            f"The device was not at hand. Everything measured here comes from another machine; "
            f"speed on {plan.device} is a prediction until `edgeprune bench` has run there."
        )
    if m and not facts.same_backend(m, plan):
        out.append(f"The plan is for the {plan.backend} backend; measured was {m.backend}. {plan.backend} was not run.")
    if plan.prediction.decode_tok_per_s is not None and plan.prediction.basis.startswith("prior"):
        p = plan.prediction
        if p.decode_low_tok_per_s is None or p.decode_high_tok_per_s is None:
            span = "no interval"
        else:
            span = f"{figure(p.decode_low_tok_per_s)} to {figure(p.decode_high_tok_per_s, 'tok/s')}"
        out.append(f"The predicted speed is a prior, not fitted to this device: {span}.")
    extra = facts.missing_cache_bytes(plan, row) if m else 0
    if extra:
        text = (
            f"Memory was measured with {facts.cache_tokens(m):,} of the {plan.budget.context_tokens:,} tokens of context "
            f"the plan reserves. The rest of the cache adds {show_bytes(extra)} by prediction."
        )
        limit = plan.memory_limit_bytes
        if limit is not None and m.memory_bytes <= limit < m.memory_bytes + extra:
            text += " With it the memory limit would be missed."
        out.append(text)
    for r in facts.rows(report):
        noise = facts.spread(facts.decode_rates(r.measurement)) if r.measurement else None
        if noise is not None and noise > NOISY:
            out.append(f"Decode speed of {r.artifact.path} is noisy: ±{percent(noise)} around its median.")
    if m and len(m.decode_samples_ns) < 5:
        out.append(f"Speed rests on {len(m.decode_samples_ns)} repetition(s); llama-bench takes 5.")
    return out


def _quality_risks(report: Report, table: list[Row], row: Row | None) -> list[str]:
    plan, out = report.plan, []
    q = row.quality if row else None
    q = q or next((r.quality for r in table if r.quality), None) or next(iter(report.qualities), None)
    if q:
        seen = min(q.text.tokens, q.windows * q.text.context_tokens)
        out.append(
            f"Quality was read on {seen:,} tokens of one text, {q.text.name}. "
            "Other subjects, languages and longer contexts are unknown."
        )
        if report.scores and report.scores.text.sha256 == q.text.sha256:
            out.append("That text also chose what to remove, so the quality figures flatter the plan.")
    if facts.removes(plan) and not any(q.subject == "healed" for q in report.qualities):
        out.append("Nothing in this folder records healing: the kept weights are taken to be the original's.")
    if plan.quant_kl is not None:
        out.append(
            f"The plan weighed quantisation with a prior (KL {figure(plan.quant_kl)} nats), not a measurement of this model."
        )
    if not is_portable(plan.blocks):
        out.append(
            "Some blocks lack a half: the GGUF is written as llama.cpp's deci or openelm, which other GGUF readers may not "
            "know, and the transformers folder holds zeros there."
        )
    return out


def _file_risks(report: Report, table: list[Row]) -> list[str]:
    out = []
    for r in table:
        stale = [
            m.runtime
            for m in report.measurements
            if m.artifact == r.artifact.path and not facts.same_file(r.artifact, m.artifact_sha256)
        ]
        stale += [
            "quality"
            for q in report.qualities
            if q.subject == r.artifact.path and not facts.same_file(r.artifact, q.sha256)
        ]
        if stale:
            out.append(
                f"{len(stale)} result(s) for {r.artifact.path} belong to a file with another SHA-256 and were left out."
            )
    known = {r.artifact.path for r in table}
    strangers = sorted({m.artifact for m in report.measurements} - known)
    if strangers:
        out.append(f"Measurements of files that are not listed were left out: {', '.join(strangers)}.")
    hosts = {str(r.measurement.host) for r in table if r.measurement}
    if len(hosts) > 1:
        out.append(
            f"The measurements come from {len(hosts)} different machines or states; compare their speeds with care."
        )
    return out


def removed_text(report: Report) -> str:
    return report.plan.removed or describe_removed(report.plan.blocks, report.plan.n_blocks_whole) or "nothing"


def usable_scores(scores: Scores | None, fingerprint: str) -> Scores | None:
    """Scores of other weights say nothing of this model."""
    return scores if scores and scores.fingerprint == fingerprint else None
