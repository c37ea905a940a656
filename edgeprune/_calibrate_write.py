"""What a calibration leaves behind: the profile, its fit with residuals and raw samples as JSON, and a plot."""

from __future__ import annotations

import io
import json
import math
import statistics
from pathlib import Path
from typing import Any

from edgeprune._profile_toml import parse, toml
from edgeprune._profile_write import toml_text
from edgeprune._terms import Fitted, Judged
from edgeprune.errors import EdgepruneError
from edgeprune.files import write_text

_COLOURS = ("#1f5fa8", "#c2571a", "#3c7d3c", "#7a4fa0", "#8a6d1f", "#5a5a5a")
_MARKS = {"decode": "o", "prefill": "s"}


def paths(out: Path) -> tuple[Path, Path, Path]:
    """Profile, fit and plot."""
    return out, out.with_suffix(".fit.json"), out.with_suffix(".fit.svg")


def write(
    out: Path, document: dict[str, Any], fitted: list[Fitted], memory: list[dict[str, Any]], force: bool
) -> dict[str, Any]:
    """Write all three, the profile last and only when the loader takes it. Returns what the JSON holds."""
    text = toml_text(document)
    _check(text)
    found = summary(document, fitted, memory)
    profile, fit, plot = paths(out)
    svg = draw(fitted, f"{document['name']}: predicted against measured")
    write_text(plot, svg, force)
    write_text(fit, json.dumps(found, indent=1) + "\n", force)
    write_text(profile, text, force)
    return found


def summary(document: dict[str, Any], fitted: list[Fitted], memory: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "device": document["id"],
        "calibrations": [f.calibration.model_dump(mode="json", exclude_none=True) for f in fitted],
        "errors": errors([j for f in fitted for j in f.rows]),
        "unclear": [line for f in fitted for line in f.unclear],
        "rows": [_row(j) for f in fitted for j in f.rows],
        "memory": memory,
    }


def errors(rows: list[Judged]) -> list[dict[str, Any]]:
    """Median and worst |predicted / measured - 1| by runtime, backend and what was timed."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for j in rows:
        o = j.observation
        groups.setdefault((o.runtime, o.backend, o.what), []).append(abs(j.ratio - 1))
    return [
        {"runtime": r, "backend": b, "what": w, "rows": len(e), "median": statistics.median(e), "worst": max(e)}
        for (r, b, w), e in groups.items()
    ]


def draw(fitted: list[Fitted], title: str) -> str:
    """Two panels, decode and prefill: seconds measured across, seconds predicted up, the diagonal between."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = [j for f in fitted for j in f.rows]
    kinds = [kind for kind in _MARKS if any(j.observation.what == kind for j in rows)]
    keys = list(dict.fromkeys((j.observation.runtime, j.observation.backend) for j in rows))
    with rc_context({"svg.hashsalt": "edgeprune", "font.size": 9}):
        fig = Figure(figsize=(4.6 * max(1, len(kinds)), 4.4), layout="constrained")
        fig.suptitle(title, fontsize=10)
        for n, kind in enumerate(kinds, 1):
            ax = fig.add_subplot(1, len(kinds), n)
            shown = [j for j in rows if j.observation.what == kind]
            ends = [x * 1e3 for j in shown for x in (j.observation.seconds, j.predicted_s)]
            low, high = min(ends) / 1.3, max(ends) * 1.3
            ax.plot([low, high], [low, high], color="#999999", linewidth=0.8, zorder=1)
            for i, key in enumerate(keys):
                mine = [j for j in shown if (j.observation.runtime, j.observation.backend) == key]
                x, y = [j.observation.seconds * 1e3 for j in mine], [j.predicted_s * 1e3 for j in mine]
                label = f"{key[0]} on {key[1]}, {len(mine)} rows"
                ax.plot(x, y, _MARKS[kind], color=_COLOURS[i % len(_COLOURS)], markersize=4, alpha=0.8, label=label)
            ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
            ax.set_xlabel("measured, ms" + (" per token" if kind == "decode" else " per prompt"))
            ax.set_ylabel("predicted, ms")
            ax.set_title(kind, fontsize=9, loc="left")
            ax.legend(fontsize=7.5, frameon=False, loc="upper left")
        buffer = io.StringIO()
        fig.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _row(j: Judged) -> dict[str, Any]:
    o = j.observation
    return {
        "model": o.model, "runtime": o.runtime, "backend": o.backend, "quant": o.quant, "what": o.what,
        "tokens": o.tokens, "measured_s": o.seconds, "predicted_s": j.predicted_s,
        "residual": round(math.log(j.ratio), 5), "samples_s": [float(f"{s:.6g}") for s in o.samples],
    }  # fmt: skip


def _check(text: str) -> None:
    """A profile that our own loader would refuse is ours to mend, not to leave lying there."""
    try:
        parse(toml(text))
    except ValueError as e:
        raise EdgepruneError(
            f"the profile that came of this is not one the loader takes: {e}; please report it"
        ) from None
