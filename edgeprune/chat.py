"""Chat: generate text from an artifact in its own runtime, with its own chat template."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from edgeprune import catalog
from edgeprune.bench import physical_cores, runtime_for
from edgeprune.errors import InputRejected, UsageError
from edgeprune.runtimes import cache_option

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": …}


class Sampling(NamedTuple):
    temperature: float = 0.0  # 0 = always the likeliest token
    top_k: int = 0  # 0 = all
    top_p: float = 1.0
    seed: int | None = None


class Reply(NamedTuple):
    text: str
    prompt_tokens: int
    generated_tokens: int
    prefill_tokens: int  # of the prompt, those that were not in the cache from the turn before
    prefill_s: float
    decode_s: float  # for generated_tokens - 1 steps: the first token comes with the prompt's logits
    stop: Literal[
        "end", "length", "context", "until"
    ]  # the model ended; max_tokens, the context or a text of `until` is reached

    @property
    def prefill_tok_per_s(self) -> float | None:
        return self.prefill_tokens / self.prefill_s if self.prefill_s else None

    @property
    def decode_tok_per_s(self) -> float | None:
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s else None


class Chat:
    """An artifact opened for generation. What a dialogue shares with the turn before is not computed again."""

    def __init__(
        self, path: Path, *, n_ctx: int = 2048, n_threads: int | None = None, precise: bool = False,
        kv_type: str | None = None,
    ):  # fmt: skip
        """`precise` and `kv_type` are passed on to the runtime. Raises InputRejected when no runtime reads the path, and what it raises."""
        self.runtime = runtime_for(path)
        module = catalog.load("edgeprune.runtimes", self.runtime)
        threads = n_threads or physical_cores()
        cache = cache_option(module, kv_type)
        self.session = module.open_session(path, n_ctx=n_ctx, n_threads=threads, precise=precise, **cache)
        self._cached: list[int] = []

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.session.close()

    @property
    def has_template(self) -> bool:
        return self.session.chat_template is not None

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a dialogue that the assistant goes on with. The template alone says where BOS stands."""
        text = render(self.session.chat_template, messages, self.session.special_texts)
        return self.session.tokenize(text)

    def completion(self, text: str) -> list[int]:
        """Token ids of a text to go on with, after BOS where the model wants one."""
        bos = self.session.bos_token
        return ([] if bos is None else [bos]) + self.session.tokenize(text)

    def log_likelihoods(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], tick: Callable[[int], None] = lambda _: None
    ) -> list[tuple[float, bool]]:
        """See Session.log_likelihoods."""
        self._cached = []
        return self.session.log_likelihoods(pairs, tick)

    def generate(
        self, prompt: Sequence[int], *, max_tokens: int, sampling: Sampling, emit: Callable[[str], None] = lambda _: None,
        until: Sequence[str] = (),
    ) -> Reply:  # fmt: skip
        """Generate after `prompt`; `emit` gets the text as it comes, whole characters only. The reply ends before the first
        of `until`, of which `emit` may have got a part.

        Raises UsageError for a prompt that is empty or longer than the context.
        """
        n_ctx = self.session.n_ctx
        if not 0 < len(prompt) <= n_ctx:
            raise UsageError(f"the prompt takes {len(prompt)} tokens, the context holds {n_ctx}; ask for a --context")
        rng = np.random.default_rng(sampling.seed)
        text_of = self.session.text_stream(prompt)
        rest = self._uncached(prompt)
        cached, self._cached = list(prompt), []  # an interrupt leaves the cache unknown
        start = time.perf_counter()
        logits = self.session.prefill(rest)
        prefilled = time.perf_counter()
        text, n, stop = "", 0, None
        while stop is None:
            token = choose(logits, sampling, rng)
            n += 1
            if self.session.is_end(token):
                stop = "end"
                break
            part = text_of(token)
            emit(part)
            text += part
            ends = [text.find(u) for u in until if u and u in text]
            if ends:
                text, stop = text[: min(ends)], "until"
            elif n >= max_tokens:
                stop = "length"
            elif len(cached) >= n_ctx:
                stop = "context"
            else:
                logits = self.session.decode(token)
                cached.append(token)
        self._cached = cached
        done = time.perf_counter()
        return Reply(text, len(prompt), n, len(rest), prefilled - start, done - prefilled, stop)

    def _uncached(self, prompt: Sequence[int]) -> list[int]:
        """What of `prompt` must still be computed, its last token at least; the cache is left with what comes before it."""
        both = zip(self._cached, prompt[:-1], strict=False)
        shared = next((k for k, (a, b) in enumerate(both) if a != b), min(len(self._cached), len(prompt) - 1))
        if not shared or (shared < len(self._cached) and not self.session.rewind(shared)):
            self.session.reset()
            shared = 0
        return list(prompt[shared:])


def render(
    template: str, messages: Sequence[Message], special_texts: dict[str, str], *, in_answer: bool = False
) -> str:
    """The dialogue as transformers renders it, in Jinja's immutable sandbox, up to where the assistant goes on: at the
    beginning of its turn or, `in_answer`, at the end of the last message.

    Raises InputRejected with the template's own words when it refuses the dialogue.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (text,), _ = render_jinja_template(
            [list(messages)], chat_template=template, add_generation_prompt=not in_answer,
            continue_final_message=in_answer, **special_texts,
        )  # fmt: skip
    except (TemplateError, TypeError, ValueError) as e:
        reason = " ".join(str(e).split())[:200]
        raise InputRejected(f"the chat template does not take this dialogue: {reason}; --raw goes without it") from None
    return text


def choose(logits: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> int:
    """One token from logits (n_vocab,): temperature, then the top_k likeliest, then the top_p nucleus.

    Nucleus: the smallest set of likeliest tokens whose probability reaches top_p, Holtzman et al. 2020
    (arXiv:1904.09751). The order is transformers'.
    """
    if sampling.temperature <= 0 or sampling.top_k == 1:
        return int(np.argmax(logits))
    k = min(sampling.top_k or len(logits), len(logits))
    order = np.argsort(-logits, kind="stable")[:k]
    scaled = logits[order].astype(np.float64) / sampling.temperature
    p = np.exp(scaled - scaled[0])
    p /= p.sum()
    kept = 1 + int(np.searchsorted(np.cumsum(p), sampling.top_p))
    p = p[:kept] / p[:kept].sum()
    return int(order[rng.choice(len(p), p=p)])


def as_json(path: str, runtime: str, reply: Reply) -> dict[str, Any]:
    return {
        "artifact": path,
        "runtime": runtime,
        **reply._asdict(),
        "prefill_tok_per_s": reply.prefill_tok_per_s,
        "decode_tok_per_s": reply.decode_tok_per_s,
    }
