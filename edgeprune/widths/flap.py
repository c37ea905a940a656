"""FLAP: what fluctuates least can be replaced by its mean (An et al. 2023, arXiv:2312.11983).

S_j = Var(x_j) · ‖W_:j‖² of column j of an output projection, standardised within its layer (for
attention S_j² is, and the mean over a group's columns stands for the group, as in github.com/CASIA-IVA-Lab/FLAP,
lib/prune.py, "WIFV", "AL-AM"). One threshold for all layers, groups and channels together. The mean of what is removed
becomes a bias: b = W (x̄ ⊙ removed).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeprune.widths._inputs import Inputs, gather, n_groups
from edgeprune.widths._ratings import Ratings, by_group, lists

if TYPE_CHECKING:
    import torch

SOURCE = "FLAP, An et al. 2023, arXiv:2312.11983"
SPREAD = "global"
COMPENSATES = True


def rate(model: Any, windows: Sequence[Sequence[int]], progress: Callable[[int, int], None]) -> Ratings:
    attention, ffn = gather(model, windows, progress)
    groups = [by_group(_standardised(_fluctuation(x).square()), n_groups(model), mean=True) for x in attention]
    channels = [_standardised(_fluctuation(x)) for x in ffn]
    means = ([x.mean for x in inputs] for inputs in (attention, ffn))
    return Ratings(lists(groups), lists(channels), *map(lists, means))


def _fluctuation(x: Inputs) -> torch.Tensor:
    return x.variance * x.weight.double().cpu().square().sum(0)


def _standardised(scores: torch.Tensor) -> torch.Tensor:
    return (scores - scores.mean()) / scores.std()
