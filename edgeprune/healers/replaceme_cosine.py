"""ReplaceMe (Shopkhoev et al. 2025, arXiv:2505.02819), cosine: the linear map T that takes the place of what was removed makes
directions right, by steps of its gradient.

T = argmin mean (1 − cos(M T + L_s − M, L_e)) over tokens, W ← TᵀW, with M, L_s and L_e as for least squares (`replaceme`), by
Adam (Kingma and Ba 2015, arXiv:1412.6980) on batches of 1024 tokens at their rate of 1e-4. They take 80,000 steps from the
identity, on as many batches; with the few tokens here it starts from the least-squares solution and takes 300.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.healers._linear import least_squares
from edgeprune.healers._moments import Scope, Seen

if TYPE_CHECKING:
    import torch

SOURCE = "ReplaceMe, cosine (Shopkhoev et al. 2025, arXiv:2505.02819)"
BIASES = False
STEPS, RATE = 300, 1e-4
BATCH_TOKENS = 1024
SEED = 0  # of the order of the tokens


def solve(seen: Seen, weight: torch.Tensor) -> torch.Tensor | None:
    """W changes by (T − I)ᵀ W; weight (d, k). None where nothing is lacking."""
    import torch

    start, w = least_squares(seen, weight), weight.float()
    if start is None:
        return None
    given, here, wanted = _rows(seen, w)
    less_identity = start.float()
    mean, square = torch.zeros_like(less_identity), torch.zeros_like(less_identity)
    draw = torch.Generator().manual_seed(SEED)
    for step in range(1, STEPS + 1):
        some = torch.randint(len(given), (BATCH_TOKENS,), generator=draw).to(w.device)
        slope = gradient(less_identity, given[some].float(), here[some].float(), wanted[some].float())
        mean.lerp_(slope, 0.1)
        square.lerp_(slope.square(), 0.001)
        less_identity -= RATE * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return w.T @ less_identity


def gradient(
    less_identity: torch.Tensor, given: torch.Tensor, here: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """Of mean (1 − cos(y, wanted)) in T (d, d), y = here + given (T − I): givenᵀ (cos ŷ − ŵ) / (n ‖y‖), hats being unit length."""
    import torch.nn.functional as F

    y = here + given @ less_identity
    unit, aim = F.normalize(y, dim=-1), F.normalize(wanted, dim=-1)
    cosine = (unit * aim).sum(-1, keepdim=True)
    return given.T @ ((cosine * unit - aim) / y.norm(dim=-1, keepdim=True).clamp_min(1e-12)) / len(y)


def _rows(seen: Seen, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(what the sub-layer adds, the stream after it, the stream wanted), each (tokens, d) and in the stream's type."""
    import torch

    added = torch.stack([(f.float() @ weight.T * seen.scale).to(seen.stream.dtype) for f in seen.inputs])
    return added.flatten(0, 1), seen.stream.flatten(0, 1), seen.target.flatten(0, 1)


SCOPES = {"feed-forwards before a cut": Scope(solve, float)}
