"""Where a report is written."""

from __future__ import annotations

from pathlib import Path

from edgeprune.errors import UsageError
from edgeprune.files import write_text
from edgeprune.report.load import RECORDS


def write_all(texts: dict[str, str], out_html: Path, force: bool) -> list[Path]:
    """Texts by suffix beside each other under OUT's name, each complete or not at all.

    Raises UsageError when one exists (unless `force`) or the name would fall on a record of a run.
    """
    out = Path(out_html)
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"a report was asked for as {out.name}; name a file that ends in .html")
    if out.stem in RECORDS:
        raise UsageError(f"{out.stem}.json is a record of a run; name the report otherwise, for example report.html")
    outs = [out if kind == "html" else out.with_suffix(f".{kind}") for kind in texts]
    for path in outs:
        if path.exists() and not force:
            raise UsageError(f"{path} exists; choose another output, or pass --force to replace it")
    for path, text in zip(outs, texts.values(), strict=True):
        write_text(path, text, force)
    return outs
