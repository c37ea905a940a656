"""What width pruning keeps of every block, and how that is chosen: from ratings to whole groups of heads and channels.

Pure: no torch and no weights. `Widths` is to width what the block list of a plan is to depth: the same list, each block
also saying which groups of heads and which channels of its layers are kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from edgeprune import catalog
from edgeprune.blocks import whole
from edgeprune.errors import UsageError
from edgeprune.types import SCHEMA_VERSION, Block, ModelSpec, Record, Text

if TYPE_CHECKING:
    from edgeprune.widths._ratings import Ratings

TOLERANCE = 0.01  # of the parameters left
PUBLISHED_ENDS = (4, 2)  # layers that LLM-Pruner leaves as they are, of 32; as many in proportion of fewer


class ThinBlock(Block):
    """A block, and what is kept of its two layers, counted in the whole model: ranges such as "0-4 7"; None is all."""

    groups: str | None = None  # of heads that share keys and values
    channels: str | None = None  # of the feed-forward


class Widths(Record):
    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    family: str
    fingerprint: str
    method: str
    source: str  # the paper
    ratio: float  # share of the blocks' parameters that was to go
    rounding: int  # widths are multiples of it
    uniform: bool  # one width for all layers
    blocks: tuple[ThinBlock, ...]
    hidden: int | None = (
        None  # what is kept of the stream between the layers, in a rotated basis; None: it is as it was
    )
    text: Text | None = None
    versions: dict[str, str] = {}


class Unit(NamedTuple):
    """How much there is of a layer, and the parameters that go with one group of heads and with one channel."""

    n_groups: int
    n_channels: int
    group: int
    channel: int
    group_step: int  # as many groups as make a whole number of rounding blocks


def make_plan(
    spec: ModelSpec, method: str, ratings: Ratings | None, ratio: float, rounding: int = 32, uniform: bool = True,
    text: Text | None = None, versions: dict[str, str] | None = None,
) -> Widths:  # fmt: skip
    """What `method` (of edgeprune.widths) keeps so that `ratio` of the blocks' parameters go, of the whole model's count
    within 1 % of what is left: as many as a block list leaves whose `ratio_of` it is.

    ratings: None for a method that rotates. rounding: widths are multiples of it (32: llama.cpp's Q4_0 and ONNX's int4;
    256: K-quants), or all there is. uniform: the same in every layer, else as the method is published.
    Raises UsageError for a ratio out of range, and for one that no such widths come near, with those they do.
    """
    check(method, ratio, rounding)
    module = catalog.load("edgeprune.widths", method)
    blocks, hidden = tuple(ThinBlock(attn=b.attn, ffn=b.ffn) for b in whole(spec.n_blocks)), None
    if ratings is None:
        hidden = _hidden(spec, ratio, rounding)
    elif ratio:
        kept = _kept(spec, ratings, _Target.of(spec, ratio), rounding, module.SPREAD, uniform, module.COMPENSATES)
        units = _unit(spec, rounding)
        blocks = tuple(
            ThinBlock(attn=i, ffn=i, groups=_some(groups, units.n_groups), channels=_some(channels, units.n_channels))
            for i, (groups, channels) in enumerate(kept)
        )
    return Widths(
        model=spec.name, family=spec.family, fingerprint=spec.fingerprint, method=method, source=module.SOURCE, ratio=ratio,
        rounding=rounding, uniform=uniform, blocks=blocks, hidden=hidden, text=text,
        versions=versions or {},
    )  # fmt: skip


def check(method: str, ratio: float, rounding: int, spec: ModelSpec | None = None) -> None:
    """Raises UsageError for an unknown method, and for numbers that no plan can be made for; of a method that rotates, whose
    widths follow from the shape alone, also for what no width of the stream of `spec` comes near."""
    module = catalog.load("edgeprune.widths", method)
    if not 0 <= ratio < 1:
        raise UsageError(
            f"--ratio {ratio:g}: a share of the blocks' parameters is meant, from 0 to less than 1, e.g. 0.2"
        )
    if rounding < 1:
        raise UsageError(f"--round {rounding}: widths can be multiples of 1 or more, e.g. 32")
    if spec is not None and hasattr(module, "rotation"):
        _hidden(spec, ratio, rounding)


def sizes(spec: ModelSpec) -> dict[str, str]:
    """How wide the stream and the layers are, as text: one number, or "least-most" where layers differ."""
    ffn = [b.ffn.tensors.get("ffn_down.weight", (0, spec.intermediate_size))[1] for b in spec.blocks if b.ffn.tensors]
    columns = [b.attn.tensors.get("attn_output.weight", (0, 0))[1] for b in spec.blocks if b.attn.tensors]
    heads = [n // spec.head_dim or spec.n_heads for n in columns] or [spec.n_heads]
    groups = [n * spec.n_kv_heads // spec.n_heads for n in heads]
    found = {
        "stream": [spec.hidden_size],
        "heads": heads,
        "groups": groups,
        "feed-forward": ffn or [spec.intermediate_size],
    }
    return {k: str(min(v)) if min(v) == max(v) else f"{min(v)}-{max(v)}" for k, v in found.items()}


def ratio_of(spec: ModelSpec, blocks: Sequence[Block]) -> float:
    """The share of the blocks' parameters that a block list removes: what to ask of a width plan to match it."""
    kept = sum(spec.blocks[b.attn].attn.params for b in blocks if b.attn is not None)
    kept += sum(spec.blocks[b.ffn].ffn.params for b in blocks if b.ffn is not None)
    return 1 - kept / block_params(spec)


