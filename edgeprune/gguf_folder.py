"""A folder around one GGUF file, ready to share: gguf-py's name, a card, the licence, provenance, a Modelfile."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from edgeprune import __version__, modelfile
from edgeprune.gguf_file import GGUFHeader, file_type, read_header
from edgeprune.prune import LICENCES
from edgeprune.runtimes import llamacpp

CARRIED = ("plan.json", "edgeprune.json")
DEFAULT_CONTEXT = 4096  # where no plan names one: a model's whole context would not fit the devices meant here


def furnish(source: Path, file: Path, mean_kl: float | None) -> Path:
    """Name `file` by convention and write beside it what its readers look for. Returns the file's new path.

    `source`: the folder or .gguf it was made from; `mean_kl`: of `file` from it, nats per token.
    """
    folder = file.parent
    header = read_header(file)
    named = file.rename(folder / f"{conventional_name(header)}.gguf")
    if source.is_dir():
        for path in [source / name for name in CARRIED] + [p for pattern in LICENCES for p in source.glob(pattern)]:
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    (folder / "README.md").write_text(card(source, header, named, mean_kl), encoding="utf-8")
    (folder / "Modelfile").write_text(_modelfile(header, named), encoding="utf-8")
    return named


def conventional_name(header: GGUFHeader) -> str:
    """BaseName-SizeLabel-FineTune-Version-Encoding, without the suffix; the parts are those the file itself names.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#gguf-naming-convention
    """
    import gguf

    said = {k: header.metadata.get(f"general.{k}") for k in ("name", "basename", "finetune", "version", "size_label")}
    if said["basename"] is None and said["name"]:
        # A name in full says the rest as well.
        n = sum(math.prod(t.shape) for t in header.tensors.values())  # tells a size from a context length
        parts = gguf.Metadata.get_model_id_components(said["name"].replace(" ", "-"), n)
        _, _, said["basename"], tune, version, _ = parts
        said["finetune"], said["version"] = said["finetune"] or tune, said["version"] or version
    name = gguf.naming_convention(
        said["name"], said["basename"], said["finetune"], said["version"], said["size_label"], file_type(header)
    )
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in name).lstrip(".-") or "model"


def card(source: Path, header: GGUFHeader, file: Path, mean_kl: float | None) -> str:
    """README.md: front matter as the hub reads it, how to run the file, what was changed."""
    from huggingface_hub import ModelCardData

    said, quant = header.metadata, file_type(header)
    base = said.get("edgeprune.base_model") or _base_model(said) or _name(said)
    removed = said.get("edgeprune.removed")
    data = ModelCardData(
        base_model=base, base_model_relation=None if removed else "quantized", quantized_by=f"edgeprune {__version__}",
        license=said.get("general.license"), license_name=said.get("general.license.name"),
        license_link=said.get("general.license.link"), language=list(said.get("general.languages", ())) or None,
        library_name="gguf", pipeline_tag="text-generation",
        tags=["gguf", "edgeprune", *(["pruned", "depth-pruning"] if removed else [])],
    )  # fmt: skip
    lines = ["---", data.to_yaml(), "---", "", f"# {_name(said)}, {quant} GGUF", ""]
    lines += [f"`{file.name}`, {file.stat().st_size / 1e6:.0f} MB, quantised to {quant} by edgeprune {__version__}."]
    lines += [f"Made from `{base}`" + (f", **{removed}** removed." if removed else "."), ""]
    if mean_kl is not None:
        origin = f"`{source.name}` in llama.cpp" if source.is_file() else "the unquantised model in torch"
        lines += [f"Loaded in llama.cpp and compared with {origin}: KL {mean_kl:.2g} nats per token.", ""]
    cache = _planned(file.parent)[1]
    if cache:
        lines += [f"Planned with a KV cache of type {cache}, without which it takes more memory than planned.", ""]
    as_planned = f" -fa on -ctk {cache} -ctv {cache}" if cache else ""
    lines += [
        "```",
        f"llama-cli -m {file.name} -cnv{as_planned}",
        "ollama create my-model -f Modelfile && ollama run my-model",
    ]
    lines += [f'edgeprune chat {file.name} "Hello"', "sha256sum -c SHA256SUMS", "```", ""]
    if removed:
        lines += ["Quality falls with every block removed: evaluate on your own task before use.", ""]
    return "\n".join(lines)


def _modelfile(header: GGUFHeader, file: Path) -> str:
    text = llamacpp.open_text(file)
    try:
        special, template = text.special_texts, text.chat_template
        turns = modelfile.measure(template, special, text.bos_token is not None) if template else None
    finally:
        text.close()
    ends = [special[k] for k in ("eos_token", "eot_token") if k in special]
    licence = _licence(file.parent) or header.metadata.get("general.license")
    context, cache = _planned(file.parent)
    n_ctx = context or min(DEFAULT_CONTEXT, _longest(header.metadata))
    return modelfile.modelfile(file.name, turns, modelfile.stops(turns, ends), n_ctx, licence, cache)


def _planned(folder: Path) -> tuple[int | None, str | None]:
    """The context that the plan reserved memory for, and the KV cache's type where llama.cpp must be asked for it."""
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        asked = plan.get("runtime") == "llamacpp" and plan.get("kv_type", "f16") != "f16"
        return plan["budget"]["context_tokens"], plan["kv_type"] if asked else None
    except (OSError, ValueError, KeyError):
        return None, None


def _longest(said: dict[str, Any]) -> int:
    return said.get(f"{said['general.architecture']}.context_length", DEFAULT_CONTEXT)


def _licence(folder: Path) -> str | None:
    paths = sorted(p for pattern in LICENCES[:2] for p in folder.glob(pattern))
    return paths[0].read_text(encoding="utf-8", errors="replace") if paths else None


def _name(said: dict[str, Any]) -> str:
    return said.get("general.name") or said["general.architecture"]


def _base_model(said: dict[str, Any]) -> str | None:
    """The hub id, or the name, of the model that the file says it was made from."""
    url = said.get("general.base_model.0.repo_url") or ""
    return url.removeprefix("https://huggingface.co/") or said.get("general.base_model.0.name")
