"""A FitTable as a heat map in SVG: one file that any browser shows, without scripts, fonts or libraries of its own."""

from __future__ import annotations

import html

from edgeprune.fit_table import Cell, FitTable
from edgeprune.units import show_bytes

_LEFT, _TOP, _CELL, _ROW, _PAD = 250, 122, 74, 21, 24
_FITS, _NONE, _ABSENT, _INK, _MUTED = "#2f8f6b", "#5c6270", "#f1f2f4", "#1d2430", "#68707d"
# Share of blocks to remove: light to dark, told apart without red against green; white figures on the dark ones.
_SCALE = ((0.05, "#fdf0c9", _INK), (0.10, "#fbd98a", _INK), (0.20, "#f3a954", _INK), (0.30, "#dd7430", "#ffffff"))
_BEYOND = ("#8c3a1d", "#ffffff")  # more than was published


def draw(table: FitTable) -> str:
    """Same table, same bytes."""
    width = _LEFT + _CELL * len(table.columns) + _PAD
    bottom = _TOP + _ROW * len(table.rows)
    height = bottom + 96
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img">',
        f"<title>{_text(_title(table))}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _label(_PAD, 32, _title(table), size=17, weight=600),
        _label(_PAD, 54, _subtitle(table), fill=_MUTED),
        *_columns(table),
    ]
    for i, row in enumerate(table.rows):
        y = _TOP + i * _ROW
        out.append(_label(_LEFT - 70, y + 15, row.device, anchor="end"))
        out.append(_label(_LEFT - 10, y + 15, f"{row.memory_limit_bytes / 1e9:.3g} GB", anchor="end", fill=_MUTED))
        for j, cell in enumerate(row.cells):
            out += _box(_LEFT + j * _CELL, y, cell, table, f"{row.device} {table.columns[j].quant}")
    return "\n".join([*out, *_legend(table, bottom + 22), "</svg>"]) + "\n"


def _title(table: FitTable) -> str:
    return f"Blocks to remove from {table.model} ({table.n_blocks} blocks, {table.params / 1e9:.3g} B parameters)"


def _subtitle(table: FitTable) -> str:
    b = table.budget
    parts = [f"to fit the memory a device leaves to a model, context {b.context_tokens:,} tokens"]
    parts += [f"at most {show_bytes(b.max_mem_bytes)}"] if b.max_mem_bytes is not None else []
    parts += [f"file at most {show_bytes(b.max_file_bytes)}"] if b.max_file_bytes is not None else []
    parts += [f"at least {b.min_decode_tok_per_s:g} tokens/s"] if b.min_decode_tok_per_s is not None else []
    parts += [f"first token within {b.max_ttft_s:g} s"] if b.max_ttft_s is not None else []
    return ", ".join(parts) + (f"; shape of {table.source}" if table.source else "")


def _columns(table: FitTable) -> list[str]:
    """Quantisations, under the runtime they are of."""
    out = []
    for j, column in enumerate(table.columns):
        x = _LEFT + j * _CELL
        if j == 0 or column.runtime != table.columns[j - 1].runtime:
            out.append(_label(x + 4, _TOP - 30, column.runtime, weight=600))
        out.append(_label(x + _CELL / 2, _TOP - 9, column.quant, anchor="middle"))
    return out


def _box(x: float, y: float, cell: Cell | None, table: FitTable, name: str) -> list[str]:
    fill, ink, text = _look(cell, table)
    tip = f"{name}: {_tip(cell, table)}"
    box = f'<rect x="{x + 1}" y="{y + 1}" width="{_CELL - 2}" height="{_ROW - 2}" rx="2" fill="{fill}">'
    shown = [f"{box}<title>{_text(tip)}</title></rect>"]
    return [*shown, _label(x + _CELL / 2, y + 15, text, anchor="middle", fill=ink)] if text else shown


def _look(cell: Cell | None, table: FitTable) -> tuple[str, str, str]:
    """Fill, ink and text."""
    if cell is None:
        return _ABSENT, _MUTED, ""
    if cell.blocks_to_remove is None:
        return _NONE, "#ffffff", "✕"
    if cell.blocks_to_remove == 0:
        return _FITS, "#ffffff", "whole"
    share = cell.blocks_to_remove / table.n_blocks
    fill, ink = next(((f, i) for most, f, i in _SCALE if share <= most + 1e-9), _BEYOND)
    return fill, ink, str(cell.blocks_to_remove)


def _tip(cell: Cell | None, table: FitTable) -> str:
    if cell is None:
        return "the device does not run this runtime"
    whole = f"the whole model takes {show_bytes(cell.whole_memory_bytes)}"
    if cell.blocks_to_remove is None:
        return f"not even one block fits; {whole}"
    if cell.blocks_to_remove == 0:
        return whole
    share = cell.blocks_to_remove / table.n_blocks
    return f"{cell.blocks_to_remove} blocks to remove ({share:.0%}), {cell.kv_type} KV cache; {whole}"


def _legend(table: FitTable, y: float) -> list[str]:
    entries = [("fits whole", _FITS)]
    entries += [(f"up to {most:.0%} of blocks", fill) for most, fill, _ in _SCALE]
    entries += [("more than was ever published", _BEYOND[0]), ("does not fit", _NONE), ("no such runtime", _ABSENT)]
    out, x = [], float(_PAD)
    limit = _LEFT + _CELL * len(table.columns)
    for text, fill in entries:
        wide = 26 + 6.6 * len(text)
        if x + wide > limit:
            x, y = float(_PAD), y + 22
        out.append(f'<rect x="{x}" y="{y - 10}" width="13" height="13" rx="2" fill="{fill}"/>')
        out.append(_label(x + 18, y + 1, text))
        x += wide
    out.append(
        _label(_PAD, y + 26, "Figures beside devices: memory left to a model. Cells: blocks to remove.", fill=_MUTED)
    )
    return out


def _label(
    x: float, y: float, text: str, *, anchor: str = "start", fill: str = _INK, size: int = 12, weight: int = 400
) -> str:
    more = f' text-anchor="{anchor}"' if anchor != "start" else ""
    more += f' font-size="{size}"' if size != 12 else ""
    more += f' font-weight="{weight}"' if weight != 400 else ""
    return f'<text x="{x:g}" y="{y:g}" fill="{fill}"{more}>{_text(text)}</text>'


def _text(text: str) -> str:
    return html.escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
