"""Many pruned versions of one model, run side by side: what they share is run once.

A version is the list of the halves it keeps. One sweep goes through the sub-layers A0 F0 A1 F1 … in order and carries
one stream for every different beginning, so that a version costs only what comes after the first half it lacks, each
weight is used by all versions while it is at hand (or is read from disk once), and no stream is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from edgeprune.divergence import CHUNK_TOKENS
from edgeprune.metrics._halves import Kept, all_halves, entrance, halves, head, rows, run_device
from edgeprune.metrics._memory import each_window, room
from edgeprune.metrics._weights import at_hand

if TYPE_CHECKING:
    import torch

# versions, window numbers, told how many pieces are done -> [window][kind][version][segment]
Measured = Callable[[Sequence[Kept], Sequence[int], Callable[[int], None]], list[Any]]

MANY = 8  # versions that are worth two sweeps


def sweep(model: Any, versions: Sequence[Kept], tokens: torch.Tensor) -> list[torch.Tensor]:
    """The stream (g, t, d) after the last sub-layer of every version, on tokens (g, t).

    Holds one stream per different beginning, at most len(versions) × g × t × d elements.
    """
    stream, kwargs = entrance(model, tokens)
    keep = [frozenset(v) for v in versions]
    most = max(1, rows(tokens.device) // tokens.numel())
    nodes = [(stream, list(range(len(versions))))]  # a stream, and the versions that share it
    for half, run in halves(model):
        stays, runs = [], []
        for stream, members in nodes:
            for group, has in ((runs, True), (stays, False)):
                chosen = [m for m in members if (half in keep[m]) is has]
                if chosen:
                    group.append((stream if has else _alone(stream), chosen))
        nodes = stays
        while runs:  # each stream goes as soon as the one after it is there
            together, runs = runs[:most], runs[most:]
            out = run(_cat([stream for stream, _ in together]), **kwargs[half[1]])
            nodes += zip(out.split(len(tokens)), (members for _, members in together), strict=True)
    final = {m: stream for stream, members in nodes for m in members}
    return [final[m] for m in range(len(versions))]


def damages(
    model: Any, versions: Sequence[Kept], windows: Sequence[Sequence[int]], kinds: Sequence[str], n_segments: int = 1
) -> list[list[list[list[float]]]]:
    """Damage in nats, summed over the tokens of each of `n_segments` stretches of each window, which are of one length:
    [kind][window][version][segment].

    kind "kl": KL(whole ‖ version) = Σ p log p − Σ p log q; "loss": negative log-likelihood of the text, whose mean's
    exponential is perplexity. Infinite where logits are not finite.
    """
    import torch

    tokens = torch.tensor([list(w) for w in windows], device=run_device(model))
    n, logits = tokens.shape[1] - 1, head(model)
    found = torch.empty(len(kinds), len(windows), len(versions), n, dtype=torch.float64)
    with torch.inference_mode():
        streams = sweep(model, [*versions, *([all_halves(len(model.model.layers))] if "kl" in kinds else [])], tokens)
        with at_hand(model.model.norm, model.lm_head):
            for w in range(len(windows)):
                for start in range(0, n, CHUNK_TOKENS):
                    chunk = slice(start, min(start + CHUNK_TOKENS, n))
                    whole = _logp(logits(streams[-1][w : w + 1, chunk])) if "kl" in kinds else None
                    judges = [_kl(whole) if kind == "kl" else _loss(tokens[w, 1:][chunk]) for kind in kinds]
                    for v in range(len(versions)):
                        logq = _logp(logits(streams[v][w : w + 1, chunk]))
                        for k, judge in enumerate(judges):
                            found[k, w, v, chunk] = judge(logq).double().cpu()
    found = found.nan_to_num(nan=float("inf"))
    return torch.stack([s.sum(-1) for s in found.tensor_split(n_segments, dim=-1)], dim=-1).tolist()


def _logp(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(-1)


def _kl(logp: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """p and its own term are computed once. Rounding below zero is cut off, so that sums never fall."""
    import torch

    p = logp.exp()
    negentropy = torch.linalg.vecdot(p, logp)
    return lambda logq: (negentropy - torch.linalg.vecdot(p, logq)).clamp(min=0)


def _loss(targets: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda logq: -logq.gather(1, targets[:, None].to(logq.device))[:, 0]


def _cat(streams: list[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.cat([s.to(streams[-1].device) for s in streams]) if len(streams) > 1 else streams[0]


def _alone(stream: torch.Tensor) -> torch.Tensor:
    """Without the streams that came out of the same call, so that those can go."""
    return stream.clone() if stream.untyped_storage().nbytes() > stream.nbytes else stream


def measured_on(
    model: Any, windows: Sequence[Sequence[int]], work: Any, kinds: Sequence[str], n_segments: int = 1
) -> Measured:
    """A function of versions, window numbers and a tick -> [window][kind][version][segment], done in pieces by `work`.

    A piece is a window; of a single one it is half of many versions, so that two processes have something to do.
    """

    def measure(versions: Sequence[Kept], chosen: Sequence[int], tick: Callable[[int], None]) -> list[Any]:
        streams = room(model, windows, work.max_bytes, least=2)
        sweeps = -(-len(versions) // (streams - 1))  # one stream is the whole model's
        per_sweep = -(-len(versions) // sweeps)

        def do(versions: Sequence[Kept], piece: Sequence[int]) -> list[Any]:
            here = [windows[w] for w in piece]
            parts = [
                damages(model, versions[i : i + per_sweep], here, kinds, n_segments)
                for i in range(0, len(versions), per_sweep)
            ]
            return [
                [[one for part in parts for one in part[k][w]] for k in range(len(kinds))] for w in range(len(piece))
            ]

        if len(chosen) > 1 or len(versions) < MANY:
            at_once = streams // (per_sweep + 1)
            return each_window(model, windows, chosen, work, lambda piece: do(versions, piece), at_once, tick)
        even, odd = work.each([versions[::2], versions[1::2]], lambda some: do(some, chosen)[0])
        tick(1)
        dealt = [
            [found[k // 2] for k, found in zip(range(len(versions)), cycle(both))]
            for both in zip(even, odd, strict=True)
        ]
        return [dealt]

    return measure
