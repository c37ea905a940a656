"""A decoder taken apart: what comes before its layers, every half of a layer by itself, the head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from edgeprune import families
from edgeprune.blocks import kept_sublayers, whole
from edgeprune.metrics._weights import at_hand
from edgeprune.types import Blocks

if TYPE_CHECKING:
    import torch

Half = tuple[str, int]  # ("A", 3) is the attention of layer 3, ("F", 3) its feed-forward
Kept = tuple[Half, ...]  # in the order they run

ROWS = {"cpu": 512, "cuda": 1 << 15}  # tokens in one call: enough to fill the device, few enough for caches


def all_halves(n_blocks: int) -> Kept:
    return kept(whole(n_blocks))


def kept(blocks: Blocks) -> Kept:
    return tuple(kept_sublayers(blocks))


def missing(version: Kept, whole: Kept) -> Kept:
    stays = set(version)
    return tuple(half for half in whole if half not in stays)


def with_back(version: Kept, some: Iterable[Half], whole: Kept) -> Kept:
    stays = {*version, *some}
    return tuple(half for half in whole if half in stays)


def run_device(model: Any) -> torch.device:
    """Where tokens go: the device of the embedding, or the one its weights are brought to when they lie elsewhere."""
    import torch

    embedding = model.get_input_embeddings()
    hook = vars(embedding).get("_hf_hook")  # of accelerate's
    device = torch.device(hook.execution_device) if hook is not None else embedding.weight.device
    return torch.device("cpu") if device.type == "meta" else device


def rows(device: torch.device) -> int:
    """Tokens to run through a layer in one call, on this kind of device."""
    return ROWS.get(device.type, ROWS["cpu"])


def entrance(model: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """The stream (g, t, d) before the first layer, and what each layer is called with beside it: mask, rotation, ….

    Nothing is padded, so these depend on t alone; they are those of one window and fit any number of them.
    """
    with at_hand(model.get_input_embeddings()):
        return _calls(model, tokens)[0][0], [kwargs for _, kwargs in _calls(model, tokens[:1])]


def _calls(model: Any, tokens: torch.Tensor) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """How each layer would be called. None is run: stand-ins note their call and pass the stream on."""
    calls: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def note(hidden_states: torch.Tensor, *_args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append((hidden_states, kwargs))
        return hidden_states

    decoder = model.model
    vars(decoder)["layers"] = [note] * len(decoder.layers)  # found before torch's own look-up of children
    try:
        decoder(input_ids=tokens, use_cache=False)
    finally:
        del vars(decoder)["layers"]
    return calls


def halves(model: Any) -> Iterator[tuple[Half, Callable[..., torch.Tensor]]]:
    """Every layer twice, sharing its weights: once with only its attention, once with only its feed-forward.

    Each is called as run(stream (g, t, d), **kwargs of its layer) -> stream, while the iteration stands at it: weights
    that don't stay in memory are read when it comes and dropped when it goes on. The other half's module gives zero and
    its norms pass that on, so norms after a sub-layer, residual multipliers and whatever else a family's layer does stay
    the family's own code.
    """
    family = families.for_model_type(model.config.model_type)
    attention, feed_forward = map(_child, family.OUTPUTS)
    other_half_gone = {
        "A": _pass_on(family.FFN) | {feed_forward: _zero},
        "F": _pass_on(family.ATTN) | {attention: lambda *args, **kwargs: (_zero(*args, **kwargs), None)},
    }
    for i, layer in enumerate(model.model.layers):
        for kind, changes in other_half_gone.items():
            with at_hand(*(child for name, child in layer.named_children() if name not in changes)):
                yield (kind, i), _with(layer, changes)


def head(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Stream (1, t, d) -> logits (t, v), scaled and capped as the family does."""
    import torch

    d = families.decoder(model.config.to_dict())

    def logits(stream: torch.Tensor) -> torch.Tensor:
        plain = model.lm_head(model.model.norm(stream))[0]
        if d.logit_scale != 1:
            plain = plain * d.logit_scale
        return plain if d.logit_softcap is None else d.logit_softcap * torch.tanh(plain / d.logit_softcap)

    return logits


def _zero(*args: Any, **kwargs: Any) -> torch.Tensor:
    return (args[0] if args else kwargs["hidden_states"]).new_zeros(())


def _pass_on(paths: dict[str, str]) -> dict[str, Callable[..., Any]]:
    return {_child(path): lambda x: x for path in paths}


def _child(path: str) -> str:
    return path.partition(".")[0]


def _with(layer: Any, changes: dict[str, Callable[..., Any]]) -> Callable[..., torch.Tensor]:
    """A shallow copy of a layer with some of its children replaced. The original is untouched."""
    import torch

    part = copy.copy(layer)
    vars(part).update(changes)  # found before torch's own look-up of children
    hook = vars(part).pop("_hf_hook", None)  # accelerate's, of a layer that lies on another device or on disk
    vars(part).pop("forward", None)  # which it bound to the original

    def call(stream: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        if hook is not None:
            (stream,), kwargs = hook.pre_forward(part, stream, **kwargs)
        out = part(stream, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def run(stream: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        most = max(1, rows(stream.device) // stream.shape[1])
        if len(stream) <= most:
            return call(stream, kwargs)
        out = torch.empty_like(stream)  # in turn, so that what a call works in does not grow with the windows
        for there, here in zip(out.split(most), stream.split(most), strict=True):
            there.copy_(call(here, kwargs))
        return out

    return run
