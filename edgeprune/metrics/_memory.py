"""How much of the streams fits in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from edgeprune import families
from edgeprune.divergence import CHUNK_TOKENS
from edgeprune.errors import OutOfResources
from edgeprune.metrics._halves import rows, run_device
from edgeprune.metrics._weights import offloaded

if TYPE_CHECKING:
    import torch


def room(model: Any, windows: Sequence[Sequence[int]], max_bytes: int, least: int) -> int:
    """How many streams of the longest window fit in `max_bytes`, beside the weights in memory and what a call works in.

    Raises OutOfResources when they are fewer than `least`.
    """
    n_tokens = max(map(len, windows))
    stream = n_tokens * model.config.hidden_size * model.dtype.itemsize
    taken = _in_memory(model) + _brought(model) + _working(model, n_tokens)
    if taken + least * stream > max_bytes:
        raise OutOfResources(
            f"scoring by windows of {n_tokens} tokens takes at least {(taken + least * stream) / 1e6:.0f} MB, "
            f"{max_bytes / 1e6:.0f} MB is the limit; raise --max-memory or take shorter windows"
        )
    return (max_bytes - taken) // stream


def each_window(
    model: Any, windows: Sequence[Sequence[int]], chosen: Sequence[int], work: Any,
    do: Callable[[list[int]], list[Any]], at_once: int, tick: Callable[[int], None],
) -> list[Any]:  # fmt: skip
    """One answer for every chosen window, in order; do(some window numbers) gives theirs.

    One by one, or `at_once` (of one length) when weights don't stay in memory, so that they are brought once for all.
    `tick` is told how many windows are done.
    """
    most = max(1, at_once) if offloaded(model) else 1
    ready: dict[int, Any] = {}  # answers that came together with an earlier one

    def answer(i: int) -> Any:
        if i not in ready:
            mine = range(i, len(chosen), work.world)[:most]  # those that this process will be asked for
            same = [k for k in mine if len(windows[chosen[k]]) == len(windows[chosen[i]])]
            ready.update(zip(same, do([chosen[k] for k in same]), strict=True))
        return ready.pop(i)

    return work.each(range(len(chosen)), answer, tick)


def backward_bytes(model: Any, n_tokens: int) -> int:
    """What a window's forward pass keeps for its backward one: about five widths of the feed-forward and twelve of the
    stream for every token and layer, and the logits in eight guises (measured on llama)."""
    d = families.decoder(model.config.to_dict())
    scores = 4 * d.n_heads * n_tokens if model.config._attn_implementation == "eager" else 0
    kept = d.n_blocks * (5 * d.ffn + 12 * max(d.hidden, d.n_heads * d.head_dim) + scores)
    return n_tokens * (kept * model.dtype.itemsize + 8 * 4 * d.vocab)


def _in_memory(model: Any) -> int:
    """Weights on the device that holds most of them."""
    held: dict[torch.device, int] = {}
    for p in model.parameters():
        if p.device.type != "meta":
            held[p.device] = held.get(p.device, 0) + p.nbytes
    return max(held.values(), default=0)


def _brought(model: Any) -> int:
    """The most that comes at a time of what does not stay: half a layer, embeddings or head.

    A tensor stored in another type lies there twice while it is converted, four bytes per element at most.
    """

    def size(parameters: Iterable[torch.Tensor]) -> int:
        absent = [p for p in parameters if p.device.type == "meta"]
        return sum(p.nbytes for p in absent) + max((4 * p.numel() for p in absent), default=0)

    children = [child for layer in model.model.layers for child in layer.children()]
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    return max(size(module.parameters()) for module in (*children, *ends))


def _working(model: Any, n_tokens: int) -> int:
    """Temporaries of one call: of half a layer, or of the head and the divergence of its logits, whichever is more."""
    d = families.decoder(model.config.to_dict())
    n = max(rows(run_device(model)), n_tokens)
    wide = 4 * d.hidden + 4 * max(d.ffn, d.n_heads * d.head_dim)
    scores = 3 * d.n_heads * n_tokens if model.config._attn_implementation == "eager" else 0
    logits = 7 * min(CHUNK_TOKENS, n_tokens) * d.vocab
    repacked = 0 if model.dtype.itemsize == 4 else max(p.nbytes for p in model.parameters())  # by oneDNN, for a product
    return repacked + max(n * (wide + scores) * model.dtype.itemsize, 4 * logits)
