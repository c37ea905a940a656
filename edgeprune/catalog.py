"""A folder is a registry: a module's file name is its key. Names starting with "_" are private helpers."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from types import ModuleType

from edgeprune.errors import UsageError


def names(package: str) -> list[str]:
    """Keys of a registry package such as "edgeprune.metrics" or "exporters", sorted."""
    return list(_names(package))


@functools.cache
def _names(package: str) -> tuple[str, ...]:
    """Read once: the family of a model is asked for in inner loops."""
    folder = importlib.import_module(package)
    return tuple(sorted(m.name for m in pkgutil.iter_modules(folder.__path__) if not m.name.startswith("_")))


def load(package: str, name: str) -> ModuleType:
    """Import one entry. Raises UsageError with the nearest known name."""
    known = names(package)
    if name not in known:
        kind = package.rsplit(".", 1)[-1]
        raise UsageError(f"no {kind} called {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    return importlib.import_module(f"{package}.{name}")


def load_all(package: str) -> dict[str, ModuleType]:
    return {name: load(package, name) for name in names(package)}


def did_you_mean(name: str, known: list[str]) -> str:
    """ " Did you mean 'x'?" with a leading space, or ""."""
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
