"""tokenizer.json of a model folder, read without transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeprune.errors import InputRejected


def open_tokenizer(folder: Path) -> Any | None:
    """A `tokenizers.Tokenizer`, or None where the folder has no tokenizer.json. Raises InputRejected if damaged."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises bare Exception
        raise InputRejected(f"{path} is not a usable tokenizer: {str(e).splitlines()[0]}; download it again") from None


def tokenize(tokenizer: Any | None, folder: Path, text: str) -> list[int]:
    """Ids without added BOS/EOS; special tokens in the text are parsed."""
    if tokenizer is None:
        raise InputRejected(f"{folder} has no tokenizer.json, so text can't be read; add the model's tokenizer files")
    return tokenizer.encode(text, add_special_tokens=False).ids


def bos_token(tokenizer: Any | None) -> int | None:
    """The token that the tokenizer puts before every text by itself, or None."""
    if tokenizer is None:
        return None
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    return full[0] if len(full) > len(plain) and full[1 : 1 + len(plain)] == plain else None
