"""What a search costs, and what the plain loop does: for every candidate the whole pruned model on all of the text."""

from __future__ import annotations

import time
from typing import Any

from edgeprune import score, torch_model
from edgeprune.blocks import from_sublayers, kept_sublayers
from edgeprune.catalog import load
from edgeprune.types import Blocks
from edgeprune.work import Work


def searched(m: Any, spec: Any, text: Any, method: score.Method) -> tuple[list[Blocks], dict[str, float]]:
    """The path that `edgeprune score` would take, and its cost."""
    start = time.monotonic(), time.process_time()
    path, _ = score.removals(m, spec, text, method, Work())
    return path, {"s": time.monotonic() - start[0], "cpu_s": time.process_time() - start[1]}


def step(
    m: Any, windows: list[list[int]], metric: str, before: Blocks, chosen: Blocks | None, sample: int
) -> dict[str, Any]:
    """One removal by the plain loop: seconds for all candidates, `sample` of them run (0: all), evenly spread, `chosen`
    among them.

    "best" is the least damaging; or "excess" is how much more damage, as a fraction, `chosen` does than it. What the loop
    would be spared by a little care is not counted: building the pruned models, and the whole model's
    probabilities, which are computed once per window.
    """
    import torch

    module = load("edgeprune.metrics", metric)
    candidates = [from_sublayers(list(kept)) for kept in module.children(tuple(kept_sublayers(before)))]
    every = len(candidates) if not sample else min(sample, len(candidates))
    run = {candidates[k * len(candidates) // every] for k in range(every)} | ({chosen} if chosen else set())
    views = {blocks: torch_model.view(m, blocks) for blocks in candidates if blocks in run}
    damage = dict.fromkeys(views, 0.0)
    spent = [0.0, 0.0]
    for window in windows:
        tokens = torch.tensor([window], device=m.device)
        whole = m(tokens, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        p, targets = whole.exp(), tokens[0, 1:, None]
        for blocks, pruned in views.items():
            start = time.monotonic(), time.process_time()
            q = pruned(tokens, use_cache=False).logits[0, :-1].float().log_softmax(-1)
            if module.DAMAGE == "kl":
                damage[blocks] += (p * (whole - q)).sum(dtype=torch.float64).item()
            else:
                damage[blocks] -= q.gather(1, targets).sum(dtype=torch.float64).item()
            spent = [spent[0] + time.monotonic() - start[0], spent[1] + time.process_time() - start[1]]
    best = min(damage, key=damage.__getitem__)
    scale = len(candidates) / len(views)
    told = {"candidates": len(candidates), "run": len(views), "s": spent[0] * scale, "cpu_s": spent[1] * scale}
    return told | ({"best": best} if chosen is None else {"excess": damage[chosen] / damage[best] - 1})
