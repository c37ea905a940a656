"""A decoder taken apart: what comes before its layers, every half of a layer by itself, the head."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgeprune import families

if TYPE_CHECKING:
    import torch

Half = tuple[str, int]  # ("A", 3) is the attention of layer 3, ("F", 3) its feed-forward
Kept = tuple[Half, ...]  # in the order they run


def all_halves(n_blocks: int) -> Kept:
    return tuple((kind, i) for i in range(n_blocks) for kind in "AF")


def run_device(model: Any) -> torch.device:
    """Where tokens go: the device of the embedding, or the one its weights are brought to when they lie elsewhere."""
    import torch

    embedding = model.get_input_embeddings()
    hook = vars(embedding).get("_hf_hook")  # of accelerate's
    device = torch.device(hook.execution_device) if hook is not None else embedding.weight.device
    return torch.device("cpu") if device.type == "meta" else device


def entrance(model: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """The stream (g, t, d) before the first layer, and what each layer is called with beside it: mask, rotation, ….

    Nothing is padded, so these depend on t alone; they are those of one window and fit any number of them.
    """
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


def halves(model: Any) -> list[tuple[Half, Callable[..., torch.Tensor]]]:
    """Every layer twice, sharing its weights: once with only its attention, once with only its feed-forward.

    Each is called as run(stream (g, t, d), **kwargs of its layer) -> stream. The other half's module gives zero and its
    norms pass that on, so norms after a sub-layer, residual multipliers and whatever else a family's layer does stay the
    family's own code.
    """
    family = families.for_model_type(model.config.model_type)
    attention, feed_forward = (path.partition(".")[0] for path in family.OUTPUTS)
    no_attention = _pass_on(family.ATTN) | {attention: lambda *args, **kwargs: (_zero(*args, **kwargs), None)}
    no_feed_forward = _pass_on(family.FFN) | {feed_forward: _zero}
    return [
        half
        for i, layer in enumerate(model.model.layers)
        for half in ((("A", i), _with(layer, no_feed_forward)), (("F", i), _with(layer, no_attention)))
    ]


def head(model: Any, stream: torch.Tensor) -> torch.Tensor:
    """Logits (t, v) from the stream (1, t, d), scaled and capped as the family does."""
    import torch

    d = families.decoder(model.config.to_dict())
    logits = model.lm_head(model.model.norm(stream))[0] * d.logit_scale
    return logits if d.logit_softcap is None else d.logit_softcap * torch.tanh(logits / d.logit_softcap)


def _zero(*args: Any, **kwargs: Any) -> torch.Tensor:
    return (args[0] if args else kwargs["hidden_states"]).new_zeros(())


def _pass_on(paths: dict[str, str]) -> dict[str, Callable[..., Any]]:
    return {path.partition(".")[0]: lambda x: x for path in paths}


def _with(layer: Any, changes: dict[str, Callable[..., Any]]) -> Callable[..., torch.Tensor]:
    """A shallow copy of a layer with some of its children replaced. The original is untouched."""
    part = copy.copy(layer)
    vars(part).update(changes)  # found before torch's own look-up of children
    hook = vars(part).pop("_hf_hook", None)  # accelerate's, of a layer that lies on another device or on disk
    vars(part).pop("forward", None)  # which it bound to the original

    def run(stream: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if hook is not None:
            (stream,), kwargs = hook.pre_forward(part, stream, **kwargs)
        out = part(stream, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    return run
