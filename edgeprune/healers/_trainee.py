"""What a trained healer and the training loop say to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeprune import families
from edgeprune.types import Block, Blocks

if TYPE_CHECKING:
    import torch


class Recipe(NamedTuple):
    """AdamW; the rate rises linearly over the first `warmup` of all steps, then falls along a cosine to `last_rate`."""

    rate: float
    last_rate: float
    warmup: float
    batch_tokens: int  # of one step, over all processes; less where the budget gives too few steps
    weight_decay: float = 0.0  # of matrices
    clip: float = 1.0  # of the gradient's norm
    beta1: float = 0.9
    beta2: float = 0.999


class Batch(NamedTuple):
    """Sequences filled up on the right to one length."""

    tokens: torch.Tensor  # (n, t)
    learn: torch.Tensor  # (n, t) bool: the tokens to be predicted; never a first one, never what is filled up
    real: torch.Tensor  # (n, t) bool: not filled up


class Cut(NamedTuple):
    """`before`: the pruned folder's block list; `blocks`: the student's, which has more where some were given back."""

    before: Blocks
    blocks: Blocks


class Trainee(NamedTuple):
    """`parameters` are the student's, those that require gradients. `loss(batch, share)` is summed over the batch's learnt
    tokens, at this share of all steps. `merged(old)` gives (name, values) of every stored weight that training changed,
    where old(name) are its stored values in float32."""

    parameters: dict[str, torch.nn.Parameter]
    loss: Callable[[Batch, float], torch.Tensor]
    merged: Callable[[Callable[[str], torch.Tensor]], Iterator[tuple[str, torch.Tensor]]]


def weights_of(student: Any, blocks: Blocks, want: Callable[[str], bool]) -> dict[str, torch.nn.Parameter]:
    """Those weights of the student that `want(name)`; never of a half that a block lacks, which must stay zero."""
    family = families.for_model_type(student.config.model_type)
    lacking = tuple(
        f"{family.LAYER.format(i=n)}{path}."
        for n, block in enumerate(blocks)
        for paths, there in ((family.ATTN, block.attn), (family.FFN, block.ffn))
        if there is None
        for path in paths
    )
    return {n: p for n, p in student.named_parameters() if want(n) and not n.startswith(lacking)}


def train_these(student: Any, parameters: dict[str, torch.nn.Parameter]) -> None:
    """Of all the student's weights only these require gradients."""
    student.requires_grad_(False)
    for p in parameters.values():
        p.requires_grad_(True)


def as_they_are(
    student: Any, parameters: dict[str, torch.nn.Parameter]
) -> Callable[[Callable[[str], torch.Tensor]], Iterator[tuple[str, torch.Tensor]]]:
    """`merged` of weights that are stored as they were trained. Of a tied matrix every name is told."""

    def merged(old: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        chosen = {id(p) for p in parameters.values()}
        for name, p in student.named_parameters(remove_duplicate=False):
            if id(p) in chosen:
                yield name, p.detach()

    return merged


def place_of(half: tuple[str, int], blocks: Blocks) -> int:
    """Which block of the list has this half of the whole model."""
    kind, layer = half
    return next(n for n, b in enumerate(blocks) if layer == (b.attn if kind == "A" else b.ffn))


def own_blocks(before: Blocks, blocks: Blocks) -> Blocks:
    """`before` in the numbers of a model that has `blocks`: what to view of it."""
    return tuple(
        Block(
            attn=None if b.attn is None else place_of(("A", b.attn), blocks),
            ffn=None if b.ffn is None else place_of(("F", b.ffn), blocks),
        )
        for b in before
    )
