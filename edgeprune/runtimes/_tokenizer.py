"""The tokenizer files of a model folder, read without transformers: what every runtime of a folder says of text."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeprune.errors import InputRejected

_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


class FolderText:
    """The text side of a Session (see edgeprune.runtimes) on a folder."""

    def __init__(self, folder: Path):
        """Raises InputRejected for a damaged tokenizer.json; a folder without one has no text, and says so when asked."""
        self._folder = Path(folder)
        self._tokenizer = _open(self._folder / "tokenizer.json")
        self.bos_token = self._bos_token()

    def tokenize(self, text: str) -> list[int]:
        return self._opened().encode(text, add_special_tokens=False).ids

    def text_stream(self, prompt: Sequence[int]) -> Callable[[int], str]:
        from tokenizers.decoders import DecodeStream

        tokenizer = self._opened()
        # After some text, a word keeps the space that a decoder takes from the very first one.
        stream = DecodeStream(ids=list(prompt[-1:]), skip_special_tokens=True)
        return lambda token: stream.step(tokenizer, token) or ""

    def is_end(self, token: int) -> bool:
        return token in self._end_tokens

    @functools.cached_property
    def chat_template(self) -> str | None:
        path = self._folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        found = self._json("tokenizer_config.json").get("chat_template")
        if isinstance(found, list):  # several, by name
            found = {t.get("name"): t.get("template") for t in found}.get("default")
        return found if isinstance(found, str) else None

    @functools.cached_property
    def special_texts(self) -> dict[str, str]:
        settings = self._json("special_tokens_map.json") | self._json("tokenizer_config.json")
        values = {f"{kind}_token": settings.get(f"{kind}_token") for kind in _SPECIAL}
        texts = {k: v.get("content") if isinstance(v, dict) else v for k, v in values.items()}
        return {k: v for k, v in texts.items() if isinstance(v, str)}

    @functools.cached_property
    def _end_tokens(self) -> frozenset[int]:
        """Every id that one of the folder's files calls an end."""
        decoder = self._json("genai_config.json").get("model")
        said = [self._json(name).get("eos_token_id") for name in ("config.json", "generation_config.json")]
        said.append(decoder.get("eos_token_id") if isinstance(decoder, dict) else None)
        if self._tokenizer is not None and "eos_token" in self.special_texts:
            said.append(self._tokenizer.token_to_id(self.special_texts["eos_token"]))
        flat = [i for ids in said for i in (ids if isinstance(ids, list) else [ids])]
        return frozenset(i for i in flat if isinstance(i, int))

    def _bos_token(self) -> int | None:
        """The token that the tokenizer puts before every text by itself, or None."""
        if self._tokenizer is None:
            return None
        plain = self._tokenizer.encode("a", add_special_tokens=False).ids
        full = self._tokenizer.encode("a", add_special_tokens=True).ids
        return full[0] if len(full) > len(plain) and full[1 : 1 + len(plain)] == plain else None

    def _opened(self) -> Any:
        if self._tokenizer is None:
            raise InputRejected(
                f"{self._folder} has no tokenizer.json, so text can't be read; add the model's tokenizer files"
            )
        return self._tokenizer

    def _json(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError:
            raise InputRejected(f"{path} is not JSON; download it again") from None
        return found if isinstance(found, dict) else {}


def _open(path: Path) -> Any | None:
    """A `tokenizers.Tokenizer`, or None where there is no such file."""
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises bare Exception
        raise InputRejected(f"{path} is not a usable tokenizer: {str(e).splitlines()[0]}; download it again") from None
