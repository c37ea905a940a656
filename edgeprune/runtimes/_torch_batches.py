"""Likelihoods in torch: contexts in batches, each computed once for all of its continuations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from edgeprune.errors import InputRejected

Pair = tuple[Sequence[int], Sequence[int]]  # context, continuation: neither is empty
Question = tuple[tuple[int, ...], list[int]]  # a context, and which pairs have it
_TOKENS = {"cpu": 2048, "cuda": 16384}  # of all texts of a batch, padding included
_LOGITS_BYTES = 256 << 20


def log_likelihoods(model: Any, pairs: Sequence[Pair], tick: Callable[[int], None]) -> list[tuple[float, bool]]:
    """See Session.log_likelihoods."""
    questions: dict[tuple[int, ...], list[int]] = {}
    for i, (context, _) in enumerate(pairs):
        questions.setdefault(tuple(context), []).append(i)
    found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    done = 0
    for batch in _batches(list(questions.items()), pairs, model):
        with torch.inference_mode():
            for i, answer in _answers(model, batch, pairs):
                found[i] = answer
                done += 1
        tick(done)
    return found


def _batches(questions: list[Question], pairs: Sequence[Pair], model: Any) -> Iterator[list[Question]]:
    """Questions of similar lengths, the longest first: what does not fit shows at once."""
    most_tokens = _TOKENS["cpu" if model.device.type == "cpu" else "cuda"]
    most_rows = _LOGITS_BYTES // (4 * model.config.vocab_size)

    def longest(question: Question) -> int:
        return max(len(pairs[i][1]) for i in question[1])

    batch: list[Question] = []
    texts = n_context = n_continuation = 0
    for question in sorted(questions, key=lambda q: (len(q[0]) + longest(q), q[0]), reverse=True):
        texts += len(question[1])
        n_context, n_continuation = max(n_context, len(question[0])), max(n_continuation, longest(question))
        if batch and (texts * (n_context + n_continuation) > most_tokens or texts * n_continuation > most_rows):
            yield batch
            batch, texts, n_context, n_continuation = [], len(question[1]), len(question[0]), longest(question)
        batch.append(question)
    if batch:
        yield batch


def _answers(model: Any, batch: list[Question], pairs: Sequence[Pair]) -> Iterator[tuple[int, tuple[float, bool]]]:
    """Contexts padded on the left, so that all end at one place, their continuations on the right."""
    contexts = [context for context, _ in batch]
    texts = [(row, i) for row, (_, members) in enumerate(batch) for i in members]
    width = max(map(len, contexts))
    ids = _padded(contexts, width, left=True)
    mask = _padded([[1] * len(c) for c in contexts], width, left=True)
    cache = DynamicCache(config=model.config)
    logits = _run(model, ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache, logits_to_keep=1)
    last = logits[:, -1].float()  # predicts every continuation's first token
    beyond = [pairs[i][1][:-1] for _, i in texts]  # its last token is only predicted
    n_more = max(map(len, beyond))
    if n_more:
        rows = torch.tensor([row for row, _ in texts])
        cache.batch_select_indices(rows.to(model.device))
        lengths = torch.tensor([len(contexts[row]) for row, _ in texts])
        more = torch.cat([mask[rows], _padded([[1] * len(b) for b in beyond], n_more)], dim=1)
        positions = lengths[:, None] + torch.arange(n_more)
        logits = _run(model, _padded(beyond, n_more), more, positions, cache)
    for k, (row, i) in enumerate(texts):
        targets = torch.tensor(pairs[i][1], device=model.device)
        own = last[row : row + 1]
        if beyond[k]:
            own = torch.cat([own, logits[k, : len(beyond[k])].float()])
        logp = own.gather(1, targets[:, None])[:, 0] - own.logsumexp(-1)
        if not torch.isfinite(logp).all():
            raise InputRejected("the model gives logits that are not finite; look at its weights")
        yield i, (logp.double().sum().item(), bool((own.argmax(-1) == targets).all()))


def _run(model: Any, ids: Any, mask: Any, positions: Any, cache: Any, **options: Any) -> Any:
    """Logits (texts, positions kept, vocabulary). Without a mask where nothing is padded: faster."""
    device = model.device
    return model(
        input_ids=ids.to(device),
        attention_mask=None if mask.all() else mask.to(device),
        position_ids=positions.to(device),
        past_key_values=cache,
        use_cache=True,
        **options,
    ).logits


def _padded(lists: Sequence[Sequence[int]], width: int, left: bool = False) -> Any:
    """(lists, width) int64, with zeros before or after."""
    out = torch.zeros(len(lists), width, dtype=torch.int64)
    for row, values in zip(out, lists, strict=True):
        start = width - len(values) if left else 0
        row[start : start + len(values)] = torch.tensor(values, dtype=torch.int64)
    return out
