"""llama.cpp's vocabulary: what a GGUF file says of text."""

from __future__ import annotations

import codecs
import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from edgeprune.errors import EdgepruneError


class LlamaText:
    """The text side of a Session (see edgeprune.runtimes) on an open llama.cpp model, which it frees."""

    def __init__(self, lib: Any, model: Any):
        self._lib, self._model = lib, model
        self._vocab = lib.llama_model_get_vocab(model)
        bos = lib.llama_vocab_bos(self._vocab) if lib.llama_vocab_get_add_bos(self._vocab) else -1
        self.bos_token: int | None = bos if bos >= 0 else None

    def tokenize(self, text: str) -> list[int]:
        if not self._model:
            raise EdgepruneError("the session is closed")
        raw = text.encode("utf-8")
        n = len(raw) + 8
        array = (self._lib.llama_token * n)()
        count = self._lib.llama_tokenize(self._vocab, raw, len(raw), array, n, False, True)
        if count < 0:  # more tokens than bytes: once more with the size it names
            array = (self._lib.llama_token * -count)()
            count = self._lib.llama_tokenize(self._vocab, raw, len(raw), array, -count, False, True)
        return list(array[:count])

    def text_stream(self, prompt: Sequence[int]) -> Callable[[int], str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda token: decoder.decode(self._piece(token))

    def is_end(self, token: int) -> bool:
        return self._lib.llama_vocab_is_eog(self._vocab, token)

    @property
    def chat_template(self) -> str | None:
        text = self._lib.llama_model_chat_template(self._model, None)
        # For some files without one llama.cpp answers with the name of a built-in format, which is not Jinja.
        return text.decode("utf-8", "replace") if text and b"{" in text else None

    @property
    def special_texts(self) -> dict[str, str]:
        lib, vocab = self._lib, self._vocab
        named = {"bos": lib.llama_vocab_bos, "eos": lib.llama_vocab_eos, "eot": lib.llama_vocab_eot}
        named |= {"sep": lib.llama_vocab_sep, "pad": lib.llama_vocab_pad, "mask": lib.llama_vocab_mask}
        ids = {f"{name}_token": find(vocab) for name, find in named.items()}
        return {
            name: lib.llama_vocab_get_text(vocab, i).decode("utf-8", "replace") for name, i in ids.items() if i >= 0
        }

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        if self._model:
            self._lib.llama_model_free(self._model)
        self._model = None

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        n = self._lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        if n < 0:  # longer: once more with the size it names
            buffer = ctypes.create_string_buffer(-n)
            n = self._lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:n]
