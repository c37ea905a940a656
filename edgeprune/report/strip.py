"""The strip of blocks: which halves of which layers stay, and what is joined to what. Plain SVG, no plotting library."""

from __future__ import annotations

from edgeprune.blocks import removed_sublayers
from edgeprune.types import Blocks

CELL, PITCH, LABEL, TOP, GAP = 19, 24, 86, 20, 18  # user units, about CSS pixels
NARROW_LABEL = 18
LINE = TOP + 2 * CELL + GAP + 16  # one line of layers


def strip(blocks: Blocks, n_blocks: int, per_line: int = 32, narrow: bool = False) -> str:
    """Two rows (attention, feed-forward) × layers; kept cells filled, removed hollow; a line joins a block's halves.

    `narrow` shortens the row labels for phones. Cells carry class "kept" or "removed" and a title such as "A11".
    """
    label = NARROW_LABEL if narrow else LABEL
    gone = set(removed_sublayers(blocks, n_blocks))
    lines = (n_blocks + per_line - 1) // per_line
    width, height = label + min(per_line, n_blocks) * PITCH, lines * LINE
    out = []
    for n in range(lines):
        names = ("A", "F") if narrow else ("attention", "feed-forward")
        for name, y in zip(names, (_y("A", n * per_line, per_line), _y("F", n * per_line, per_line)), strict=True):
            out.append(f'<text class="row" x="0" y="{y + CELL / 2 + 4:g}">{name}</text>')
    for b in blocks:
        if b.attn is not None and b.ffn is not None:
            out += _joint(b.attn, b.ffn, per_line, label)
    for i in range(n_blocks):
        x = label + i % per_line * PITCH
        out.append(f'<text class="num" x="{x + CELL / 2:g}" y="{_y("A", i, per_line) - 6:g}">{i}</text>')
        for kind in "AF":
            state = "removed" if (kind, i) in gone else "kept"
            out.append(
                f'<rect class="{state}" x="{x:g}" y="{_y(kind, i, per_line):g}" width="{CELL}" height="{CELL}" rx="3">'
                f"<title>{kind}{i} {state}</title></rect>"
            )
    kept = 2 * n_blocks - len(gone)
    return (
        f'<svg class="strip {"narrow" if narrow else "wide"}" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px" '
        f'aria-label="{kept} of {2 * n_blocks} sub-layers kept">{"".join(out)}</svg>'
    )


def _y(kind: str, i: int, per_line: int) -> float:
    return i // per_line * LINE + TOP + (CELL + GAP if kind == "F" else 0)


def _joint(a: int, f: int, per_line: int, label: int) -> list[str]:
    """From the foot of A to the head of F: straight within a layer, through the gap across layers (a seam)."""
    half = CELL / 2
    xa, xf = label + a % per_line * PITCH + half, label + f % per_line * PITCH + half
    ya, yf = _y("A", a, per_line) + CELL, _y("F", f, per_line)
    if a == f:
        return [f'<path class="joint" d="M{xa:g} {ya:g}V{yf:g}"/>']
    first, last = a // per_line, f // per_line
    if first == last:
        path = f"M{xa:g} {ya:g}V{ya + GAP / 2:g}H{xf:g}V{yf:g}"
    else:  # leave at the right edge, enter again at the left edge of F's line
        right = label + per_line * PITCH
        path = f"M{xa:g} {ya:g}V{ya + GAP / 2:g}H{right:g}M{label - 4:g} {yf - GAP / 2:g}H{xf:g}V{yf:g}"
    return [f'<path class="seam" d="{path}"><title>A{a} joined to F{f}</title></path>']


def swatches() -> dict[str, str]:
    """Small pictures for the legend, by name."""
    box = '<svg class="strip swatch" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} 14" width="{w}" height="14">{x}</svg>'
    cell = '<rect class="{c}" x="1" y="1" width="12" height="12" rx="2"/>'
    return {
        "kept": box.format(w=14, x=cell.format(c="kept")),
        "removed": box.format(w=14, x=cell.format(c="removed")),
        "seam joint: the halves of two layers become one block": box.format(
            w=30, x='<path class="seam" d="M4 1V7H26V13"/>'
        ),
    }
