"""What a MODEL typed on the command line stands for, where its weights are not needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeprune.types import ModelSpec

BUILTIN = "smollm2-135m-instruct"  # edgeprune.model.BUILTIN, without what that imports


def in_catalogue(model: str | None) -> str | None:
    """The catalogue's name for it; None for what lies on this machine, the built-in model, and what is not known.

    Raises UsageError for a bare name that is neither, naming the nearest.
    """
    from edgeprune import known_models

    if model is None or model == BUILTIN or Path(model.removeprefix("file://")).expanduser().exists():
        return None
    found = known_models.find(model)
    if found is None and not set(model) & set("/\\~") and not model.startswith(".") and not model.endswith(".gguf"):
        known_models.load(model)  # says what it could have been
    return found


def shape_of(model: str | None) -> tuple[ModelSpec, str | None]:
    """A model's shape, and where it is from when it is the catalogue's."""
    from edgeprune import known_models
    from edgeprune import model as models
    from edgeprune.types import ModelSpec

    if model is None or model == BUILTIN:
        return ModelSpec.from_json(models.builtin_text("spec")), None
    name = in_catalogue(model)
    if name:
        return known_models.load(name), known_models.source(name)
    return models.inspect(models.resolve(model)), None
