"""A device profile as TOML text, the reverse of edgeprune._profile_toml: facts of this machine, calibrations, sources."""

from __future__ import annotations

import json
import re
from typing import Any

from edgeprune.types import Calibration, DeviceProfile, Figure

Table = dict[str, Any]
_UNIT = {
    "bytes": ("GB", 1e9),
    "bytes/s": ("GB/s", 1e9),
    "flop/s": ("GFLOP/s", 1e9),
    "us": ("us", 1.0),
    "ratio": ("share", 1.0),
}
_KIND = "measured"
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_INLINE_WIDTH = 110


def host_document(profile: DeviceProfile, device_id: str) -> Table:
    """The facts of `edgeprune._host.profile()` as a profile's tables, without calibrations."""
    sources: Table = {}

    def cite(f: Figure) -> Table:
        key = _key(f.source, sources)
        sources[key] = {"title": f.source, "kind": f.kind}
        return figure(f, key)

    memory = {
        "total": cite(profile.memory_total),
        "available": cite(profile.memory_available),
        "unified": profile.unified_memory,
        "bandwidth": cite(profile.bandwidth),
    }
    system = _key(profile.memory_total.source, sources)
    compute: Table = {"cpu": {"text": profile.cpu or "unknown", "src": system}}
    if profile.isa:
        compute["isa"] = {"text": profile.isa.split(), "src": system}
    if profile.gpu:
        compute["gpu"] = {"text": profile.gpu, "src": system}
    top: Table = {"schema": 1, "id": device_id, "vendor": profile.vendor, "name": profile.name}
    top |= {"note": profile.note} if profile.note else {}
    runtimes = {k: list(v) for k, v in profile.runtimes.items()}
    return {**top, "memory": memory, "compute": compute, "runtimes": runtimes, "calibration": [], "sources": sources}


def with_calibrations(document: Table, found: list[Calibration], source: str, kind: str = _KIND) -> Table:
    """The document with these calibrations in place of those of the same runtime, backend and mode."""
    new = {(c.runtime, c.backend, c.mode) for c in found}
    kept = [c for c in document.get("calibration", []) if (c["runtime"], c["backend"], c.get("mode")) not in new]
    sources = dict(document.get("sources", {}))
    key = _key(source, sources)
    sources[key] = {"title": source, "kind": kind}
    runtimes = {k: list(v) for k, v in document.get("runtimes", {}).items()}
    for c in found:
        have = runtimes.setdefault(c.runtime, [])
        if c.backend not in have:
            have.append(c.backend)
    return {
        **document,
        "runtimes": runtimes,
        "calibration": [*kept, *(_calibration(c, key) for c in found)],
        "sources": sources,
    }


def figure(f: Figure, src: str) -> Table:
    name, unit = _UNIT[f.unit]
    out: Table = {"value": _short(f.value / unit), "unit": name, "src": src}
    for end in ("low", "high"):
        value = getattr(f, end)
        if value is not None:
            out[end] = _short(value / unit)
    # rounding must not push the value out of its interval
    if "low" in out and out["low"] > out["value"]:
        out["low"] = out["value"]
    if "high" in out and out["high"] < out["value"]:
        out["high"] = out["value"]
    return out | ({"note": f.note} if f.note else {})


def _calibration(c: Calibration, src: str) -> Table:
    out: Table = {k: getattr(c, k) for k in ("runtime", "backend", "mode", "quant", "build") if getattr(c, k)}
    out |= {"n_rows": c.n_rows, "n_models": c.n_models, "status": c.status}
    for k in type(c).model_fields:
        value = getattr(c, k)
        if isinstance(value, Figure):
            out[k] = figure(value, src)
        elif isinstance(value, dict) and value:
            out[k] = {t: figure(f, src) for t, f in value.items()}
    return out


def _key(title: str, sources: Table) -> str:
    """A source with this title, or a new key made of its first words."""
    for key, entry in sources.items():
        if entry.get("title") == title:
            return key
    base = "-".join(re.findall(r"[a-z0-9]+", title.lower())[:3]) or "source"
    key, n = base, 2
    while key in sources or key == "unsourced":
        key, n = f"{base}-{n}", n + 1
    return key


def _short(x: float) -> float:
    """Four digits: more would be noise."""
    value = float(f"{x:.4g}")
    return int(value) if value == int(value) and abs(value) < 1e15 else value


def toml_text(document: Table) -> str:
    """TOML of a profile's document: scalars, tables, and arrays of tables; figures inline."""
    lines = [f"{_name(k)} = {_value(v)}" for k, v in document.items() if not _nested(v)]
    for k, v in document.items():
        if isinstance(v, dict):
            lines += _section(_name(k), v)
        elif _nested(v):
            for entry in v:
                lines += ["", f"[[{_name(k)}]]", *_entries(_name(k), entry)]
    return "\n".join(lines) + "\n"


def _section(name: str, table: Table) -> list[str]:
    if table and all(isinstance(v, dict) and "value" not in v and "text" not in v for v in table.values()):
        return [line for k, v in table.items() for line in ("", f"[{name}.{_name(k)}]", *_entries("", v))]
    return ["", f"[{name}]", *_entries(name, table)]


def _entries(name: str, table: Table) -> list[str]:
    """Scalars and inline tables first, then tables too wide for a line as sub-tables."""
    lines, later = [], []
    for k, v in table.items():
        text = f"{_name(k)} = {_value(v)}"
        if isinstance(v, dict) and len(text) > _INLINE_WIDTH and not {"value", "text"} & v.keys():
            later += [f"[{name}.{_name(k)}]", *(f"{_name(a)} = {_value(b)}" for a, b in v.items())]
        else:
            lines.append(text)
    return lines + later


def _nested(v: Any) -> bool:
    return isinstance(v, dict) or (isinstance(v, list) and any(isinstance(x, dict) for x in v)) or v == []


def _name(key: str) -> str:
    return key if _BARE.fullmatch(key) else json.dumps(key)


def _value(v: Any) -> str:
    if isinstance(v, bool):
        return "true" if v else "false"
    if isinstance(v, (int, float)):
        return repr(v)
    if isinstance(v, str):
        return json.dumps(v, ensure_ascii=False)
    if isinstance(v, list):
        return "[" + ", ".join(map(_value, v)) + "]"
    return "{ " + ", ".join(f"{_name(k)} = {_value(x)}" for k, x in v.items()) + " }"
