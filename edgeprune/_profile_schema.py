"""The JSON schema of a device profile, for editors and other tools. edgeprune._profile_toml says the same and more.

TOML maps to JSON one to one, so any JSON-schema checker of TOML reads it (draft 2020-12). What it cannot say, the loader
does: that a source is listed, that `available` is no more than `total`, that 8 rows make a fit, that GB is not given
where GiB is meant.
"""

from __future__ import annotations

from typing import Any

from edgeprune._profile_toml import KINDS, MOST, RATES, RATES_BY_TYPE, SMALL_SET, STATUS, UNITS

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string", "minLength": 1}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_SOURCE: Schema = {"type": "string", "description": 'a key of [sources], or "unsourced"', "minLength": 1}


def schema() -> Schema:
    """The whole document."""
    sized = _figure("bytes")
    available = {"anyOf": [sized, _rule(), {"type": "array", "items": _rule(), "minItems": 1}]}
    memory = {"total": sized, "available": available, "bandwidth": _figure("bytes/s"), "unified": {"type": "boolean"}}
    also = _table({"values": {"type": "array", "items": _number("bytes")}, "unit": _unit("bytes"), "src": _SOURCE}, ...)
    memory |= {"also": also, "note": _TEXT}
    words = _table({"text": _TEXT, "src": _SOURCE}, ...)
    compute = {k: words for k in ("cpu", "gpu", "peak", "power")} | {
        "isa": _table({"text": _TEXTS, "src": _SOURCE}, ...)
    }
    source = {"title": _TEXT, "url": _TEXT, "kind": {"enum": list(KINDS)}, "retrieved": {}}
    fields = {
        "schema": {"const": 1},
        "id": _TEXT,
        "aliases": _TEXTS,
        "siblings": _TEXTS,
        "vendor": _TEXT,
        "name": _TEXT,
        "sku": _TEXT,
        "note": _TEXT,
        "memory": _table(memory, "total available bandwidth"),
        "compute": _table(compute, ""),
        "runtimes": {"type": "object", "additionalProperties": _TEXTS},
        "mode": {"type": "array", "items": _mode()},
        "calibration": {"type": "array", "items": _calibration()},
        "sources": {"type": "object", "additionalProperties": _table(source, "title kind")},
    }
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "edgeprune device profile"}
    return {**head, **_table(fields, "schema id vendor name memory runtimes")}


def _calibration() -> Schema:
    fields: Schema = {"runtime": _TEXT, "backend": _TEXT, "mode": _TEXT, "quant": _TEXT, "build": _TEXT, "note": _TEXT}
    fields |= {"n_rows": _COUNT, "n_models": _COUNT, "status": {"enum": list(STATUS)}}
    fields |= {name: _figure(unit) for name, unit in RATES.items()}
    fields |= {k: {"type": "object", "additionalProperties": _figure(unit)} for k, unit in RATES_BY_TYPE.items()}
    found = _table(fields, "runtime backend n_rows n_models status")
    found["anyOf"] = [{"required": [name]} for name in (*RATES, *RATES_BY_TYPE)]
    few = {
        "if": {"properties": {"status": {"const": "fitted"}}},
        "then": {"properties": {"n_rows": {"minimum": SMALL_SET}}},
    }
    return {**found, **few}


def _mode() -> Schema:
    scale = {"type": "number", "minimum": 0, "maximum": MOST["ratio"]}
    fields = {"name": _TEXT, "src": _SOURCE, "watts": _number("W"), "bandwidth_scale": scale}
    return _table({**fields, "nvpmodel_id": {"type": "integer"}, "note": _TEXT}, "name src")


def _figure(unit: str) -> Schema:
    number = _number(unit)
    fields = {"value": number, "low": number, "high": number, "unit": _unit(unit), "src": _SOURCE}
    return _table({**fields, "kind": {"enum": list(KINDS)}, "note": _TEXT}, "value unit src")


def _rule() -> Schema:
    """Memory left to a model: a share of the total, or the total less a size, up to some total."""
    number = {"type": "number", "minimum": 0}
    fields: Schema = {"share": number, "less": number, "up_to": number, "up_to_unit": _unit("bytes"), "src": _SOURCE}
    fields |= {"unit": _unit("bytes"), "low": number, "high": number, "kind": {"enum": list(KINDS)}, "note": _TEXT}
    return {**_table(fields, "src"), "oneOf": [{"required": ["share"]}, {"required": ["less", "unit"]}]}


def _number(unit: str) -> Schema:
    """Believable in the smallest unit, so in any."""
    most = MOST[unit] / min(scale for u, scale in UNITS.values() if u == unit)
    return {"type": "number", "minimum": 0, "maximum": most}


def _unit(unit: str) -> Schema:
    return {"enum": [name for name, (u, _) in UNITS.items() if u == unit]}


def _table(fields: Schema, needed: Any) -> Schema:
    required = list(fields) if needed is ... else needed.split()
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}
