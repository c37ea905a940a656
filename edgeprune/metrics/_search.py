"""Greedy removal with re-scoring: after every removal all remaining candidates are measured again.

The state is the sequence of kept sub-layers A0 F0 A1 F1 …; a candidate (a cut) removes some of them; its damage is
summed over every predicted token of the calibration windows. Three things make it fast, none changes the answer:

- the stream before kept sub-layers is stored for every window, so a cut costs only its tail;
- damage never falls as tokens are added, so a cut whose partial sum exceeds the full damage of another can't be the
  least damaging and is dropped. The likeliest cut by the first window is measured in full first, to give that bound;
- the whole model's distribution is computed once per window, not once per cut.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeprune import families
from edgeprune.blocks import from_sublayers, kept_sublayers, whole
from edgeprune.divergence import CHUNK_TOKENS, nll
from edgeprune.errors import InputRejected
from edgeprune.metrics._capture import capture, head
from edgeprune.types import Blocks

if TYPE_CHECKING:
    import torch

Half = tuple[str, int]  # ("A", 3) is the attention of layer 3, ("F", 3) its feed-forward
Cut = tuple[int, ...]  # ascending positions in the kept sequence
Judge = Callable[["torch.Tensor"], float]  # stream (1, t, d) after the last sub-layer -> damage, summed over tokens
Damage = Callable[[Any, "torch.Tensor", "torch.Tensor"], Judge]  # model, the whole model's last stream, tokens (t,)

CACHE_BYTES = 4 * 10**9


class Search(NamedTuple):
    model: Any
    halves: dict[Half, Any]  # each a callable like a decoder layer
    tokens: list[torch.Tensor]  # per window, (t,)
    kwargs: list[list[dict[str, Any]]]  # per window, per layer: mask, rotary embeddings, …
    whole: list[torch.Tensor]  # per window, (1, t, d): the whole model's stream after the last sub-layer
    kept: list[Half]
    streams: list[dict[int, torch.Tensor]]  # per window: the stream before kept[k], for k = 0, every, 2·every, …
    every: int


def start(model: Any, windows: list[list[int]], cache_bytes: int = CACHE_BYTES) -> Search:
    """The state in which nothing is removed.

    All streams together take windows × sub-layers × tokens × d × 4 bytes (2 in half precision). Above `cache_bytes`
    only every n-th is stored and the others are recomputed. Raises InputRejected when the whole model's stream is not
    finite.
    """
    import torch

    kept = kept_sublayers(whole(len(model.model.layers)))
    tokens = [torch.tensor(w, device=model.device) for w in windows]
    first, last, kwargs = [], [], []
    by_length: dict[int, list[dict[str, Any]]] = {}  # masks and rotations depend on positions only
    for window in tokens:
        got = capture(model, window[None])
        if not got.stream.isfinite().all():
            raise InputRejected("the model's output is not finite: its weights are not finite or overflow")
        first.append(got.calls[0].hidden)
        last.append(got.stream)
        kwargs.append(by_length.setdefault(len(window), [call.kwargs for call in got.calls]))
    every = max(1, math.ceil(sum(x.nbytes for x in first) * len(kept) / cache_bytes))
    search = Search(model, _halves(model), tokens, kwargs, last, kept, [{0: x} for x in first], every)
    return without(search, ())


def without(search: Search, cut: Cut) -> Search:
    """The state after a cut. Streams before it stay as they are; `search` itself is used up."""
    kept = [half for k, half in enumerate(search.kept) if k not in cut]
    unchanged = cut[0] if cut else 0
    for w, known in enumerate(search.streams):
        streams = {k: stream for k, stream in known.items() if k <= unchanged}
        hidden = streams[position := max(streams)]
        for k in range(position + 1, len(kept)):
            hidden = _run(search, w, kept[k - 1 : k], hidden)
            if k % search.every == 0:
                streams[k] = hidden
        search.streams[w] = streams
    return search._replace(kept=kept)


def least_damaging(
    search: Search, cuts: list[Cut], damage: Damage, tick: Callable[[float], None], early_stop: bool = True
) -> tuple[Cut, float]:
    """The cut of least damage, the earlier one of equals, and its damage in nats per predicted token.

    `tick` is told the fraction done. Raises InputRejected when no cut leaves finite logits.
    """
    totals = [0.0] * len(cuts)
    n_windows = len(search.tokens)
    done = 0

    def measure(w: int, chosen: list[int]) -> None:
        nonlocal done
        judge = damage(search.model, search.whole[w], search.tokens[w])
        for c in chosen:
            found = judge(_after(search, w, cuts[c]))
            totals[c] += found if math.isfinite(found) else math.inf
            done += 1
            tick(done / (n_windows * len(cuts)))

    everything = list(range(len(cuts)))
    measure(0, everything)
    likely = min(everything, key=lambda c: totals[c])
    for w in range(1, n_windows):
        measure(w, [likely])
    alive = [c for c in everything if c != likely]
    for w in range(1, n_windows):
        if early_stop:
            alive = [c for c in alive if totals[c] <= totals[likely]]
        measure(w, alive)
    best = min([*alive, likely], key=lambda c: (totals[c], c))
    if totals[best] == math.inf:
        raise InputRejected("no removal leaves finite logits: the model's weights are not finite or overflow")
    return cuts[best], totals[best] / sum(len(t) - 1 for t in search.tokens)


def greedy(
    model: Any, windows: list[list[int]], max_steps: int, progress: Callable[[int, int], None], *,
    candidates: Callable[[list[Half]], list[Cut]], damage: Damage, early_stop: bool = True,
    cache_bytes: int = CACHE_BYTES,
) -> list[Blocks]:  # fmt: skip
    """Block lists after 0, 1, 2, … removals, each the least damaging of `candidates(kept)`; fewer than `max_steps`
    when no candidate is left. Raises InputRejected when damage is not finite."""
    import torch

    with torch.inference_mode():
        search = start(model, windows, cache_bytes)
        path = [from_sublayers(search.kept)]
        for step in range(max_steps):
            cuts = candidates(search.kept)
            if not cuts:
                break
            # In hundredths of a step: how many cuts will be dropped early is not known beforehand.
            tick = lambda part, step=step: progress(100 * step + int(100 * part), 100 * max_steps)  # noqa: E731
            cut, _ = least_damaging(search, cuts, damage, tick, early_stop)
            search = without(search, cut)
            path.append(from_sublayers(search.kept))
            progress(100 * (step + 1), 100 * max_steps)
    return path


def kl(model: Any, whole_stream: torch.Tensor, tokens: torch.Tensor) -> Judge:
    """KL(whole ‖ pruned) = Σ p log p − Σ p log q; p and its own term are computed once.

    Rounding below zero is cut off, so that sums over windows never fall.
    """
    import torch

    n = len(tokens) - 1
    chunks = [slice(i, min(i + CHUNK_TOKENS, n)) for i in range(0, n, CHUNK_TOKENS)]
    p, negentropy = [], []
    for chunk in chunks:
        logp = head(model, whole_stream[:, chunk]).float().log_softmax(-1)
        p.append(logp.exp())
        negentropy.append((p[-1] * logp).sum(-1))

    def judge(stream: torch.Tensor) -> float:
        total = 0.0
        for chunk, weights, constant in zip(chunks, p, negentropy, strict=True):
            logq = head(model, stream[:, chunk]).float().log_softmax(-1)
            total += (constant - torch.linalg.vecdot(weights, logq)).double().sum().item()
        return max(total, 0.0)

    return judge


def loss(model: Any, _whole_stream: torch.Tensor, tokens: torch.Tensor) -> Judge:
    """Negative log-likelihood of the text; its mean's exponential is perplexity."""
    return lambda stream: nll(head(model, stream), tokens)


