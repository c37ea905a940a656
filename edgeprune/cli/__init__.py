"""The command line: one file per verb. The only place that prints; each verb imports what it needs when it runs."""

from __future__ import annotations

import importlib
import os
import sys

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
    "study",
    "evaluate",
    "chat",
    "report",
    "run",
)  # as --help lists


def main() -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # one progress display: ours
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # it would search every installed package for some
    from edgeprune.cli._app import app

    first = sys.argv[1] if len(sys.argv) > 1 else ""
    for verb in [first] if first in VERBS else VERBS:  # help and mistyped verbs need all
        importlib.import_module(f"edgeprune.cli.{verb}")
    app()
