"""Reports -> CSV: a line per file of a run, figures as recorded, for a spreadsheet or a script."""

from __future__ import annotations

import csv
import io
from statistics import median, stdev
from typing import Any

from edgeprune.report import facts
from edgeprune.report.facts import Row
from edgeprune.report.record import Report
from edgeprune.report.text import clean


def to_csv(runs: list[tuple[Report, list[Row]]]) -> str:
    """Empty is not measured or not predicted; the run's letter comes first where there are several."""
    lines = [_line(r, report, table) for report, table in runs for r in table]
    columns = list(dict.fromkeys(k for line in lines for k in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _inert(v) for k, v in line.items()} for line in lines)
    return out.getvalue()


def _line(r: Row, report: Report, table: list[Row]) -> dict[str, Any]:
    a, p, m, q = r.artifact, r.prediction, r.measurement, r.quality
    rates = facts.decode_rates(m) if m else []
    prefill = facts.prefill_rates(m) if m else []
    base = facts.baseline_of(r, table)
    gains = facts.gain(facts.decode_rates, m, base.measurement if base else None)
    interval = facts.kl_interval(q) or (None, None)
    line = {"run": r.run} if r.run else {}
    line |= {
        "file": a.path,
        "runtime": r.runtime,
        "quant": a.quant,
        "state": "whole" if r.baseline else "planned" if r.planned else "pruned" if r.pruned else "nothing removed",
        "n_blocks": a.n_blocks,
        "bytes": a.bytes,
        "predicted_memory_bytes": p and p.memory_bytes,
        "measured_memory_bytes": r.process and r.process.memory_bytes,
        "predicted_decode_tok_per_s": p and p.decode_tok_per_s,
        "predicted_decode_low_tok_per_s": p and p.decode_low_tok_per_s,
        "predicted_decode_high_tok_per_s": p and p.decode_high_tok_per_s,
        "measured_decode_tok_per_s": facts.decode_rate(m),
        "measured_decode_stdev_tok_per_s": stdev(rates) if len(rates) > 1 else None,
        "repetitions": len(rates) or None,
        "gain_over_whole": median(gains) if gains else None,
        "measured_prefill_tok_per_s": median(prefill) if prefill else None,
        "ttft_p50_s": facts.percentile_s(m.prefill_samples_ns, 50) if m else None,
        "ttft_p90_s": facts.percentile_s(m.prefill_samples_ns, 90) if m else None,
        "token_p50_s": facts.percentile_s(m.token_samples_ns, 50) if m else None,
        "token_p90_s": facts.percentile_s(m.token_samples_ns, 90) if m else None,
        "perplexity": q and q.perplexity,
        "perplexity_whole": q and facts.whole_quality(q, report, table),
        "kl": q and q.kl,
        "kl_low": interval[0],
        "kl_high": interval[1],
        "top1_agreement": q and q.top1_agreement,
        "sha256": a.sha256,
    }
    line |= {f"decode_after_{d.workload.n_depth}_tok_per_s": facts.decode_rate(d) for d in r.depths[1:]}
    return line | {f"{task} {metric}": s.value for (task, metric), s in facts.task_scores(q).items()}


def _inert(value: Any) -> Any:
    """No spreadsheet takes text for a formula; None is empty."""
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
