"""One parsed TOML document -> DeviceProfile, checked field by field. Schema: device_profiles/README.md."""

from __future__ import annotations

import math
import sys
from typing import Any

from edgeprune.catalog import did_you_mean
from edgeprune.types import Calibration, DeviceProfile, Figure, PowerMode

UNITS = {
    "GB": ("bytes", 1e9),
    "GiB": ("bytes", 2.0**30),
    "MB": ("bytes", 1e6),
    "MiB": ("bytes", 2.0**20),
    "GB/s": ("bytes/s", 1e9),
    "GiB/s": ("bytes/s", 2.0**30),
    "TFLOP/s": ("flop/s", 1e12),
    "GFLOP/s": ("flop/s", 1e9),
    "us": ("us", 1.0),
    "W": ("W", 1.0),
    "share": ("ratio", 1.0),
}
MOST = {"bytes": 2e12, "bytes/s": 2e13, "flop/s": 1e16, "us": 1e6, "W": 2000.0, "ratio": 1.2}
KINDS = ("vendor", "measured", "computed", "third-party", "unsourced", "prior")
STATUS = ("prior", "fitted", "host-calibrated")
READ = ("measured", "computed")  # kinds of a size that a system reports: less than the chips hold
CHIP_BYTES = 2**26  # memory is made in whole multiples of this
_FIGURE = {"value", "unit", "src", "kind", "low", "high", "note"}
SMALL_SET = 8
# Figures of a calibration and their units: single ones, and those by quantisation or tensor type.
RATES = {
    "efficiency": "ratio",
    "overhead_per_block": "us",
    "attention_rate": "flop/s",
    "cache_rate": "bytes/s",
    "prefill_rate": "flop/s",
    "prefill_activation_rate": "bytes/s",
    "prefill_attention_rate": "flop/s",
    "runtime_memory": "bytes",
    "error": "ratio",
}
RATES_BY_TYPE = {
    "efficiency_of": "ratio",
    "weight_rates": "bytes/s",
    "prefill_rates": "flop/s",
    "prefill_weight_rates": "bytes/s",
}

Table = dict[str, Any]


class ProfileError(ValueError):
    """One line that starts with the field."""


