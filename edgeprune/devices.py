"""Device profiles -> DeviceProfile. A folder is a registry, a file name is an id; device_profiles/README.md is the schema.

`load` takes an id ("rpi5-8gb"), an alias ("raspberry-pi-5"), an id with another memory size that the device is sold
with ("m2-16gb"), the path of a profile of your own ("./board.toml"), or "host" for this machine.

Own profiles may also live in a folder, where they are found by name: those of EDGEPRUNE_DEVICES (separated as PATH is),
then the user's own, $XDG_CONFIG_HOME/edgeprune/devices (~/.config; ~/Library/Application Support on macOS, %APPDATA% on
Windows). A name is looked up as an id before it is an alias, and in that order of folders: a profile of yours with the
id of a shipped one takes its place, and `edgeprune devices` says so.
"""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from edgeprune._profile_toml import ProfileError, parse, toml
from edgeprune.catalog import did_you_mean
from edgeprune.errors import InputRejected, UsageError
from edgeprune.types import DeviceProfile

HOST = "host"
FOLDER = Path(__file__).resolve().parent.parent / "device_profiles"  # beside the package, in a checkout and installed


def names() -> list[str]:
    """Ids of all profiles, shipped and the user's, sorted, and "host"."""
    return [*sorted(files()), HOST]


def files() -> dict[str, Path]:
    """id -> file; of several the first folder's."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in sorted(folder.glob("*.toml")) if folder.is_dir() else ():
            found.setdefault(path.stem, path)
    return found


def folders() -> list[Path]:
    """Where profiles are looked for, first come first."""
    named = [Path(f).expanduser() for f in os.environ.get("EDGEPRUNE_DEVICES", "").split(os.pathsep) if f]
    return [*named, user_folder(), FOLDER]


def user_folder() -> Path:
    """The user's own folder of profiles; it need not exist."""
    base = os.environ.get("XDG_CONFIG_HOME")
    if base is None and sys.platform == "darwin":
        base = "~/Library/Application Support"
    elif base is None and sys.platform == "win32":
        base = os.environ.get("APPDATA")
    return Path(base or "~/.config").expanduser() / "edgeprune" / "devices"


def origin(device_id: str) -> str:
    """Where a listed profile comes from, in words: "" for a shipped one."""
    path = files().get(device_id)
    if path is None or path.parent == FOLDER:
        return ""
    return f"yours, {path}" + (", in place of the shipped one" if (FOLDER / path.name).is_file() else "")


def aliases(wanted: str = "") -> dict[str, str]:
    """alias -> id, over all profiles, or over those whose text holds `wanted`; a profile that cannot be read has none."""
    found: dict[str, str] = {}
    for device_id, path in sorted(files().items(), key=lambda f: f[1].parent == FOLDER):
        try:
            own = _document(path).get("aliases", ()) if wanted in path.read_text(encoding="utf-8") else ()
        except (InputRejected, OSError, UnicodeDecodeError):
            continue
        for alias in own if isinstance(own, list) else ():
            found.setdefault(str(alias), device_id)
    return found


def load(name_or_path: str | Path) -> DeviceProfile:
    """Raises UsageError for an unknown device, InputRejected for a profile that is malformed."""
    text = str(name_or_path)
    if text.endswith(".toml"):
        return _load_file(Path(text).expanduser())
    name = text.strip().lower().replace("_", "-").replace(" ", "-")
    if name == HOST:
        from edgeprune._host import profile

        return profile()
    known = files()
    if name in known:
        return _load_listed(known[name], None)
    base, total = (name, None) if name in aliases(name) else _split_memory(name)
    device_id = base if base in known else aliases(base).get(base)
    if device_id is None or (total is not None and total not in _sizes(_document(known[device_id]))):
        raise UsageError(_unknown(text, [*known, *aliases(), HOST]))
    return _load_listed(known[device_id], total)


def load_all() -> list[DeviceProfile]:
    """Every listed profile, sorted by id; not "host". Raises InputRejected for one that is malformed."""
    return [_load_listed(path, None) for _, path in sorted(files().items())]


def _load_listed(path: Path, total: float | None) -> DeviceProfile:
    document = _document(path)
    if document.get("id") != path.stem:
        line = _line(path, "id")
        raise InputRejected(f"{path}{line}: id: {document.get('id')!r}, but in this folder the file's name is the id")
    return _parse(document, path, total)


def document_of(profile: DeviceProfile) -> dict[str, Any]:
    """A listed profile's tables, for one to be made of them; with the memory size that was asked for."""
    known = files()
    if profile.id in known:
        return _document(known[profile.id])
    base, total = _split_memory(profile.id)
    document = _document(known[base])
    memory = {k: v for k, v in document["memory"].items() if k != "also"}
    return {**document, "memory": {**memory, "total": {**memory["total"], "value": total}}}


def read_document(path: Path) -> dict[str, Any]:
    """A user's profile's tables, once it is known to be one. Raises as `load`."""
    _load_file(path)
    return _document(path)


def _unknown(text: str, known: list[str]) -> str:
    guess = did_you_mean(text, sorted(known))
    return f"no device called {text!r}.{guess} `edgeprune devices` lists them; a path to a .toml describes another."


def _split_memory(name: str) -> tuple[str, float | None]:
    """ "m2-16gb" -> ("m2", 16.0)."""
    base, _, size = name.rpartition("-")
    if base and size.endswith("gb") and size[:-2].isdigit():
        return base, float(size[:-2])
    return name, None


def _sizes(document: dict[str, Any]) -> list[float]:
    memory = document.get("memory", {})
    return [memory.get("total", {}).get("value"), *memory.get("also", {}).get("values", ())]


def _load_file(path: Path) -> DeviceProfile:
    if not path.is_file():
        raise UsageError(f"no device profile at {path}; `edgeprune devices` lists the known ones")
    return _parse(_document(path), path, None)


def _parse(document: dict[str, Any], path: Path, total: float | None) -> DeviceProfile:
    try:
        return parse(document, total)
    except ProfileError as e:
        line = _line(path, str(e).partition(": ")[0])
        raise InputRejected(f"{path}{line}: {e}; see {FOLDER / 'README.md'}") from None


def _line(path: Path, field: str) -> str:
    """ ":12", the line of a field or of the nearest table that it would be in; "" where the text does not tell."""
    table, seen, best, at = "", {}, 0, ""
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        header, key = re.match(r"\s*\[+([\w.-]+)\]", text), re.match(r"\s*([\w.-]+)\s*=", text)
        if header:
            table = header.group(1)
            if text.lstrip().startswith("[["):
                seen[table] = seen.get(table, -1) + 1
                table = f"{table}[{seen[table]}]"
        elif not key:
            continue
        here = table if header else ".".join(x for x in (table, key.group(1)) if x)
        if (field == here or field.startswith((here + ".", here + "["))) and len(here) > best:
            best, at = len(here), f":{number}"
    return at


def _document(path: Path) -> dict[str, Any]:
    """Read once per process and state of the file: aliases need every file."""
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as e:
        raise InputRejected(f"{path}: cannot be read: {e.strerror}") from None


@cache
def _read(path: Path, _changed: int) -> dict[str, Any]:
    try:
        return toml(path.read_text(encoding="utf-8"))
    except ValueError as e:  # not TOML, or not UTF-8
        found = re.search(r" \(at line (\d+), column \d+\)", str(e))
        line = f":{found.group(1)}" if found else ""
        raise InputRejected(f"{path}{line}: not TOML: {e}") from None
