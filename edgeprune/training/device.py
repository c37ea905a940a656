"""Where and in which types a student is trained, and whether there is room for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from edgeprune.errors import OutOfResources
from edgeprune.healers._trainee import Trainee
from edgeprune.metrics._memory import backward_bytes
from edgeprune.metrics._weights import offloaded
from edgeprune.torch_model import device
from edgeprune.training.batches import MICRO_TOKENS


def settle(student: Any, trainee: Trainee, dtype: str) -> None:
    """What is trained in float32, all else in the type that is computed in; on the device."""
    import torch

    chosen = {id(p) for p in trainee.parameters.values()}
    for p in student.parameters():
        p.data = p.data.float() if id(p) in chosen else p.data.to(getattr(torch, dtype))
    student.to(device())


def mixed_in(dtype: str) -> Callable[[], Any]:
    import torch

    if dtype == "float32":
        return contextlib.nullcontext
    return lambda: torch.autocast(torch.device(device()).type, dtype=getattr(torch, dtype))


def all_here(whole: Any, student: Any, method: str) -> None:
    if offloaded(whole) or offloaded(student):
        raise OutOfResources(
            f"{method} needs the whole and the pruned model in memory together; use a machine with more"
        )


def room(student: Any, whole: Any, trainee: Trainee, window: int, limit: int, method: str) -> None:
    """Turns on gradient checkpointing where activations need it. Raises OutOfResources where even that is too little.

    A trained number takes 16 bytes: itself, its gradient and AdamW's two moments; those of the best look are on the CPU.
    """
    trained = sum(p.numel() for p in trainee.parameters.values())
    on_device = 0 if device() != "cpu" else 4 * trained  # the best look
    weights = sum(p.nbytes for m in (whole, student) for p in m.parameters()) + 12 * trained + on_device
    tokens = max(window, MICRO_TOKENS[student.device.type])
    activations = backward_bytes(student, tokens)
    if weights + activations > limit:
        recompute_activations(student)
        activations //= len(student.model.layers) // 2 or 1
    if weights + activations > limit:
        raise OutOfResources(
            f"{method} trains {trained} numbers and takes about {(weights + activations) / 1e6:.0f} MB, {limit / 1e6:.0f} MB is the "
            "limit; train less (lora, perp), take a shorter --window, or raise --max-memory"
        )


def recompute_activations(student: Any) -> None:
    """A layer's at a time, for the gradient."""
    name = "activation_checkpointing_enable"
    getattr(student, name if hasattr(student, name) else "gradient_checkpointing_enable")({"use_reentrant": False})