def toml(text: str) -> Table:
    """Raises ValueError for text that is not TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def parse(document: Table, total: float | None = None) -> DeviceProfile:
    """`total`: the memory size wanted, one of memory.also, in the unit of memory.total. Raises ProfileError."""
    top = {"schema", "id", "aliases", "siblings", "vendor", "name", "sku", "note", "memory", "compute", "runtimes"}
    _keys(
        "", document, top | {"mode", "calibration", "sources"}, {"schema", "id", "vendor", "name", "memory", "runtimes"}
    )
    if document["schema"] != 1:
        raise ProfileError(f"schema: {document['schema']!r} is not known; this version reads 1")
    sources = _sources(document.get("sources", {}))
    memory = _table("memory", document["memory"])
    _keys(
        "memory.",
        memory,
        {"total", "also", "available", "unified", "bandwidth", "note"},
        {"total", "available", "bandwidth"},
    )
    base = _figure("memory.total", memory["total"], sources, "bytes")
    if base.kind not in READ:
        _made("memory.total", memory["total"]["value"], memory["total"]["unit"])
    device_id, sizes = _text("id", document["id"]), _also(memory.get("also"), memory["total"]["unit"], sources)
    if total is not None:
        unit = UNITS[memory["total"]["unit"]][1]
        base = base.model_copy(update={"value": total * unit})
        device_id = f"{device_id}-{total:g}gb"
    siblings = list(_texts("siblings", document.get("siblings", [])))
    siblings += [f"{document['id']}-{s:g}gb" for s in sizes if s != total]
    if total is not None:
        siblings.insert(0, document["id"])
    compute = _table("compute", document.get("compute", {}))
    _keys("compute.", compute, {"cpu", "isa", "gpu", "peak", "power"}, set())
    words = {k: _words(f"compute.{k}", v, sources) for k, v in compute.items()}
    modes = tuple(_mode(f"mode[{i}]", m, sources) for i, m in enumerate(_list("mode", document.get("mode", []))))
    calibrations = _list("calibration", document.get("calibration", []))
    return DeviceProfile(
        id=device_id,
        aliases=_texts("aliases", document.get("aliases", [])),
        siblings=tuple(siblings),
        vendor=_text("vendor", document["vendor"]),
        name=_text("name", document["name"]),
        memory_total=base,
        memory_available=_available(memory["available"], base, memory["total"], sources),
        unified_memory=_bool("memory.unified", memory.get("unified", True)),
        bandwidth=_bandwidth(memory["bandwidth"], sources),
        cpu=words.get("cpu"),
        isa=words.get("isa"),
        gpu=words.get("gpu"),
        peak=words.get("peak"),
        power=words.get("power"),
        runtimes={k: _texts(f"runtimes.{k}", v) for k, v in _table("runtimes", document["runtimes"]).items()},
        modes=modes,
        calibrations=tuple(_calibration(f"calibration[{i}]", c, sources, modes) for i, c in enumerate(calibrations)),
        note=_text("note", document["note"]) if "note" in document else None,
    )


def _available(value: Any, total: Figure, written: Table, sources: dict[str, Table]) -> Figure:
    """A figure, or rules [{share | less, up_to, …}]: the first whose `up_to` the total does not pass applies.

    `written`: the total as the profile gives it, whose unit `up_to` is in.
    """
    if isinstance(value, dict) and "value" in value:
        figure = _figure("memory.available", value, sources, "bytes")
        if value["value"] == written["value"] and value["unit"] != written["unit"]:
            units = f"{value['unit']}, memory.total {written['value']:g} {written['unit']}"
            raise ProfileError(
                f"memory.available: {value['value']:g} {units}: one number in two units; which is meant?"
            )
        if figure.value > total.value:
            raise ProfileError(f"memory.available: more than memory.total{_mixed(value, total)}")
        return figure
    for i, rule in enumerate([value] if isinstance(value, dict) else _list("memory.available", value)):
        where = f"memory.available[{i}]"
        rule = dict(_table(where, rule))
        unit = rule.pop("up_to_unit", written["unit"])
        if unit != written["unit"]:
            raise ProfileError(f"{where}.up_to_unit: {unit!r}, but memory.total is in {written['unit']!r}")
        if "up_to" in rule and total.value > _scaled(where + ".up_to", rule.pop("up_to"), unit, "bytes"):
            continue
        kind = "share" if "share" in rule else "less"
        if kind not in rule:
            raise ProfileError(f"{where}: needs value, share (of the total) or less (than the total)")
        rule["value"] = rule.pop(kind)
        rule.setdefault("unit", "share")
        figure = _figure(where, rule, sources, "ratio" if kind == "share" else "bytes")
        kept = total.value * figure.value if kind == "share" else total.value - figure.value
        if not 0 < kept <= total.value:
            raise ProfileError(f"{where}: leaves {kept:.3g} of {total.value:.3g} bytes")
        told = f"{figure.value:g} of the total" if kind == "share" else f"total less {figure.value / 1e9:g} GB"
        note = told if figure.note is None else f"{told}; {figure.note}"
        update = {"value": kept, "unit": "bytes", "low": None, "high": None, "note": note}
        return figure.model_copy(update=update)
    raise ProfileError("memory.available: no rule covers this memory size")


def _bandwidth(value: Any, sources: dict[str, Table]) -> Figure:
    """A bus is rated in 10⁹ bytes/s: transfers per second × width."""
    figure = _figure("memory.bandwidth", value, sources, "bytes/s")
    if value["unit"] == "GiB/s" and figure.kind not in READ:
        meant = f"{value['value']:g} GiB/s: a bus is rated in GB/s, so is {value['value']:g} GB/s meant?"
        raise ProfileError(f"memory.bandwidth: {meant} {_OTHERWISE}")
    return figure


_OTHERWISE = 'What was read from a system says kind = "measured"'


def _made(where: str, value: float, unit: str) -> None:
    """GB where GiB is meant, or what a seller calls 8 GB converted to GiB: no size that memory is made in."""
    n_bytes = value * UNITS[unit][1]
    if n_bytes % CHIP_BYTES:
        decimal, binary = f"{n_bytes / 1e9:.3g} GB", f"{n_bytes / 2**30:.3g} GiB"
        told, meant = (binary, f"{value:g} {unit[0]}iB") if unit in ("GB", "MB") else (decimal, decimal[:-1] + "iB")
        told = f"{value:g} {unit} is {told}, no size that memory is made in; is {meant} meant?"
        raise ProfileError(f"{where}: {told} {_OTHERWISE}")


def _mixed(available: Table, total: Figure) -> str:
    """A hint where reading the total's number as binary would make the two agree."""
    if available["unit"] == "GiB" and available["value"] * 1e9 <= total.value:
        return f": {available['value']:g} GiB is {available['value'] * 1.073741824:.4g} GB; is the total in GiB, or this in GB?"
    return ""


