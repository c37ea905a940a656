"""What vocabulary and metadata take up beside the weights, by format: most of a small model's file is not weights.

GGUF holds tokens, their types and merges or scores as arrays (llama.cpp conversion/base.py fills them), an ONNX folder
the model's own tokenizer files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeprune.checkpoint import CARRIED
from edgeprune.gguf_file import GGUFHeader

_KEYS = 1350  # metadata beside arrays and template (measured on the exports of all families: 1280 to 1460)
# tokenizer.json over the same vocabulary in a GGUF: SmolLM2's is 3.52 MB for 1.77 MB; SentencePiece's merges are
# in the one and not in the other.
_JSON_OVER_GGUF = {"gpt2": 1.99, "llama": 5.0}


def of_folder(folder: Path, vocab_size: int) -> dict[str, int]:
    """For a transformers folder. A tokenizer that can't be read this way leaves "gguf" out; its export will tell why."""
    found = {"onnx": sum((folder / name).stat().st_size for name in CARRIED if (folder / name).is_file())}
    try:
        model = _read(folder / "tokenizer.json")
        arrays = _arrays(model, vocab_size) if model else None
        template = _template(folder)
    except (ValueError, TypeError, AttributeError, KeyError):
        return found
    return found if arrays is None else {"gguf": arrays + len(template.encode()) + _KEYS, **found}


def of_gguf(header: GGUFHeader) -> dict[str, int]:
    """For a .gguf file: what its header holds before the tensor table, and a guess for the tokenizer made of it."""
    metadata = 24 + sum(b - a for key, (a, b) in header.spans.items() if not key.startswith("split."))
    kind = header.metadata.get("tokenizer.ggml.model")
    return {"gguf": metadata, "onnx": round(metadata * _JSON_OVER_GGUF.get(kind, 2.0))}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _arrays(tokenizer: dict[str, Any], vocab_size: int) -> int:
    """Tokens with their lengths, types, and merges (byte-level BPE) or scores (byte-fallback)."""
    model = tokenizer["model"]
    tokens = set(model["vocab"]) | {t["content"] for t in tokenizer.get("added_tokens", ())}
    padding = max(0, vocab_size - len(tokens))
    total = sum(8 + len(t.encode()) for t in tokens) + padding * (8 + 4 + len(str(vocab_size)))
    total += 4 * max(vocab_size, len(tokens))
    if model.get("byte_fallback"):
        return total + 4 * max(vocab_size, len(tokens))
    pairs = (m if isinstance(m, str) else " ".join(m) for m in model.get("merges", ()))
    return total + sum(8 + len(m.encode()) for m in pairs)


def _template(folder: Path) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = (_read(folder / "tokenizer_config.json") or {}).get("chat_template")
    return template if isinstance(template, str) else ""
