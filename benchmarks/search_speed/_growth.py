"""How time grows with depth, width and tokens, on random llamas: exponents by least squares of logarithms."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import _plain
import _tiny

STEPS, WINDOWS = 2, 2
BASE = {"depth": 12, "width": 256, "tokens": 128}
GRID = {"depth": (6, 12, 24, 48), "width": (128, 256, 512, 1024), "tokens": (64, 128, 256, 512)}
METHODS = ("search", "plain loop", "block influence", "forward pass")


def measure(metric: str, say: Callable[[str], None]) -> dict[str, Any]:
    """{axis: {"at": values, "cpu_s": {method: seconds}, "exponent": {method: fitted}}}."""
    found: dict[str, Any] = {}
    for axis, values in GRID.items():
        say(f"growth with {axis}")
        times = [_times(metric, **(BASE | {axis: value})) for value in values]
        seconds = {method: [t[method] for t in times] for method in METHODS}
        fits = {method: exponent(values, s) for method, s in seconds.items()}
        found[axis] = {"at": values, "cpu_s": seconds, "exponent": fits}
    return found | {"base": BASE, "steps": STEPS, "windows": WINDOWS}


def _times(metric: str, depth: int, width: int, tokens: int) -> dict[str, float]:

    from edgeprune import score
    from edgeprune.catalog import load
    from edgeprune.work import Work

    m, spec, text = _tiny.model(depth, width), _tiny.spec(depth), _tiny.text(WINDOWS, tokens)
    _forward(m, text.windows)  # warm
    path, ours = _plain.searched(m, spec, text, score.Method(metric, STEPS, effort=0))
    plain = [_plain.step(m, text.windows, metric, *pair, 6)["cpu_s"] for pair in zip(path, path[1:], strict=False)]
    rate = load("edgeprune.metrics", "block_influence").rate
    return {
        "search": ours["cpu_s"],
        "plain loop": sum(plain),
        "block influence": _cpu_s(lambda: rate(m, text.windows, Work())),
        "forward pass": _cpu_s(lambda: _forward(m, text.windows)),
    }


def _forward(m: Any, windows: list[list[int]]) -> None:
    import torch

    for window in windows:
        m(torch.tensor([window], device=m.device), use_cache=False)


def _cpu_s(job: Callable[[], Any]) -> float:
    """The least of three."""
    found = []
    for _ in range(3):
        start = time.process_time()
        job()
        found.append(time.process_time() - start)
    return min(found)


def exponent(x: Any, y: Any) -> float:
    """k of y = a · xᵏ."""
    import numpy as np

    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
