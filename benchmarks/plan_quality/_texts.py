"""What the benchmark reads: by default the texts of a data folder, beside Python's documentation."""

from __future__ import annotations

import argparse
from pathlib import Path

WIKITEXT = "wikitext2-raw-test.txt"
WIKITEXT_VALIDATION = "wikitext2-valid-tokenised.txt"
C4, WIKI, TECHNICAL = (f"calibration/{name}.txt" for name in ("c4", "wiki", "technical"))
Files = tuple[Path, ...]  # none stands for Python's documentation, the half to judge by


def texts(args: argparse.Namespace, temporary: Path) -> tuple[Files, list[Files], list[str]]:
    """(texts to choose by, texts to judge by, what to say of them). C4 and the documentation are cut in halves, one for
    each, and the documentation judges only where other texts are few; the technical text is of a kind that nothing was
    chosen by."""
    from edgeprune.calibration import default_text

    notes, judges = [], []
    documentation = temporary / "cpython-help-calibration-half.txt"
    documentation.write_text(default_text("calibration")[1], encoding="utf-8")
    there = {name: args.data / name for name in (WIKITEXT, C4, WIKI, TECHNICAL) if (args.data / name).is_file()}
    absent = [name for name in (WIKITEXT, C4, WIKI, TECHNICAL) if name not in there]
    if absent and not (args.calibration and args.text):
        notes.append(f"not measured on and not chosen by, since {args.data} lacks them: {', '.join(absent)}")
    halves = halve(there[C4], temporary) if C4 in there else ()
    if WIKITEXT in there:
        judges.append((there[WIKITEXT],))
    judges += [(half,) for half in halves[1:]]
    if TECHNICAL in there:
        judges.append((there[TECHNICAL],))
    if len(judges) < 3:
        judges.append(())
    calibration = [*halves[:1], *([there[WIKI]] if WIKI in there else []), documentation]
    if halves and not args.calibration:
        notes.append("of C4, the first half of the file chooses and the second judges")
    return tuple(args.calibration or calibration), [(t,) for t in args.text or []] or judges, notes


def halve(path: Path, folder: Path) -> tuple[Path, Path]:
    """The two halves of a text, cut at the end of a line."""
    text = path.read_text(encoding="utf-8")
    middle = text.index("\n", len(text) // 2) + 1
    out = folder / f"{path.stem}-first-half.txt", folder / f"{path.stem}-second-half.txt"
    for part, target in zip((text[:middle], text[middle:]), out, strict=True):
        target.write_text(part, encoding="utf-8")
    return out


def builtin_model(temporary: Path) -> Path:
    from edgeprune import model
    from edgeprune.materialise import materialise

    folder = temporary / "SmolLM2-135M-Instruct"
    materialise(model.builtin_gguf(), folder)
    return folder
