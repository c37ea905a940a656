"""One file per runtime. A runtime module says what it reads and opens it as a Session.

    reads(path) -> bool                      can this runtime open the path?
    version() -> str                         build, as a reviewer would quote it
    quant(path) -> str                       quantisation of the artifact, e.g. "Q4_K_M", "int8"
    open_session(path, *, n_ctx, n_threads, precise=False) -> Session
    KV_TYPES                                 (optional) types of KV cache that open_session(…, kv_type=…) takes

`precise` asks for the arithmetic closest to torch (llama.cpp: F32 KV cache, flash attention off);
the default is what the runtime's users get.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Protocol

import numpy as np


class Session(Protocol):
    """A loaded model with one KV cache, batch 1. Every call returns only when its work is complete."""

    backend: str  # "cpu", "cuda", …
    n_vocab: int
    n_blocks: int
    n_ctx: int  # tokens the cache holds
    bos_token: int | None  # put before a prompt by default, or None
    chat_template: str | None  # the artifact's own, in Jinja
    special_texts: dict[str, str]  # "bos_token": "<s>", … as a chat template names them

    def reset(self) -> None:
        """Empty the cache."""

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens; logits (n_vocab,) float32 of the last position only. A view, valid until the next call."""

    def decode(self, token: int) -> np.ndarray:
        """Append one token; logits (n_vocab,) float32. A view, valid until the next call."""

    def rewind(self, n_tokens: int) -> bool:
        """Keep the first n_tokens of the cache, which holds as many. Where it can't (a window has moved on): empty it, False."""

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits (len(tokens), n_vocab) float32 from an empty cache; leaves the cache unspecified."""

    def log_likelihoods(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], tick: Callable[[int], None]
    ) -> list[tuple[float, bool]]:
        """Of each (context, continuation), neither empty: the summed log-probability of the continuation's tokens, nats,
        and whether each is the likeliest. Contexts that begin alike, or are the same, are computed once. `tick` is told
        how many are done. Leaves the cache unspecified. Raises InputRejected for logits that are not finite."""

    def tokenize(self, text: str) -> list[int]:
        """Token ids without added BOS/EOS; special tokens in the text are parsed."""

    def text_stream(self, prompt: Sequence[int]) -> Callable[[int], str]:
        """A function from each token generated after `prompt`, in order, to the text it completes.

        Bytes that are no whole character yet are kept back; special tokens give "".
        """

    def is_end(self, token: int) -> bool:
        """Whether the model ends its text or its turn with this token."""

    def close(self) -> None: ...


def cache_option(runtime: ModuleType, kv_type: str | None) -> dict[str, str]:
    """What to hand to its open_session for this type of KV cache; {} where the runtime's cache has no other type."""
    return {"kv_type": kv_type} if kv_type and hasattr(runtime, "KV_TYPES") else {}
