"""results.json, README.md and the plot, all from one dictionary."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from _learn import Device, Miss, coverage, median_error, repeats
from _rows import FULL_POWER, Line

from edgeprune._prior import Prior
from edgeprune._rates import SMALL_SET

TARGET_ERROR, TARGET_COVERAGE = 0.06, 0.80


def results(
    found: list[Device],
    priors: dict[str, Prior],
    lines: list[Line],
    left_out: list[tuple[int, str]],
    name: str,
    digest: str,
) -> dict[str, Any]:
    alone = [
        d for d in found if d.key.runtime in ("llamacpp", "rkllm") and d.key.mode in FULL_POWER and not d.key.threads
    ]
    rows = [
        _row(m, w) for d in found for m, w in zip(_in_order(d.without_model), _in_order(d.without_device), strict=True)
    ]
    return {
        "rates": {"file": name, "sha256": digest, "used": len(lines), "left_out": [list(x) for x in left_out]},
        "devices": [_device(d) for d in found],
        "backends": {b: _backend(b, p, alone) for b, p in priors.items()},
        "prior_only": {
            "all": _cover([m for d in alone for m in d.without_device]),
            "fewer_than_8_rows": _cover([m for d in alone if len(d.lines) < SMALL_SET for m in d.without_device]),
        },
        "repeats": _repeats(lines),
        "rows": sorted(rows),
    }


def _in_order(misses: list[Miss]) -> list[Miss]:
    return sorted(misses, key=lambda m: m.line.number)


def _row(model: Miss, device: Miss) -> list[Any]:
    """line, key, model, quantisation, depth, measured tok/s, then predicted, low, high without the model and without the device."""
    told = [_three(1 / x) for m in (model, device) for x in (m.estimate.seconds, m.estimate.high, m.estimate.low)]
    line = model.line
    return [line.number, str(line.key), line.model, line.quant, line.depth, _three(1 / line.decode.seconds), *told]


def _three(x: float) -> float:
    return float(f"{x:.4g}")


def _device(d: Device) -> dict[str, Any]:
    weights, overhead, cache, attention = d.fit.terms
    worst = max(abs(math.expm1(m.error)) for m in d.without_model)
    prefill = statistics.median(abs(math.expm1(e)) for e in d.prefill_errors) if d.prefill_errors else None
    return {
        "key": str(d.key),
        "profile": d.key.profile,
        "rows": len(d.lines),
        "models": d.models,
        "status": d.status,
        "without_model": {**_cover(d.without_model), "worst": _three(worst)},
        "without_device": _cover(d.without_device),
        "efficiency": _three(1 / weights.value),
        "overhead_us": _three(overhead.value * 1e6),
        "cache_share": _three(1 / cache.value),
        "attention_gflops": _three(1e-9 / attention.value),
        "noise": _three(d.fit.noise),
        "from_the_prior": list(d.fit.undetermined),
        "confounded": [list(p) for p in d.fit.confounded],
        "prefill_tflops": _three(1e-12 / d.prefill.value) if d.prefill else None,
        "prefill_median": None if prefill is None else _three(prefill),
    }


def _backend(backend: str, p: Prior, alone: list[Device]) -> dict[str, Any]:
    weights, overhead, cache, attention = p.terms
    return {
        "rows": p.n_rows,
        "devices": p.n_devices,
        "efficiency": [_three(1 / x) for x in (weights.high, weights.value, weights.low)],
        "overhead_us": [_three(1e6 * x) for x in (overhead.low, overhead.value, overhead.high)],
        "cache_share": [_three(1 / x) for x in (cache.high, cache.value, cache.low)],
        "attention_gflops": [_three(1e-9 / x) for x in (attention.high, attention.value, attention.low)],
        "noise": _three(p.noise),
        **_cover([m for d in alone if d.key.backend == backend for m in d.without_device]),
    }


def _cover(misses: list[Miss]) -> dict[str, float]:
    return {"predicted_rows": len(misses), "covered": _three(coverage(misses)), "median": _three(median_error(misses))}


def _repeats(lines: list[Line]) -> dict[str, float]:
    phones = [line for line in lines if "perf.yaml" in line.source]
    return {
        name: {"pairs": len(r), "median": _three(statistics.median(r)), "worst": _three(max(r))}
        for name, r in (("qai-hub-models", repeats(phones)), ("others", repeats([x for x in lines if x not in phones])))
        if r
    }


def write(folder: Path, found: dict[str, Any]) -> Iterable[str]:
    """Writes the three files; yields the lines of the summary."""
    rows = ",\n".join(" " + json.dumps(r) for r in found["rows"])
    head = json.dumps({k: v for k, v in found.items() if k != "rows"}, indent=1)
    (folder / "results.json").write_text(f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")
    large = [d for d in found["devices"] if d["rows"] >= SMALL_SET]
    table = list(_table(large))
    _plot(folder / "public.png", found)
    (folder / "README.md").write_text(_readme(found, large, table), encoding="utf-8")
    yield from table
    cover = found["prior_only"]["fewer_than_8_rows"]
    yield f"prior only: {_percent(cover['covered'])} of {cover['predicted_rows']} rows inside the printed interval"


def _table(devices: list[dict[str, Any]]) -> Iterable[str]:
    yield "| device, runtime, backend | rows / models | median error | worst | in the interval | met |"
    yield "|---|---|---|---|---|---|"
    for d in sorted(devices, key=lambda d: d["without_model"]["median"]):
        m = d["without_model"]
        met = "yes" if m["median"] <= TARGET_ERROR else "no"
        yield (
            f"| {d['key']} | {d['rows']} / {d['models']} | {_percent(m['median'])} | {_percent(m['worst'])} "
            f"| {_percent(m['covered'], 0)} | {met} |"
        )


def _percent(x: float, digits: int = 1) -> str:
    return f"{100 * x:.{digits}f} %"


def _readme(found: dict[str, Any], large: list[dict[str, Any]], table: list[str]) -> str:
    text = (Path(__file__).parent / "_readme.txt").read_text(encoding="utf-8")
    met = sum(d["without_model"]["median"] <= TARGET_ERROR for d in large)
    small, repeat = found["prior_only"]["fewer_than_8_rows"], found["repeats"]
    backends = [
        "| backend | rows / devices | share of the bus | µs per block | spread of a row | inside |",
        "|---|---|---|---|---|---|",
    ]
    for name, b in found["backends"].items():
        e, o = b["efficiency"], b["overhead_us"]
        inside = f"{_percent(b['covered'], 0)} of {b['predicted_rows']}"
        cells = [name, f"{b['rows']} / {b['devices']}", _span(e), _span(o), _percent(b["noise"], 0), inside]
        backends.append(f"| {' | '.join(cells)} |")
    values = {
        "used": found["rates"]["used"],
        "left_out": "\n".join(f"- line {n}: {why}" for n, why in found["rates"]["left_out"]),
        "large": len(large),
        "met": met,
        "overall": _percent(statistics.median(abs(r[5] / r[6] - 1) for r in found["rows"] if r[1] in {d["key"] for d in large})),
        "table": "\n".join(table),
        "covered": _percent(small["covered"], 0),
        "covered_rows": small["predicted_rows"],
        "covered_all": _percent(found["prior_only"]["all"]["covered"], 0),
        "all_rows": found["prior_only"]["all"]["predicted_rows"],
        "backends": "\n".join(backends),
        "phones": _percent(repeat["qai-hub-models"]["median"]),
        "phones_worst": _percent(repeat["qai-hub-models"]["worst"], 0),
        "phones_pairs": repeat["qai-hub-models"]["pairs"],
        "prefill": _prefill(found["devices"]),
    }  # fmt: skip
    for key, value in values.items():
        text = text.replace("{" + key + "}", str(value))
    return text


def _span(s: list[float]) -> str:
    return f"{s[1]:.3g} ({s[0]:.3g} to {s[2]:.3g})"


def _prefill(devices: list[dict[str, Any]]) -> str:
    known = [d["prefill_median"] for d in devices if d["prefill_median"] is not None]
    return f"{_percent(statistics.median(known))} in the middle of {len(known)} devices, {_percent(max(known), 0)} at worst"


def _plot(path: Path, found: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sure = {d["key"] for d in found["devices"] if d["rows"] >= SMALL_SET}
    fig, axes = plt.subplots(1, 2, figsize=(11, 5.4), sharex=True, sharey=True, layout="constrained")
    panels = [
        ("its model left out (devices with 8 rows or more)", [r for r in found["rows"] if r[1] in sure], 6),
        ("its device left out (the backend's prior)", found["rows"], 9),
    ]
    for ax, (title, rows, at) in zip(axes, panels, strict=True):
        measured = [r[5] for r in rows]
        error = [[r[at] - r[at + 1] for r in rows], [r[at + 2] - r[at] for r in rows]]
        predicted = [r[at] for r in rows]
        ax.errorbar(measured, predicted, yerr=error, fmt="none", ecolor="#9db8d2", elinewidth=0.7, zorder=1)
        ax.scatter(measured, predicted, s=9, color="#1f4e79", zorder=2)
        ends = [min(measured) * 0.7, max(measured) * 1.4]
        ax.plot(ends, ends, color="#666", linewidth=0.8, zorder=0)
        ax.set(xscale="log", yscale="log", title=f"Decode foretold with {title}", xlabel="measured, tokens/s")
        ax.title.set_size(9)
    axes[0].set_ylabel("predicted, tokens/s; bars hold 90 %")
    fig.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(fig)
