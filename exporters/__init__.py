"""One file per format. An exporter module says:

MARKER                "edgeprune" (another package may own the import name `exporters`)
SUFFIX                file suffix, or "" when the artifact is a folder
RUNTIME               the runtime that reads it (key of edgeprune.runtimes)
QUANTS                quantisation names it can write
check(folder, quant)  raises InputRejected before any work when it can't be exported
export(folder, out, quant, provenance, progress) -> None   writes `out` (a staging path) from a transformers folder
"""

MARKER = "edgeprune"
