"""Weights that don't stay in memory: on disk, or on the CPU of a machine whose GPU is too small.

accelerate hooks every such module, to bring its weights when it is called and drop them afterwards. A module called many
times in a row would read them as many times, so they are kept at hand meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def offloaded(model: Any) -> bool:
    """Whether any weights are brought only when they are used."""
    return any(p.device.type == "meta" for p in model.parameters())


@contextlib.contextmanager
def at_hand(*modules: Any) -> Iterator[None]:
    """The weights of these modules and of all within them are in memory; read once, dropped at the end."""
    held: list[tuple[Any, Any]] = []
    try:
        for module in (m for top in modules for m in top.modules()):
            for hook in _hooks(module):
                if hook.offload:
                    held.append((module, hook))
                    hook.pre_forward(module)
                    hook.offload = False  # calls meanwhile neither bring nor drop
        yield
    finally:
        for module, hook in held:
            hook.offload = True
            hook.post_forward(module, None)


def _hooks(module: Any) -> list[Any]:
    hook = vars(module).get("_hf_hook")
    found = [] if hook is None else getattr(hook, "hooks", [hook])
    return [h for h in found if hasattr(h, "offload")]
