"""The command line: one file per verb. The only place that prints; each verb imports what it needs when it runs."""

from __future__ import annotations

import os


def main() -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # one progress display: ours
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # it would search every installed package for some
    from edgeprune.cli._app import app

    app()
