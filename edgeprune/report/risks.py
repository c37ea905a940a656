"""Report -> what could make the verdict wrong, each with its number, and what was not measured."""

from __future__ import annotations

from edgeprune.blocks import is_portable
from edgeprune.report import budget, facts
from edgeprune.report.facts import Row
from edgeprune.report.record import Report
from edgeprune.report.text import figure, percent, runtime_name
from edgeprune.units import show_bytes

NOISY = 0.10  # half-range over median of the repetitions


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
    if facts.removes(plan):
        if not any(r.baseline and r.measurement and r.artifact.quant == plan.quant for r in table):
            out.append("the whole model at the same quantisation: gains in speed and memory have no baseline")
        if not facts.equal_bytes(table):
            out.append("the whole model in fewer bits at equal bytes: whether quantising further would do instead")
    if report.scores is None:
        out.append("the damage of other removals: no scores.json of this model")
    if report.device is None:
        out.append("the device's figures and their sources: no device.json of this device")
    if row and len(row.depths) == 1:
        depth = row.measurement.workload.n_depth
        out.append(
            f"speed late in the context: timed {f'after {depth:,} tokens' if depth else 'from an empty cache'}, "
            f"the plan reserves {plan.budget.context_tokens:,} tokens"
        )
    if not any(q.tasks for q in report.qualities):
        out.append("zero-shot tasks: perplexity and KL say nothing of them")
    if not any(q.generation for q in report.qualities):
        out.append("generated text: repetition, and whether answers are right")
    out.append("instruction following, safety and bias")
    out.append("sustained load: temperature, throttling and power")
    if len(report.chat_templates) < 2:
        out.append("that the chat template is the whole model's")
    out.append("that the chat template gives the same tokens in every runtime")
    return tuple(out)


def risks(report: Report) -> tuple[str, ...]:
    """What could make the verdict wrong, each with its number."""
    table = facts.rows(report)
    row = facts.planned_row(table)
    found = [*_device(report, row), *_speed(table, row), *_quality(report, table, row), *_files(report, table)]
    return tuple(found)


def _device(report: Report, row: Row | None) -> list[str]:
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
    extra = budget.missing_cache_bytes(row) if m else 0
    if extra:
        text = (
            f"Memory was measured with {budget.cache_tokens(row.process):,} of the {plan.budget.context_tokens:,} tokens of "
            f"context the plan reserves. The rest of the cache adds {show_bytes(extra)} by prediction."
        )
        limit, used = plan.memory_limit_bytes, row.process.memory_bytes
        if limit is not None and used <= limit < used + extra:
            text += " With it the memory limit would be missed."
        out.append(text)
    return out


def _speed(table: list[Row], row: Row | None) -> list[str]:
    out = []
    for r in table:
        noise = facts.spread(facts.decode_rates(r.measurement)) if r.measurement else None
        if noise is not None and noise > NOISY:
            out.append(f"Decode speed of {r.artifact.path} is noisy: ±{percent(noise)} around its median.")
    m = row.measurement if row else None
    if m and len(m.decode_samples_ns) < 5:
        out.append(f"Speed rests on {len(m.decode_samples_ns)} repetition(s); llama-bench takes 5.")
    if m:
        text = "MLPerf's single stream reports the 90th percentile over 600 seconds; medians of seconds say less."
        out.append(text + (" Its closed division takes no model with layers removed." if row.pruned else ""))
    return out


def _quality(report: Report, table: list[Row], row: Row | None) -> list[str]:
    plan, out = report.plan, []
    q = row.quality if row else None
    q = q or next((r.quality for r in table if r.quality), None) or next(iter(report.qualities), None)
    if q:
        seen = min(q.text.tokens, q.windows * q.text.context_tokens)
        out.append(
            f"Quality was read on {seen:,} tokens of one text, {q.text.name}, in {q.windows} windows. "
            "Other subjects, languages and longer contexts are unknown, and so is whether the model saw it in training."
        )
        if report.scores and report.scores.text.sha256 == q.text.sha256:
            out.append("That text also chose what to remove, so the quality figures flatter the plan.")
        if report.healing and any(h.text.sha256 == q.text.sha256 for h in report.healing.steps()):
            out.append("That text also healed the model, so the quality figures flatter it.")
    healed = report.healing is not None or any(q.subject == "healed" for q in report.qualities)
    if facts.removes(plan) and not healed:
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


def _files(report: Report, table: list[Row]) -> list[str]:
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
    whole = report.chat_templates.get("whole")
    changed = [name for name, sha in report.chat_templates.items() if whole and sha != whole]
    if changed:
        out.append(f"The chat template of the {' and '.join(changed)} folder is not the whole model's.")
    return out