def _also(value: Any, unit: str, sources: dict[str, Table]) -> list[float]:
    if value is None:
        return []
    table = _table("memory.also", value)
    _keys("memory.also.", table, {"values", "unit", "src"}, {"values", "unit", "src"})
    _source("memory.also", table["src"], sources)
    if table["unit"] != unit:
        raise ProfileError(f"memory.also.unit: {table['unit']!r}, but memory.total is in {unit!r}")
    values = [_number("memory.also.values", v) for v in _list("memory.also.values", table["values"])]
    for v in values:
        _made("memory.also.values", v, unit)
    return values


def _mode(where: str, value: Any, sources: dict[str, Table]) -> PowerMode:
    table = _table(where, value)
    _keys(where + ".", table, {"name", "watts", "bandwidth_scale", "nvpmodel_id", "note", "src"}, {"name", "src"})
    watts = table.get("watts")
    scale = table.get("bandwidth_scale")
    return PowerMode(
        name=_text(where + ".name", table["name"]),
        watts=None if watts is None else _scaled(where + ".watts", watts, "W", "W"),
        bandwidth_scale=None if scale is None else _scaled(where + ".bandwidth_scale", scale, "share", "ratio"),
        note=table.get("note"),
        source=_source(where, table["src"], sources)["title"],
    )


def _calibration(where: str, value: Any, sources: dict[str, Table], modes: tuple[PowerMode, ...]) -> Calibration:
    table = _table(where, value)
    texts = {"runtime", "backend", "mode", "quant", "build", "note"}
    needed = {"runtime", "backend", "n_rows", "n_models", "status"}
    _keys(where + ".", table, {*RATES, *RATES_BY_TYPE, *texts, *needed}, needed)
    for key in texts & table.keys():
        _text(f"{where}.{key}", table[key])
    mode = table.get("mode")
    if mode is not None and mode not in {m.name for m in modes}:
        raise ProfileError(f"{where}.mode: {mode!r} is no [[mode]] of this device")
    rows, models = (_number(f"{where}.{k}", table[k]) for k in ("n_rows", "n_models"))
    status = table["status"]
    if status not in STATUS:
        raise ProfileError(f"{where}.status: {status!r} is not one of {', '.join(STATUS)}")
    if status == "fitted" and rows < SMALL_SET:
        raise ProfileError(f"{where}.status: {rows:g} rows are too few to be called fitted ({SMALL_SET} are needed)")
    if not (RATES.keys() | RATES_BY_TYPE) & table.keys():
        raise ProfileError(f"{where}: has none of {', '.join([*RATES, *RATES_BY_TYPE])}")
    rates = {
        k: {t: _figure(f"{where}.{k}.{t}", v, sources, unit) for t, v in _table(f"{where}.{k}", table[k]).items()}
        for k, unit in RATES_BY_TYPE.items()
        if k in table
    }
    return Calibration(
        runtime=_text(where + ".runtime", table["runtime"]),
        backend=_text(where + ".backend", table["backend"]),
        mode=mode,
        quant=table.get("quant"),
        build=table.get("build"),
        note=table.get("note"),
        n_rows=int(rows),
        n_models=int(models),
        status=status,
        **{k: _figure(f"{where}.{k}", table[k], sources, unit) for k, unit in RATES.items() if k in table},
        **rates,
    )


