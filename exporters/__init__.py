"""One file per format. An exporter module says:

MARKER                "edgeprune" (another package may own the import name `exporters`)
SUFFIX                file suffix, or "" when the artifact is a folder
RUNTIME               the runtime that reads it (key of edgeprune.runtimes)
QUANTS                quantisation names it can write
check(source, quant, options)   raises before any work when it can't be exported
export(source, out, quant, provenance, progress, options) -> None   writes `out` (a staging path)

`source` is a transformers folder; the gguf exporter also takes a .gguf file and quantises it anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

MARKER = "edgeprune"


class Options(NamedTuple):
    """What a person may add to a format and a quantisation. An exporter refuses what it has no use for."""

    tokenizer_pre: str | None = None  # llama.cpp's name of the pre-tokenizer, where tokenizer.json tells none
    imatrix: Path | None = None  # importance matrix of the whole model, or of the pruned one


PLAIN = Options()
