"""edgeprune inspect"""

from __future__ import annotations

from typing import Annotated

import typer

from edgeprune.cli import _show
from edgeprune.cli._app import verb
from edgeprune.cli._options import Json
from edgeprune.cli._terminal import emit, say
from edgeprune.errors import UsageError

InLlama = Annotated[int | None, typer.Option("--context", min=1, help="Also say what the .gguf takes in llama.cpp with a context of so many tokens, from a load that allocates nothing.")]  # fmt: skip  # noqa: E501


@verb("edgeprune inspect ./SmolLM2-135M-Instruct")
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL")], context: InLlama = None, json: Json = False
) -> None:
    """Show a model's shape, sizes and fingerprint, from its headers alone."""
    from edgeprune import model as models
    from edgeprune.exact_memory import exact_memory
    from edgeprune.units import show_bytes

    path = models.resolve(model)
    spec = models.inspect(path)
    if context is None:
        emit(spec) if json else _show.model(spec)
        return
    if path.is_dir():
        raise UsageError(f"--context is for a .gguf, {path} is a folder; `edgeprune plan` foretells its memory")
    found = exact_memory(path, context)
    if found is None:
        raise UsageError("--context needs llama.cpp's bindings: pip install llama-cpp-python")
    totals = {"resident_bytes": found.resident_bytes, "committed_bytes": found.committed_bytes}
    if json:
        emit({**spec.model_dump(mode="json"), "memory": {**found._asdict(), **totals}})
        return
    _show.model(spec)
    parts = ", ".join(
        f"{name} {show_bytes(n)}"
        for name, n in (
            ("weights", found.weights_bytes), ("repacked", found.repack_bytes), ("KV cache", found.kv_bytes),
            ("compute", found.compute_bytes), ("runtime", found.runtime_bytes),
        )
        if n
    )  # fmt: skip
    say(
        f"in llama.cpp with {context} tokens of context: {show_bytes(found.resident_bytes)} resident, "
        f"{show_bytes(found.committed_bytes)} committed ({parts})"
    )
