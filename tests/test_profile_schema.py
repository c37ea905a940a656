"""The JSON schema of a profile says what the loader says: same keys, same units, same verdict on good and bad files."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys

import pytest

from edgeprune import devices
from edgeprune._profile_schema import schema
from edgeprune._profile_toml import ProfileError, parse

SCHEMA = schema()
SHIPPED = [n for n in devices.names() if n != "host"]


def valid(value, rules) -> bool:
    """The part of JSON Schema that the profile's uses."""
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    kind = rules.get("type")
    if kind and (not isinstance(value, kinds[kind]) or (kind in ("number", "integer") and isinstance(value, bool))):
        return False
    if "const" in rules and value != rules["const"] or "enum" in rules and value not in rules["enum"]:
        return False
    if isinstance(value, str) and len(value) < rules.get("minLength", 0):
        return False
    if isinstance(value, (int, float)) and not rules.get("minimum", value) <= value <= rules.get("maximum", value):
        return False
    if isinstance(value, list) and not all(valid(v, rules.get("items", {})) for v in value):
        return False
    if isinstance(value, dict):
        known, more = rules.get("properties", {}), rules.get("additionalProperties", {})
        if not set(rules.get("required", ())) <= value.keys() or (more is False and value.keys() - known.keys()):
            return False
        if not all(valid(v, known.get(k, more or {})) for k, v in value.items()):
            return False
    if "if" in rules and valid(value, rules["if"]) and not valid(value, rules["then"]):
        return False
    if "anyOf" in rules and not any(valid(value, r) for r in rules["anyOf"]):
        return False
    return "oneOf" not in rules or sum(valid(value, r) for r in rules["oneOf"]) == 1


def test_the_shipped_schema_is_this_one():
    assert json.loads((devices.FOLDER / "schema.json").read_text(encoding="utf-8")) == SCHEMA


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_is_valid(name):
    assert valid(devices._document(devices.FOLDER / f"{name}.toml"), SCHEMA)


FIRST = ("calibration", 0)
BAD = [
    (("schema",), 2),
    (("vendor",), 5),
    (("memory", "unified"), 1),
    (("memory", "bandwidth", "unit"), "Gb/s"),
    (("memory", "bandwidth", "value"), -17.1),
    (("memory", "bandwidth", "value"), "17.1"),
    (("memory", "bandwidth", "value"), 1e9),
    (("memory", "bandwith"), {}),
    (("memory", "total"), {"value": 8, "unit": "GiB"}),
    (("computer",), {}),
    ((*FIRST, "status"), "certain"),
    ((*FIRST, "n_rows"), 7),
    ((*FIRST, "overhead_per_layer"), {}),
    ((*FIRST, "efficiency_of", "Q8_0"), 0.7),
]


@pytest.mark.parametrize(("where", "value"), BAD, ids=lambda x: ".".join(map(str, x)) if isinstance(x, tuple) else None)
def test_both_refuse(where, value):
    document = copy.deepcopy(devices._document(devices.FOLDER / "rpi5-8gb.toml"))
    place = document
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    assert not valid(document, SCHEMA)
    with pytest.raises(ProfileError):
        parse(document)


def test_both_know_the_same_keys():
    """The loader names the keys that it knows when it meets one that it doesn't."""
    document = devices._document(devices.FOLDER / "jetson-agx-orin-64gb.toml")
    tables = {
        (): SCHEMA,
        ("memory",): SCHEMA["properties"]["memory"],
        ("compute",): SCHEMA["properties"]["compute"],
        ("memory", "bandwidth"): SCHEMA["properties"]["memory"]["properties"]["bandwidth"],
        ("mode", 0): SCHEMA["properties"]["mode"]["items"],
        ("calibration", 0): SCHEMA["properties"]["calibration"]["items"],
        ("sources", "public-rates"): SCHEMA["properties"]["sources"]["additionalProperties"],
    }
    for where, rules in tables.items():
        changed = copy.deepcopy(document)
        place = changed
        for key in where:
            place = place[key]
        place["zzz"] = 1
        with pytest.raises(ProfileError, match="known: ") as e:
            parse(changed)
        assert set(re.split(", ", str(e.value).partition("known: ")[2])) == set(rules["properties"]), where


def edgeprune(*args, **environment):
    import os

    command = [sys.executable, "-m", "edgeprune.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


def test_the_command_shows_table_page_and_schema(tmp_path):
    page = edgeprune("devices", "jetson-orin").stdout
    for said in (
        "jetson-orin-nano-8gb-super",
        "could also mean",
        "Power modes",
        "prior",
        "Not measured here",
        "source: ",
    ):
        assert said in page
    (tmp_path / "broken.toml").write_text("schema = 1\nid = \n", encoding="utf-8")
    done = edgeprune("devices", EDGEPRUNE_DEVICES=str(tmp_path))
    assert done.returncode == 0 and f"{tmp_path / 'broken.toml'}:2: not TOML" in done.stdout
    assert "fitted, 13 rows" in done.stdout and "prior of its backend" in done.stdout
    done = edgeprune("devices", str(tmp_path / "broken.toml"))
    assert done.returncode == 4 and "broken.toml:2" in done.stderr and done.stdout == ""
