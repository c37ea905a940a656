"""What each decoder layer was called with, caught by hooks, so that a candidate costs only its tail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from edgeprune import families

if TYPE_CHECKING:
    import torch


class LayerCall(NamedTuple):
    hidden: torch.Tensor  # (1, t, d): the stream before the layer
    kwargs: dict[str, Any]  # mask, rotary embeddings, …


class Capture(NamedTuple):
    calls: list[LayerCall]
    stream: torch.Tensor  # (1, t, d): the stream after the last layer, before the final norm


def capture(model: Any, tokens: torch.Tensor) -> Capture:
    """Run the decoder on tokens (1, t) and keep every layer's input. The head is not run."""
    calls: list[LayerCall] = []
    last: list[Any] = []

    def before(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        calls.append(LayerCall(hidden, {k: v for k, v in kwargs.items() if k != "hidden_states"}))

    def after(_module: Any, _args: Any, out: Any) -> None:
        last[:] = [out[0] if isinstance(out, tuple) else out]

    layers = model.model.layers
    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    handles.append(layers[-1].register_forward_hook(after))
    try:
        model.model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return Capture(calls, last[0])


def run_layers(layers: Any, hidden: torch.Tensor, calls: list[LayerCall]) -> torch.Tensor:
    """The stream (1, t, d) after `layers`, each called as `calls` says but on the running stream."""
    for layer, call in zip(layers, calls, strict=True):
        out = layer(hidden, **call.kwargs)
        hidden = out[0] if isinstance(out, tuple) else out
    return hidden


def head(model: Any, stream: torch.Tensor) -> torch.Tensor:
    """Logits (t, v) from the stream (1, t, d), scaled and capped as the family does."""
    import torch

    d = families.decoder(model.config.to_dict())
    logits = model.lm_head(model.model.norm(stream))[0] * d.logit_scale
    return logits if d.logit_softcap is None else d.logit_softcap * torch.tanh(logits / d.logit_softcap)
