"""device_profiles/*.toml -> DeviceProfile. The folder is the registry; device_profiles/README.md is its schema.

`load` takes an id ("rpi5-8gb"), an alias ("raspberry-pi-5"), an id with another memory size that the device is sold
with ("m2-16gb"), the path of a profile of your own ("./board.toml"), or "host" for this machine.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

from edgeprune._profile_toml import ProfileError, parse
from edgeprune.catalog import did_you_mean
from edgeprune.errors import InputRejected, UsageError
from edgeprune.types import DeviceProfile

HOST = "host"
FOLDER = Path(__file__).resolve().parent.parent / "device_profiles"  # beside the package, in a checkout and installed


def names() -> list[str]:
    """Ids of the shipped profiles, sorted, and "host"."""
    return [*(f.removesuffix(".toml") for f in _files()), HOST]


def aliases() -> dict[str, str]:
    """alias -> id, over all shipped profiles."""
    return {a: i for i, document in _documents().items() for a in document.get("aliases", ())}


def load(name_or_path: str | Path) -> DeviceProfile:
    """Raises UsageError for an unknown device, InputRejected for a profile that is malformed."""
    text = str(name_or_path)
    if text.endswith(".toml"):
        return _load_file(Path(text).expanduser())
    name = text.strip().lower().replace("_", "-").replace(" ", "-")
    if name == HOST:
        from edgeprune._host import profile

        return profile()
    own = FOLDER / f"{name}.toml"
    if own.name in _files():
        return _parse(_read(own), own, None)
    documents, known = _documents(), aliases()
    base, total = name, None
    if name not in known:
        base, total = _split_memory(name)
    device_id = base if base in documents else known.get(base)
    if device_id is None or (total is not None and total not in _sizes(documents[device_id])):
        raise UsageError(_unknown(text, [*documents, *known, HOST]))
    return _parse(documents[device_id], FOLDER / f"{device_id}.toml", total)


def document_of(profile: DeviceProfile) -> dict[str, Any]:
    """A shipped profile's tables, for one to be made of them; with the memory size that was asked for."""
    documents = _documents()
    if profile.id in documents:
        return documents[profile.id]
    base, total = _split_memory(profile.id)
    document = documents[base]
    memory = {k: v for k, v in document["memory"].items() if k != "also"}
    return {**document, "memory": {**memory, "total": {**memory["total"], "value": total}}}


def read_document(path: Path) -> dict[str, Any]:
    """A user's profile's tables, once it is known to be one. Raises as `load`."""
    _load_file(path)
    return _read(path)


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
        raise UsageError(f"no device profile at {path}; `edgeprune devices` lists the shipped ones")
    return _parse(_read(path), path, None)


def _parse(document: dict[str, Any], path: Path, total: float | None) -> DeviceProfile:
    try:
        return parse(document, total)
    except ProfileError as e:
        raise InputRejected(f"{path}: {e}; see {FOLDER / 'README.md'}") from None


def _read(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise InputRejected(f"{path}: not TOML: {e}") from None
    except OSError as e:
        raise InputRejected(f"{path}: cannot be read: {e.strerror}") from None


def _files() -> list[str]:
    return sorted(p.name for p in FOLDER.glob("*.toml"))


@cache
def _documents() -> dict[str, dict[str, Any]]:
    """Read once per process: aliases need every file."""
    return {f.removesuffix(".toml"): _read(FOLDER / f) for f in _files()}