def _after(search: Search, w: int, cut: Cut) -> torch.Tensor:
    """The stream (1, t, d) of window `w` after the last sub-layer, without those of `cut`."""
    position = cut[0] - cut[0] % search.every
    tail = [half for k, half in enumerate(search.kept) if k >= position and k not in cut]
    return _run(search, w, tail, search.streams[w][position])


def _run(search: Search, w: int, halves: list[Half], hidden: torch.Tensor) -> torch.Tensor:
    for half in halves:
        out = search.halves[half](hidden, **search.kwargs[w][half[1]])
        hidden = out[0] if isinstance(out, tuple) else out
    return hidden


def _halves(model: Any) -> dict[Half, Any]:
    """Every layer twice, sharing its weights: once with only its attention, once with only its feed-forward.

    The other half's module gives zero and its norms pass that on, so norms after a sub-layer, residual multipliers
    and whatever else a family's layer does stay the family's own code.
    """
    import torch

    family = families.for_model_type(model.config.model_type)
    like = next(model.parameters())
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    attention, feed_forward = (path.partition(".")[0] for path in family.OUTPUTS)
    no_attention = _pass_on(family.ATTN) | {attention: lambda *_args, **_kwargs: (zero, None)}
    no_feed_forward = _pass_on(family.FFN) | {feed_forward: lambda *_args, **_kwargs: zero}
    halves = {}
    for i, layer in enumerate(model.model.layers):
        halves["A", i] = _with(layer, no_feed_forward)
        halves["F", i] = _with(layer, no_attention)
    return halves


def _pass_on(paths: dict[str, str]) -> dict[str, Callable[..., Any]]:
    return {path.partition(".")[0]: lambda x: x for path in paths}


def _with(layer: Any, changes: dict[str, Callable[..., Any]]) -> Any:
    """A shallow copy of a torch module, with some of its children replaced. The original is untouched."""
    out = copy.copy(layer)
    vars(out).update(changes)  # found before torch's own look-up of children
    return out
