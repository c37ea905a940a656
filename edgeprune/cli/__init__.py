"""The command line: one file per verb. The only place that prints; each verb imports what it needs when it runs."""

from __future__ import annotations

import importlib
import os

VERBS = (
    "devices",
    "inspect",
    "score",
    "compare",
    "plan",
    "fit",
    "recipe",
    "prune",
    "heal",
    "export",
    "bench",
    "calibrate",
    "evaluate",
    "chat",
    "report",
    "run",
)  # as --help lists


def main() -> None:
    from edgeprune.cli._app import app

    os.environ.setdefault("TQDM_DISABLE", "1")  # one progress display: ours
    for verb in VERBS:
        importlib.import_module(f"edgeprune.cli.{verb}")
    app()
