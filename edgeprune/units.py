"""Sizes as people write them. 8GB is 8·10⁹ bytes, 8GiB is 8·2³⁰; both are always shown."""

from __future__ import annotations

import re

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(text: str) -> int:
    """ "8GB" is 8·10⁹, "8GiB" is 8·2³⁰. Raises ValueError for a size without a unit."""
    m = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if not m:
        raise ValueError(f"{text!r} is not a size; write for example 8GB or 8GiB")
    number, unit = m.groups()
    if not unit:
        raise ValueError(f"{text!r} has no unit; write {number}GB (10⁹ bytes) or {number}GiB (2³⁰ bytes)")
    if unit.upper() not in _UNITS:
        raise ValueError(f"{text!r}: unknown unit {unit!r}; use B, KB, MB, GB, TB or KiB, MiB, GiB, TiB")
    return round(float(number) * _UNITS[unit.upper()])


def show_bytes(n: int | float | None) -> str:
    """Both conventions, as llama.cpp prints MiB and vendors print GB: "8 GB (7.45 GiB)"."""
    if n is None:
        return "not measured"
    decimal = next(
        (f"{n / s:.3g} {u}" for u, s in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if abs(n) >= s),
        f"{n:.0f} B",
    )
    binary = next(
        (
            f"{n / s:.3g} {u}"
            for u, s in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
            if abs(n) >= s
        ),
        "",
    )
    return f"{decimal} ({binary})" if binary else decimal
