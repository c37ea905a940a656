"""An opened artifact as lm-eval's language model. Imported only where lm-eval is installed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from edgeprune.chat import Chat, Sampling, render
from edgeprune.errors import InputRejected, UsageError
from edgeprune.work import Work

T = TypeVar("T")
Tokens = list[int]
_SLICE = 256  # requests that are answered together, and remembered


class HarnessModel(TemplateLM):
    """Texts become tokens where and as lm-eval's own `hf` model makes them; the artifact's runtime does the rest."""

    def __init__(
        self, chat: Chat, max_length: int, work: Work, tick: Callable[[str, int, int], None], info: dict[str, Any],
        say: Callable[[str], None] = lambda _: None,
    ):  # fmt: skip
        """`max_length`: tokens; a longer text loses its beginning. `info` goes into lm-eval's own record. `say` is told how
        much there is to do, and how long it may take."""
        super().__init__()
        self._say = say
        self._chat, self._session, self._work, self._tick, self._info = chat, chat.session, work, tick, info
        self.max_length, self.max_gen_toks, self.n_cut = max_length, 256, 0

    # --- text ---------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        found = self._special("eos_token")
        if found is None:
            raise InputRejected("the model names no end-of-text token, which lm-eval needs; add its tokenizer files")
        return found

    @property
    def prefix_token_id(self) -> int:
        """What an empty context begins with: BOS, or EOS where there is none."""
        bos = self._special("bos_token")
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> Tokens:
        """With BOS where the tokenizer puts it by itself, unless the text begins with it (a chat template's does)."""
        bos = self._session.bos_token
        ids = self._session.tokenize(string)
        return ids if add_special_tokens is False or bos is None or ids[:1] == [bos] else [bos, *ids]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        template = self._session.chat_template
        if template is None:
            raise InputRejected("the model has no chat template; leave out --apply-chat-template")
        options = dict(special_texts=self._session.special_texts, in_answer=not add_generation_prompt)
        try:
            return render(template, chat_history, **options)
        except InputRejected:
            without = [m for m in chat_history if m["role"] != "system"]
            if len(without) == len(chat_history):
                raise
            return render(template, without, **options)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._session.chat_template if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        return str(self._info["model"])

    def get_model_info(self) -> dict[str, Any]:
        return self._info

    def _special(self, name: str) -> int | None:
        text = self._session.special_texts.get(name)
        ids = self._session.tokenize(text) if text else []
        return ids[0] if len(ids) == 1 else None

    # --- requests -----------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        return self._rated(pairs)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        pairs, owner = [], []
        for k, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            pairs += (found := [make_disjoint_window(w) for w in windows])
            owner += [k] * len(found)
        totals = [0.0] * len(requests)
        for k, (x, _) in zip(owner, self._rated(pairs), strict=True):
            totals[k] += x
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        asked = []
        for seed, request in enumerate(requests):
            text, options = request.args
            options = normalize_gen_kwargs(options, self.max_gen_toks)
            room = self.max_length - options["max_gen_toks"]
            if room < 1:
                raise UsageError(
                    f"a task asks for {options['max_gen_toks']} new tokens in a context of {self.max_length}; "
                    "ask for more --context"
                )
            prompt = self.tok_encode(text)
            self.n_cut += len(prompt) > room
            asked.append((prompt[-room:], options, seed))

        def answer(question: tuple[Tokens, dict[str, Any], int]) -> str:
            prompt, options, seed = question
            sampling = Sampling(
                options.get("temperature", 0.0), options.get("top_k", 0), options.get("top_p", 1.0), seed
            )
            return self._chat.generate(
                prompt, max_tokens=options["max_gen_toks"], sampling=sampling, until=options["until"]
            ).text

        self._say(f"{len(requests)} answers to write")

        def told(done: int) -> None:
            self._tick("generating", done, len(requests))

        return self._work.each(asked, answer, told)

    def _rated(self, pairs: list[tuple[Tokens, Tokens]]) -> list[tuple[float, bool]]:
        slices = [pairs[i : i + _SLICE] for i in range(0, len(pairs), _SLICE)]
        before, paces = 0, []  # seconds for a token, of each slice
        self._say(f"{len(pairs)} answers to rate")

        def answer(piece: Sequence[tuple[Tokens, Tokens]]) -> list[tuple[float, bool]]:
            began = time.monotonic()
            found = self._chat.log_likelihoods(
                piece, lambda done: self._tick("rating answers", before + done, len(pairs))
            )
            paces.append((time.monotonic() - began) / _cost(piece))
            return found

        def told(done: int) -> None:
            nonlocal before
            if len(paces) == 1 and done < len(slices):
                left = paces[0] * sum(map(_cost, slices[done:]))
                self._say(f"{done * _SLICE} answers are rated, the rest takes about {_duration(left)}")
            before = min(done * _SLICE, len(pairs))
            self._tick("rating answers", before, len(pairs))

        return [(x, greedy) for piece in self._work.each(slices, answer, told) for x, greedy in piece]

    def _cut(self, context: Tokens, continuation: Tokens) -> tuple[Tokens, Tokens]:
        """Without what is too much of the beginning: the last token is only predicted."""
        too_many = len(context) + len(continuation) - (self.max_length + 1)
        if too_many >= len(context) or not continuation:
            raise UsageError(
                f"a task rates an answer of {len(continuation)} tokens in a context of {self.max_length}; ask for more --context"
            )
        self.n_cut += too_many > 0
        return context[max(too_many, 0) :], continuation


def _cost(pairs: Sequence[tuple[Tokens, Tokens]]) -> int:
    """Tokens to compute: a question that several answers share is read once."""
    questions = {tuple(context) for context, _ in pairs}
    return sum(map(len, questions)) + sum(len(answer) for _, answer in pairs)


def _duration(seconds: float) -> str:
    """Rounded, as an estimate is said."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1, round(seconds))} seconds"
