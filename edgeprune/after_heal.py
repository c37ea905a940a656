"""Damage after healing: what a cut costs once the weights around it are solved anew. It ranks cuts otherwise than the bare
damage does, since a long run is easier to replace than many scattered cuts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeprune import catalog, closed_form
from edgeprune.blocks import from_sublayers
from edgeprune.calibration import Windows
from edgeprune.checkpoint import open_checkpoint
from edgeprune.closed_form import Kind, attempt, choose
from edgeprune.errors import UsageError
from edgeprune.heal_text import in_kinds
from edgeprune.metrics._halves import Kept
from edgeprune.metrics._search import Judge
from edgeprune.work import Work


def check(method: str) -> None:
    """Raises UsageError for an unknown healer, or one that takes too long to be tried on many cuts."""
    if not hasattr(catalog.load("edgeprune.healers", method), "SCOPES"):
        raise UsageError(
            f"--after-heal {method}: that one is trained; name one that is solved in closed form, such as refit"
        )


def refuse(folder: Path, method: str) -> None:
    """Raises InputRejected for a model that it can't heal."""
    closed_form.refuse(open_checkpoint(folder), catalog.load("edgeprune.healers", method), method)


def judge(model: Any, text: Windows, method: str, work: Work) -> Judge:
    """KL(whole ‖ healed) in nats per token, mean over kinds of text: every other window heals, the rest judge."""
    healer = catalog.load("edgeprune.healers", method)
    names = [f"text {i + 1}" for i in range(1 + max(text.kinds, default=0))]
    kinds = [Kind(name, found[::2], found[1::2]) for name, found in in_kinds(text, names) if len(found) > 1]
    if len(kinds) < 2:
        raise UsageError(
            f"--after-heal needs two windows of each kind of text, {len(text.windows)} were read; give more --windows"
        )

    def damage(version: Kept) -> float:
        found = attempt(model, from_sublayers(list(version)), [healer], kinds)
        return statistics.fmean((choose(found) or found.cut).kl)

    def damages(versions: Sequence[Kept], tick: Callable[[int], None]) -> list[float]:
        return work.each(versions, damage, tick)

    return damages
