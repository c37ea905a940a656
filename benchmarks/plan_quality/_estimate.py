"""How long it will take, from a few forward passes and a count of what there is to do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

TAIL = 0.55  # of a forward pass: what comes after a cut, on average, head included
FIRST, LATER = 0.3, 0.1  # of a search's candidates that are measured on its first window, and on the others


def estimate(folder: Path, spec: Any, contest: Any, calibration: Any, readings: list[Any]) -> str:
    """One sentence. Counts forward passes of one window; the machine's other work is not foreseen."""
    from edgeprune.compare import block_params, params_removed
    from edgeprune.metrics._halves import all_halves
    from edgeprune.score import chooses_in, load_metric
    from edgeprune.work import ranks

    precisions = {contest.measure_precision, *(chooses_in(metric, contest.precision) for metric in contest.metrics)}
    forward = {p: _forward_s(folder, calibration.context_tokens, p) for p in precisions}
    choose = 0.0
    for metric in contest.metrics:
        module, seconds = load_metric(metric), forward[chooses_in(metric, contest.precision)] * calibration.n_windows
        if hasattr(module, "children"):
            first = module.children(all_halves(spec.n_blocks))
            gone = sum(params_removed(spec, child) for child in first) / len(first)
            steps = max(contest.amounts) * block_params(spec) / gone
            choose += seconds * steps * len(first) * TAIL * (FIRST / calibration.n_windows + LATER)
        else:
            choose += seconds * {"taylor": 3, "magnitude": 0, "perplexity": spec.n_blocks * TAIL}.get(metric, 1)
    lists = 1 + TAIL * len(contest.metrics) * len(contest.amounts)
    tokens = sum(r.n_windows * r.context_tokens for r in (calibration, *readings))
    measure = forward[contest.measure_precision] * lists * tokens / calibration.context_tokens
    world = ranks()[1]
    return (
        f"a forward pass of {calibration.context_tokens} tokens takes {forward[contest.measure_precision]:.2f} s: about"
        f" {choose / 60 / world:.0f} minutes to choose and {measure / 60 / world:.0f} to measure, if nothing else runs"
        f" ({world} process{'es' if world > 1 else ''}); --eval-windows and --precision bfloat16 shorten it"
    )


def _forward_s(folder: Path, tokens: int, precision: str | None) -> float:
    import torch

    from edgeprune.torch_model import load

    model = load(folder, dtype=precision)
    window = torch.arange(tokens)[None] % model.config.vocab_size
    seconds = []
    with torch.inference_mode():
        for _ in range(3):
            start = time.monotonic()
            model(window.to(model.device), use_cache=False)
            seconds.append(time.monotonic() - start)
    return min(seconds)
