"""Numbers and foreign text as a report shows them. Everything a record says may be hostile."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from edgeprune.units import show_bytes

NOT_MEASURED = "not measured"
MAX_TEXT = 2000  # characters of one foreign string that are shown
NAMES = {"llamacpp": "llama.cpp"}  # how people write a runtime's name

Kind = Literal["measured", "predicted", "prior", ""]
MARKS: dict[str, str] = {"measured": "●", "predicted": "○", "prior": "△", "": ""}


@dataclass(frozen=True)
class Num:
    """A figure and what kind of knowledge it is; `sub` is a smaller second line, `tone` good, bad or mute."""

    text: str
    kind: Kind = ""
    sub: str = ""
    tone: str = ""


Cell = str | Num


def clean(text: str) -> str:
    """Control characters and direction overrides made visible, length bounded: ESC becomes "\\x1b"."""
    text = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text):,} characters)"
    return "".join(c if _harmless(c) else _escape(c) for c in text)


def _harmless(c: str) -> bool:
    return unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\ufffe\uffff"


def _escape(c: str) -> str:
    return f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}"


def markdown(text: str) -> str:
    """One line of inert Markdown: no markup, no raw HTML, no automatic links."""
    text = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]|~#!])", r"\\\1", text)
    return text.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def fence(text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    lines = [clean(line) for line in text.split("\n")]
    ticks = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`+", text))])
    return "\n".join([ticks, *lines, ticks])


def short(text: str, n: int = 40) -> str:
    """For a plot's label."""
    text = clean(text)
    return text if len(text) <= n else f"{text[: n - 1]}…"


def runtime_name(key: str) -> str:
    return NAMES.get(key, key)


def figure(x: float | None, unit: str = "") -> str:
    """Three significant digits: 26.2, 68, 1,240."""
    if x is None:
        return NOT_MEASURED
    text = f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"
    return f"{text} {unit}" if unit else text


def amount(x: float | None, unit: str) -> str:
    """A budget quantity in its own unit; bytes in both conventions."""
    return show_bytes(x) if unit == "bytes" else figure(x, unit)


def percent(x: float | None, sign: bool = False) -> str:
    """0.034 -> "3.4 %"; with `sign`, "+3.4 %"."""
    if x is None:
        return "–"
    digits = 0 if abs(x) >= 0.1 else 1
    return f"{100 * x:{'+' if sign else ''}.{digits}f} %".replace("-", "−")


def size(n: float | None, kind: Kind = "", tone: str = "") -> Num:
    """Bytes over two lines: "103 MB" above "98.2 MiB"."""
    if n is None:
        return missing()
    decimal, _, binary = show_bytes(n).partition(" (")
    return Num(decimal, kind, binary.rstrip(")"), tone)


def num(x: float | None, kind: Kind, unit: str = "", sub: str = "", tone: str = "") -> Num:
    return missing() if x is None else Num(figure(x, unit), kind, sub, tone)


def missing() -> Num:
    return Num(NOT_MEASURED, tone="mute")


def plain(cell: Cell) -> str:
    """A cell without its mark, for tests and tooltips."""
    return cell if isinstance(cell, str) else f"{cell.text} ({cell.sub})" if cell.sub else cell.text