def block_params(spec: ModelSpec) -> int:
    return sum(b.attn.params + b.ffn.params for b in spec.blocks)


def params_left(spec: ModelSpec, plan: Widths) -> int:
    """Of the whole model, without the biases that a method adds."""
    if plan.hidden is not None:
        return _sliced_params(spec, plan.hidden)
    unit = _unit(spec, 1)
    return spec.params - sum(
        (unit.n_groups - len(ranges(b.groups, unit.n_groups))) * unit.group
        + (unit.n_channels - len(ranges(b.channels, unit.n_channels))) * unit.channel
        for b in plan.blocks
    )


def to_ranges(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> "0-2 5"."""
    runs = itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    ends = ([n for _, n in run] for _, run in runs)
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in ends)


def ranges(text: str | None, n: int) -> list[int]:
    """The reverse of `to_ranges`; None is all n. Raises ValueError for anything that is not some of 0 … n-1 in order."""
    if text is None:
        return list(range(n))
    pairs = [part.partition("-") for part in text.split()]
    found = [i for first, _, last in pairs for i in range(int(first), int(last or first) + 1)]
    if not found or found != sorted(set(found)) or found[-1] >= n:
        raise ValueError(f"{text!r} is not some of {n}")
    return found


class _Target(NamedTuple):
    """Parameters to remove, and how far from it will do."""

    removed: float
    tolerance: float
    of_blocks: int

    @classmethod
    def of(cls, spec: ModelSpec, ratio: float) -> _Target:
        n = block_params(spec)
        return cls(ratio * n, TOLERANCE * (spec.params - ratio * n), n)

    def met(self, removed: float) -> bool:
        return abs(removed - self.removed) <= self.tolerance

    def refuse(self, what: str, reached: Iterable[float]) -> UsageError:
        """The nearest that widths reach on either side."""
        found = sorted({*reached})
        below = [x for x in found if x < self.removed][-1:]
        above = [x for x in found if x > self.removed][:1]
        near = " or ".join(f"{x / self.of_blocks:.3f}" for x in below + above)
        return UsageError(
            f"--ratio {self.removed / self.of_blocks:.3g}: {what} don't come within {TOLERANCE:.0%} of that many parameters; "
            f"the nearest ratios are {near}, or take a smaller --round"
        )


def _unit(spec: ModelSpec, rounding: int) -> Unit:
    attn, ffn = spec.blocks[0].attn.tensors, spec.blocks[0].ffn.tensors
    n_groups, n_channels = spec.n_kv_heads, ffn["ffn_down.weight"][1]
    width = spec.n_heads // n_groups * spec.head_dim
    step = rounding // math.gcd(width, rounding)

    def each(tensors: dict[str, tuple[int, ...]], output: str, n: int) -> int:
        mine = (s for role, s in tensors.items() if "norm." not in role and role != f"{output}.bias")
        return sum(math.prod(s) for s in mine) // n

    return Unit(
        n_groups, n_channels, each(attn, "attn_output", n_groups), each(ffn, "ffn_down", n_channels),
        1 if n_groups % step else step,
    )  # fmt: skip


def _kept(
    spec: ModelSpec, ratings: Ratings, target: _Target, rounding: int, spread: str, uniform: bool, biased: bool
) -> list[tuple[list[int], list[int]]]:
    """Per layer the groups and the channels that stay."""
    unit = _unit(spec, rounding)
    n = spec.n_blocks
    if spread == "global":
        counts = _by_threshold(_unit(spec, 1) if uniform else unit, ratings, target, 1 if uniform else rounding)
        if uniform:  # what the threshold leaves on average
            wanted = sum(k for k, _ in counts) / n
            counts = [_alike(spec, unit, n, target, rounding, wanted, biased)] * n
    else:
        first, last = (0, 0) if uniform or spread == "equal" else (min(e, round(e * n / 32)) for e in PUBLISHED_ENDS)
        inner = _alike(spec, unit, n - first - last, target, rounding, None, biased)
        counts = [inner if first <= i < n - last else (unit.n_groups, unit.n_channels) for i in range(n)]
    return [
        (_best(groups, k), _best(channels, c))
        for groups, channels, (k, c) in zip(ratings.groups, ratings.channels, counts, strict=True)
    ]


def _alike(
    spec: ModelSpec, unit: Unit, n_layers: int, target: _Target, rounding: int, wanted: float | None, biased: bool
) -> tuple[int, int]:
    """Groups and channels of each of `n_layers` alike. Groups are within a step of `wanted`, or of the share that attention
    has of all that goes, the nearest first that channels can make up for."""
    per_group = spec.n_heads // unit.n_groups
    groups = [
        k
        for k in {unit.n_groups, *range(unit.group_step, unit.n_groups, unit.group_step)}
        if _has_config(spec.family, spec.hidden_size, k * per_group, biased)
    ]
    channels = [unit.n_channels, *range(unit.n_channels - 1 - (unit.n_channels - 1) % rounding, 0, -rounding)]

    def removed(k: int, c: int) -> int:
        return n_layers * ((unit.n_groups - k) * unit.group + (unit.n_channels - c) * unit.channel)

    def off(k: int, gone: float) -> float:
        return abs(k - unit.n_groups * (1 - gone / target.of_blocks * spec.n_blocks / n_layers))

    best = off if wanted is None else lambda k, gone: min(off(k, gone), abs(k - wanted))
    for k in sorted(groups, key=lambda k: (off(k, target.removed) if wanted is None else abs(k - wanted), -k)):
        c = min(channels, key=lambda c: abs(removed(k, c) - target.removed))
        if target.met(removed(k, c)) and best(k, target.removed) <= unit.group_step:
            return k, c
    reached = (removed(k, c) for k in groups for c in channels if off(k, removed(k, c)) <= unit.group_step)
    raise target.refuse(f"equal widths in {n_layers} layers, in steps of {rounding},", reached)


def _has_config(family: str, hidden: int, n_heads: int, biased: bool) -> bool:
    """Whether transformers has a config for so many heads in every layer; see UNDIVIDED in edgeprune.families."""
    module = catalog.load("edgeprune.families", family)
    return hidden % n_heads == 0 or not hasattr(module, "UNDIVIDED") or (module.UNDIVIDED is not None and not biased)


def _by_threshold(unit: Unit, ratings: Ratings, target: _Target, rounding: int) -> list[tuple[int, int]]:
    """Groups and channels left in each layer, lowest rated out first over all layers, at least one step in each."""
    steps = []  # (rating, layer, half, how many, parameters)
    for i, halves in enumerate(zip(ratings.groups, ratings.channels, strict=True)):
        for half, (rated, size, each) in enumerate(
            zip(halves, (unit.group_step, rounding), (unit.group, unit.channel), strict=True)
        ):
            order = sorted(rated)
            starts = [0, *range(len(order) % size or size, len(order), size)]
            for start, end in itertools.pairwise(starts):
                n = end - start
                steps.append((math.fsum(order[start:end]) / n, i, half, n, n * each))
    steps.sort()
    sums = [0, *itertools.accumulate(step[-1] for step in steps)]
    taken = min(range(len(sums)), key=lambda k: abs(sums[k] - target.removed))
    if not target.met(sums[taken]):
        raise target.refuse(f"widths in steps of {rounding}", sums)
    left = [[unit.n_groups, unit.n_channels] for _ in ratings.groups]
    for _, i, half, n, _ in steps[:taken]:
        left[i][half] -= n
    return [(k, c) for k, c in left]


def _best(ratings: Sequence[float], n: int) -> list[int]:
    """The n highest rated, in order; of equal ones the earlier."""
    return sorted(sorted(range(len(ratings)), key=lambda i: (-ratings[i], i))[:n])


def _some(kept: list[int], n: int) -> str | None:
    return None if len(kept) == n else to_ranges(kept)


def _hidden(spec: ModelSpec, ratio: float, rounding: int) -> int:
    """Width of the stream. A tied embedding comes to stand twice, since the last norm's gain goes into the head."""
    d = spec.hidden_size
    if not ratio:
        return d
    target = _Target.of(spec, ratio)
    reached = {n: spec.params - _sliced_params(spec, n) for n in [d, *range(d - 1 - (d - 1) % rounding, 0, -rounding)]}
    best = min(reached, key=lambda n: abs(reached[n] - target.removed))
    if not target.met(reached[best]):
        raise target.refuse(f"streams in steps of {rounding}", reached.values())
    return best


def _sliced_params(spec: ModelSpec, hidden: int) -> int:
    """Every tensor but a bias of an input projection or a norm of heads has one side along the stream."""
    n = 0
    for tensors in [spec.globals, *(half.tensors for b in spec.blocks for half in (b.attn, b.ffn))]:
        for role, shape in tensors.items():
            along = len(shape) == 2 or role.startswith(
                ("attn_norm", "ffn_norm", "output_norm", "attn_output", "ffn_down")
            )
            n += math.prod(shape) * hidden // spec.hidden_size if along else math.prod(shape)
    return n + (
        math.prod(spec.globals["token_embd.weight"]) * hidden // spec.hidden_size if spec.tied_embeddings else 0
    )