def _figure(where: str, value: Any, sources: dict[str, Table], unit: str) -> Figure:
    table = _table(where, value)
    _keys(where + ".", table, _FIGURE, {"value", "unit", "src"})
    source = _source(where, table["src"], sources)
    kind = table.get("kind", source["kind"])
    if kind not in KINDS:
        raise ProfileError(f"{where}.kind: {kind!r} is not one of {', '.join(KINDS)}")
    numbers = {
        k: _scaled(f"{where}.{k}", table[k], table["unit"], unit) for k in ("value", "low", "high") if k in table
    }
    if not numbers.get("low", 0) <= numbers["value"] <= numbers.get("high", math.inf):
        raise ProfileError(f"{where}: value is outside low…high")
    if unit != "us" and numbers["value"] == 0:
        raise ProfileError(f"{where}.value: 0; leave out what is not known")
    return Figure(unit=unit, source=source["title"], kind=kind, note=table.get("note"), **numbers)


def _scaled(where: str, value: Any, given: Any, unit: str) -> float:
    """A number in the record's unit, in a believable range."""
    known = [k for k, (u, _) in UNITS.items() if u == unit]
    if given not in known:
        raise ProfileError(f"{where}: unit {given!r} is not one of {', '.join(known)}")
    scaled = _number(where, value) * UNITS[given][1]
    if scaled > MOST[unit]:
        raise ProfileError(f"{where}: {value} {given} is beyond belief")
    return scaled


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ProfileError(f"{where}: {value!r} is not a number ≥ 0")
    return float(value)


def _sources(value: Any) -> dict[str, Table]:
    found = {"unsourced": {"title": "unsourced", "kind": "unsourced"}}
    for key, entry in _table("sources", value).items():
        where = f"sources.{key}"
        _keys(where + ".", _table(where, entry), {"title", "url", "kind", "retrieved"}, {"title", "kind"})
        if entry["kind"] not in KINDS:
            raise ProfileError(f"{where}.kind: {entry['kind']!r} is not one of {', '.join(KINDS)}")
        found[key] = entry
    return found


def _source(where: str, key: Any, sources: dict[str, Table]) -> Table:
    if key not in sources:
        raise ProfileError(f'{where}.src: {key!r} is no entry of [sources] (nor "unsourced")')
    return sources[key]


def _words(where: str, value: Any, sources: dict[str, Table]) -> str:
    table = _table(where, value)
    _keys(where + ".", table, {"text", "src"}, {"text", "src"})
    _source(where, table["src"], sources)
    if where == "compute.isa":
        return " ".join(_texts(where + ".text", table["text"]))
    return _text(where + ".text", table["text"])


def _keys(where: str, table: Table, allowed: set[str], needed: set[str]) -> None:
    for key in sorted(table.keys() - allowed):
        guess = did_you_mean(key, sorted(allowed)).replace("'", "")
        raise ProfileError(f"{where}{key}: unknown key.{guess} known: {', '.join(sorted(allowed))}")
    for key in sorted(needed - table.keys()):
        raise ProfileError(f"{where}{key}: is missing")


def _table(where: str, value: Any) -> Table:
    if not isinstance(value, dict):
        raise ProfileError(f"{where}: must be a table")
    return value


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ProfileError(f"{where}: must be a list")
    return value


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ProfileError(f"{where}: must be a text")
    return value


def _texts(where: str, value: Any) -> tuple[str, ...]:
    return tuple(_text(where, v) for v in _list(where, value))


def _bool(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ProfileError(f"{where}: must be true or false")
    return value
