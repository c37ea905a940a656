"""Wanda-sp: Wanda's score, |W_ij| · ‖x_j‖₂ (Sun et al. 2023, arXiv:2306.11695), for whole channels and groups of heads:
the mean over an output projection's rows, summed over a group's columns, the same number removed in every layer (the
structured form that FLAP, arXiv:2312.11983, compares with; github.com/CASIA-IVA-Lab/FLAP, lib/prune.py, prune_wanda_sp).

Inputs x are the whole model's; that code takes each layer's behind layers that are pruned already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeprune.widths._inputs import Inputs, gather, n_groups
from edgeprune.widths._ratings import Ratings, by_group, lists

if TYPE_CHECKING:
    import torch

SOURCE = "Wanda, Sun et al. 2023, arXiv:2306.11695, as structured in FLAP, An et al. 2023, arXiv:2312.11983"
SPREAD = "equal"
COMPENSATES = False


def rate(model: Any, windows: Sequence[Sequence[int]], progress: Callable[[int, int], None]) -> Ratings:
    attention, ffn = gather(model, windows, progress)
    groups = [by_group(_scores(x), n_groups(model)) for x in attention]
    return Ratings(lists(groups), lists([_scores(x) for x in ffn]))


def _scores(x: Inputs) -> torch.Tensor:
    return x.weight.double().cpu().abs().mean(0) * x.squares.sqrt()
