"""Device profiles: all there, every number sourced, names resolved, faults named; and this machine read live."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from edgeprune import _host, devices
from edgeprune._profile_toml import ProfileError, parse
from edgeprune.errors import InputRejected, UsageError

SHIPPED = [n for n in devices.names() if n != "host"]
REQUIRED = """
jetson-orin-nano-4gb jetson-orin-nano-8gb jetson-orin-nano-8gb-super jetson-orin-nx-8gb jetson-orin-nx-16gb
jetson-agx-orin-32gb jetson-agx-orin-64gb jetson-thor-128gb rpi4-4gb rpi4-8gb rpi5-4gb rpi5-8gb rpi5-16gb
rk3588-orangepi5 m1 m1-pro m1-max m2 m2-pro m2-max m3 m3-pro m3-max m4 m4-pro m4-max intel-12-13-ddr4 intel-12-13-ddr5
intel-ultra7-155h intel-ultra7-258v amd-7840u amd-hx370 amd-aimax395 qcom-x-elite sd-8gen3 sd-8elite iphone15pro
iphone16pro pixel8 pixel9 rtx3060-12gb rtx4060-laptop intel-n100
""".split()


def document(name: str) -> dict:
    return devices._document(devices.FOLDER / f"{name}.toml")


def test_all_surveyed_devices_are_there():
    assert set(REQUIRED) <= set(SHIPPED)
    assert devices.names()[-1] == "host"
    assert devices.load_all() == [devices.load(name) for name in SHIPPED]


@pytest.mark.parametrize("name", SHIPPED)
def test_profile_loads_and_is_plausible(name):
    p = devices.load(name)
    assert p.id == name
    assert 2e9 < p.memory_available.value <= p.memory_total.value < 140e9
    assert 10e9 < p.bandwidth.value < 600e9
    assert p.runtimes["llamacpp"]
    for c in p.calibrations:
        assert c.n_rows >= c.n_models >= 1
        assert c.status == "prior" or c.n_rows >= 8
        if c.efficiency:
            # beyond the bus only where the survey had to estimate what other runtimes read
            assert 0.05 < c.efficiency.value < (1 if c.runtime == "llamacpp" else 1.2)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_number_without_a_source(name):
    """Walks the file itself, so that a number the loader forgets is found too."""
    free = {"schema", "nvpmodel_id", "n_rows", "n_models"}

    def walk(value, where, sourced):
        if isinstance(value, dict):
            for k, v in value.items():
                walk(v, f"{where}.{k}", sourced or "src" in value)
        elif isinstance(value, list):
            for v in value:
                walk(v, where, sourced)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            assert sourced or where.rsplit(".", 1)[-1] in free, f"{where} has no source"

    walk(document(name), name, False)


@pytest.mark.parametrize("name", SHIPPED)
def test_sources_are_all_used(name):
    text = (devices.FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    for key in document(name).get("sources", {}):
        assert f'src = "{key}"' in text, key


def test_names_lead_to_one_device_each():
    seen: dict[str, str] = {}
    for name in SHIPPED:
        for alias in document(name)["aliases"]:
            assert alias not in SHIPPED and alias not in seen, f"{alias} means {name} and {seen.get(alias)}"
            seen[alias] = name
        for sibling in document(name).get("siblings", []):
            assert sibling in SHIPPED


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("jetson-orin", "jetson-orin-nano-8gb-super"),
        ("raspberry-pi-5", "rpi5-8gb"),
        ("rpi5", "rpi5-8gb"),
        ("pi5", "rpi5-8gb"),
        ("iphone-15-pro", "iphone15pro"),
        ("apple-m1", "m1"),
        ("macbook-m2", "m2"),
        ("pixel-8", "pixel8"),
        ("Jetson_Orin", "jetson-orin-nano-8gb-super"),
        ("m2-16gb", "m2-16gb"),
        ("apple-m2-16gb", "m2-16gb"),
    ],
)
def test_aliases(typed, meant):
    assert devices.load(typed).id == meant


def test_an_ambiguous_alias_names_its_siblings():
    assert {"jetson-orin-nx-16gb", "jetson-agx-orin-64gb"} <= set(devices.load("jetson-orin").siblings)


def test_memory_sizes():
    """Apple lets the GPU have two thirds up to 36 GB and three quarters above."""
    small, big = devices.load("m2-max"), devices.load("m2-max-96gb")
    assert math.isclose(small.memory_available.value, 0.67 * 32 * 2**30)
    assert math.isclose(big.memory_available.value, 0.75 * 96 * 2**30)
    assert "m2-max-96gb" in small.siblings and "m2-max" in big.siblings


@pytest.mark.parametrize(
    ("typed", "guess"), [("jetson-orn", "jetson-orin"), ("rpi6", "rpi5"), ("iphone-15", "iphone-15-pro")]
)
def test_unknown_device_is_guessed(typed, guess):
    with pytest.raises(UsageError, match=f"Did you mean '{guess}"):
        devices.load(typed)


@pytest.mark.parametrize("typed", ["m2-13gb", "", "/no/such/board.toml"])
def test_unknown_devices(typed):
    with pytest.raises(UsageError):
        devices.load(typed)


def test_own_profile_by_path(tmp_path):
    own = tmp_path / "board.toml"
    shutil.copy(devices.FOLDER / "rpi5-8gb.toml", own)
    assert devices.load(own) == devices.load("rpi5-8gb")


FAULTS = [
    ('unit = "GB/s"', 'unit = "Gb/s"', "memory.bandwidth"),
    ("value = 17.1", "value = -17.1", "memory.bandwidth.value"),
    ("value = 17.1", "value = nan", "memory.bandwidth.value"),
    ("value = 17.1", 'value = "17.1"', "memory.bandwidth.value"),
    ("value = 17.1", "value = 171000", "memory.bandwidth.value"),
    ("value = 8,", "value = 6,", "memory.available"),
    ('value = 8, unit = "GiB"', 'value = 8, unit = "GB"', "memory.total: 8 GB is 7.45 GiB, no size"),
    ('value = 8, unit = "GiB"', 'value = 8000, unit = "MB"', "is 8000 MiB meant?"),
    ('value = 8, unit = "GiB"', 'value = 7.45, unit = "GiB"', "is 8 GiB meant?"),
    ('unit = "GB/s"', 'unit = "GiB/s"', "memory.bandwidth: 17.1 GiB/s"),
    ("value = 7.3", "value = 8", "memory.available: 8 GB, memory.total 8 GiB"),
    ("{ value = 7.3,", '{ less = 0.7, up_to = 36, up_to_unit = "GB",', "memory.available[0].up_to_unit: 'GB'"),
    ('src = "unsourced", note', 'src = "nowhere", note', "memory.total.src"),
    ("bandwidth = {", "bandwith = {", "memory.bandwith: unknown key. Did you mean bandwidth?"),
    ("schema = 1", "schema = 2", "schema"),
    ('vendor = "Raspberry Pi"', "vendor = 5", "vendor"),
    ("unified = true", "unified = 1", "memory.unified"),
    ("[compute]", "[computer]", "computer"),
    ("n_rows = 16", "n_rows = 7", "calibration[0].status"),
    ("efficiency_of.Q4_0 = {", "efficiency_of.Q4_0 = 5 #", "calibration[0].efficiency_of.Q4_0"),
    ("overhead_per_block = {", "overhead_per_layer = {", "calibration[0].overhead_per_layer"),
    ("[memory]", "[memory", "not TOML"),
]


@pytest.mark.parametrize(("old", "new", "field"), FAULTS)
def test_malformed_profile_names_file_and_field(tmp_path, old, new, field):
    text = (devices.FOLDER / "rpi5-8gb.toml").read_text(encoding="utf-8")
    assert old in text
    own = tmp_path / "board.toml"
    own.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(InputRejected) as e:
        devices.load(own)
    assert field in str(e.value) and "\n" not in str(e.value)
    if "not TOML" not in field:
        line, name = re.match(rf"{re.escape(str(own))}:(\d+): ([\w.\[\]]+):", str(e.value)).groups()
        key = name.rpartition(".")[2].partition("[")[0]
        inside = own.read_text().splitlines()[int(line) - 1]
        assert key in inside or re.search(rf"\b{name.split('.')[-2]}\b", inside), "the line that holds the field"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_other_unit_is_noticed_in_every_profile(name):
    """Sizes of memory are JEDEC's powers of two and sums of a few of them; what a system reports may be any."""
    known = document(name)
    total = {**known["memory"]["total"], "unit": "GB"}
    memory = {k: v for k, v in known["memory"].items() if k != "also"} | {"total": total}
    with pytest.raises(ProfileError, match=rf"^memory\.total: .* is {total['value']} GiB meant\?"):
        parse({**known, "memory": memory})
    memory["total"] = {**total, "kind": "measured"}
    memory["available"] = {"value": total["value"] / 2, "unit": "GB", "src": "unsourced"}
    assert parse({**known, "memory": memory}).memory_total.value == total["value"] * 1e9


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("EDGEPRUNE_DEVICES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "config" / "edgeprune" / "devices"
    folder.mkdir(parents=True)
    return folder


def write_board(folder, name, total=8, aliases=()):
    text = (devices.FOLDER / "rpi5-8gb.toml").read_text(encoding="utf-8")
    text = text.replace('id = "rpi5-8gb"', f'id = "{name}"').replace("value = 8,", f"value = {total},")
    text = re.sub(r"^aliases = .*$", f"aliases = {json.dumps(list(aliases))}", text, flags=re.M)
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_own_profiles_are_found_by_name(own_folder):
    path = write_board(own_folder, "my-board", aliases=["bench-box"])
    assert devices.load("my-board").id == devices.load("Bench Box").id == "my-board"
    assert "my-board" in devices.names() and devices.names()[-1] == "host"
    assert devices.origin("my-board") == f"yours, {path}" and devices.origin("rpi5-8gb") == ""
    with pytest.raises(UsageError, match="Did you mean 'my-board'"):
        devices.load("my-bord")


def test_who_shadows_whom(own_folder, tmp_path, monkeypatch):
    """An own profile takes a shipped one's place; the named folder comes before the user's; an id before an alias."""
    write_board(own_folder, "rpi5-8gb", total=16, aliases=["rpi5"])
    assert devices.load("rpi5-8gb").memory_total.value == devices.load("rpi5").memory_total.value == 16 * 2**30
    assert "in place of the shipped one" in devices.origin("rpi5-8gb")
    named = tmp_path / "named"
    named.mkdir()
    monkeypatch.setenv("EDGEPRUNE_DEVICES", str(named))
    write_board(named, "rpi5-8gb", total=32)
    assert devices.load("rpi5-8gb").memory_total.value == 32 * 2**30
    write_board(named, "lab", aliases=["m2", "jetson-orin"])
    assert devices.load("m2").id == "m2"
    assert devices.load("jetson-orin").id == "lab"


def test_a_broken_profile_spoils_only_itself(own_folder):
    (own_folder / "broken.toml").write_text("[memory\n", encoding="utf-8")
    write_board(own_folder, "good").rename(own_folder / "renamed.toml")
    assert devices.load("rpi5").id == "rpi5-8gb"
    with pytest.raises(InputRejected, match=r"broken.toml:1: not TOML"):
        devices.load("broken")
    with pytest.raises(InputRejected, match=r"renamed.toml:2: id: 'good'"):
        devices.load("renamed")


@pytest.mark.parametrize(
    ("platform", "variables", "where"),
    [
        ("linux", {"HOME": "/h"}, "/h/.config/edgeprune/devices"),
        ("linux", {"HOME": "/h", "XDG_CONFIG_HOME": "/x"}, "/x/edgeprune/devices"),
        ("darwin", {"HOME": "/h"}, "/h/Library/Application Support/edgeprune/devices"),
        ("win32", {"HOME": "/h", "APPDATA": "/a"}, "/a/edgeprune/devices"),
    ],
)
def test_the_users_folder(monkeypatch, platform, variables, where):
    for name in ("XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(devices.sys, "platform", platform)
    assert devices.user_folder() == Path(where)


# --- host ---------------------------------------------------------------------------------------


def test_host_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = devices.load("host")
    assert first.bandwidth.kind == "measured" and 1e8 < first.bandwidth.value < 2e12
    monkeypatch.setattr(_host, "read_bandwidth", lambda threads: pytest.fail("measured again"))
    assert devices.load("host") == first


def test_host_measures_again_when_the_machine_or_the_cache_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "edgeprune" / "host.json"
    monkeypatch.setattr(_host, "read_bandwidth", lambda threads: 1e9)
    assert devices.load("host").bandwidth.value == 1e9
    monkeypatch.setattr(_host, "read_bandwidth", lambda threads: 2e9)
    cache.write_text(json.dumps(dict(json.loads(cache.read_text()), key="another machine")))
    assert devices.load("host").bandwidth.value == 2e9
    cache.write_text("{ damaged")
    assert devices.load("host").bandwidth.value == 2e9


def test_cgroup_limits_are_respected(tmp_path):
    member = tmp_path / "cgroup"
    for version, line, name in (("v2", "0::/a/b", "memory.max"), ("v1", "7:cpu,memory:/a/b", "memory.limit_in_bytes")):
        root = tmp_path / version
        folder = root / "a/b" if version == "v2" else root / "memory/a/b"
        folder.mkdir(parents=True)
        member.write_text(line + "\n")
        assert _host.cgroup_limit(root, member) is None
        (folder / name).write_text("max\n" if version == "v2" else f"{(1 << 63) - 4096}\n")
        assert _host.cgroup_limit(root, member) is None
        (folder.parent / name).write_text("4000000000\n")
        assert _host.cgroup_limit(root, member) == 4_000_000_000
        (folder / name).write_text("3000000000\n")
        assert _host.cgroup_limit(root, member) == 3_000_000_000
    assert _host.cgroup_limit(tmp_path, Path("/no/such/file")) is None
