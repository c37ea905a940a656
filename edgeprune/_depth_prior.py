"""What leaving out a share of a model's blocks is expected to cost: a prior from published results, unhealed.

Over the shares that were published, the logarithm of the perplexity ratio grows about in proportion to the share: SLEB
has 0.25 at 10 % and 0.53 at 20 %. The KL divergence is near that logarithm (SmolLM2-135M, wikitext-2: 0.47, 1.04 and
1.66 nats for 0.48, 1.02 and 1.66 at 10, 20 and 30 %).
"""

from __future__ import annotations

import functools
import math
from statistics import median
from typing import NamedTuple

_BLOCKPRUNER = "BlockPruner (arXiv:2406.10594) table 1, WikiText-2, context 2048"
_SLEB = "SLEB (arXiv:2402.09025), C4"
_OURS = "benchmarks/plan_quality, greedy_kl"


class Row(NamedTuple):
    model: str
    method: str
    searched: bool  # removals are rated again after each, as our search does
    share: float  # of the blocks left out
    whole: float  # perplexity
    pruned: float
    source: str


LARGE = (
    Row("Llama-2-7B", "SLEB", True, 0.10, 7.26, 9.34, _SLEB),
    Row("Llama-2-7B", "SLEB", True, 0.20, 7.26, 12.32, _SLEB),
    Row("Llama-2-7B", "BlockPruner", True, 0.22, 5.47, 11.51, _BLOCKPRUNER),
    Row("Llama-2-13B", "BlockPruner", True, 0.25, 4.89, 8.16, _BLOCKPRUNER),
    Row("Baichuan2-7B", "BlockPruner", True, 0.22, 6.04, 15.38, _BLOCKPRUNER),
    Row("Baichuan2-13B", "BlockPruner", True, 0.25, 6.66, 15.36, _BLOCKPRUNER),
    Row("Qwen1.5-7B", "BlockPruner", True, 0.22, 7.95, 20.58, _BLOCKPRUNER),
    Row("Qwen1.5-14B", "BlockPruner", True, 0.22, 7.44, 15.67, _BLOCKPRUNER),
    Row("Llama-2-7B", "ShortGPT", False, 0.22, 5.47, 18.45, _BLOCKPRUNER),
    Row("Llama-2-13B", "ShortGPT", False, 0.25, 4.89, 20.06, _BLOCKPRUNER),
    Row("Baichuan2-7B", "ShortGPT", False, 0.22, 6.04, 31.05, _BLOCKPRUNER),
    Row("Baichuan2-13B", "ShortGPT", False, 0.25, 6.66, 20.69, _BLOCKPRUNER),
    Row("Qwen1.5-7B", "ShortGPT", False, 0.22, 7.95, 49.88, _BLOCKPRUNER),
    Row("Qwen1.5-14B", "ShortGPT", False, 0.22, 7.44, 1237.21, _BLOCKPRUNER),
)
SMALL = (
    Row("SmolLM2-135M", "greedy_kl", True, 0.10, 19.93, 32.12, f"{_OURS}, WikiText-2, context 2048"),
    Row("SmolLM2-135M", "greedy_kl", True, 0.20, 19.93, 55.18, f"{_OURS}, WikiText-2, context 2048"),
    Row("SmolLM2-135M", "greedy_kl", True, 0.30, 19.93, 104.3, f"{_OURS}, WikiText-2, context 2048"),
    Row("SmolLM2-135M", "greedy_kl", True, 0.10, 35.29, 48.47, f"{_OURS}, C4, context 512"),
    Row("SmolLM2-135M", "greedy_kl", True, 0.20, 35.29, 77.96, f"{_OURS}, C4, context 512"),
    Row("SmolLM2-135M", "greedy_kl", True, 0.30, 35.29, 120.9, f"{_OURS}, C4, context 512"),
    Row(
        "SmolLM2-135M", "block_influence", False, 0.10, 19.93, 31.9, "benchmarks/plan_quality, WikiText-2, context 2048"
    ),
    Row(
        "SmolLM2-135M",
        "block_influence",
        False,
        0.20,
        19.93,
        63.26,
        "benchmarks/plan_quality, WikiText-2, context 2048",
    ),
    Row(
        "SmolLM2-135M",
        "block_influence",
        False,
        0.30,
        19.93,
        147.3,
        "benchmarks/plan_quality, WikiText-2, context 2048",
    ),
)
SMALL_PARAMS = 1e9  # below, models lose as the small rows say
MOST = 0.30  # the largest share with a row; nothing is said beyond it


class Loss(NamedTuple):
    """Perplexity over the whole model's, and its logarithm as the expected KL in nats per token."""

    low: float
    middle: float
    high: float
    basis: str

    @property
    def kl(self) -> float:
        return math.log(self.middle)


@functools.cache
def removal_loss(share: float, params: int) -> Loss | None:
    """For `share` of the blocks (0 to 1) of a model with `params` parameters; None beyond what was published.

    The middle is the median of methods that search, low and high the 10th and 90th percentile of all rows.
    """
    if share > MOST + 1e-9:
        return None
    rows = SMALL if params < SMALL_PARAMS else LARGE
    low, middle, high = slopes(rows)
    names = ", ".join(dict.fromkeys(row.method for row in rows))
    basis = f"prior: {len(rows)} results of {names} on {len({row.model for row in rows})} models, nothing healed"
    return Loss(*(math.exp(slope * share) for slope in (low, middle, high)), basis)


@functools.cache
def slopes(rows: tuple[Row, ...]) -> tuple[float, float, float]:
    """ln(perplexity ratio) per share of blocks: 10th percentile, median of the searching methods, 90th percentile."""
    found = sorted(math.log(row.pruned / row.whole) / row.share for row in rows)
    searched = median(math.log(row.pruned / row.whole) / row.share for row in rows if row.searched)
    return _quantile(found, 0.1), searched, _quantile(found, 0.9)


def _quantile(ordered: list[float], q: float) -> float:
    """Linear between neighbours."""
    at = q * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])
