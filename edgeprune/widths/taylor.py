"""Taylor: what the loss loses, to first order, with a channel or a group of heads and all weights that go with it
(LLM-Pruner, Ma et al. 2023, arXiv:2305.11627, section 3.2, first order, sum over the group).

I = Σ_w | w · Σ_b ∂L_b/∂w | over the weights w of its rows of the input projections and its columns of the output
projection, L_b the mean cross-entropy of window b. Its code (horseee/LLM-Pruner, hf_prune.py, block-wise) leaves the first
four and the last two layers as they are and removes the same from all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeprune import families
from edgeprune.widths._inputs import n_groups
from edgeprune.widths._ratings import Ratings, by_group, lists

if TYPE_CHECKING:
    import torch

SOURCE = "LLM-Pruner, Ma et al. 2023, arXiv:2305.11627, first order"
SPREAD = "inner"
COMPENSATES = False


def rate(model: Any, windows: Sequence[Sequence[int]], progress: Callable[[int, int], None]) -> Ratings:
    """Takes four bytes per weight of the blocks for the gradients; the model comes back as it was."""
    family = families.for_model_type(model.config.model_type)
    roles = {path: role for path, role in {**family.ATTN, **family.FFN}.items() if not role.endswith("norm")}
    layers = [{role: layer.get_submodule(path).weight for path, role in roles.items()} for layer in model.model.layers]
    found = _products(model, [w for layer in layers for w in layer.values()], windows, progress)
    n, groups, channels = n_groups(model), [], []
    for layer in layers:
        of = {role: found[w] for role, w in layer.items()}
        rows = {role: products.sum(1) for role, products in of.items()}
        attn = [by_group(of["attn_output"].sum(0), n)]
        if "attn_qkv" in of:
            q = of["attn_output"].shape[1]
            kv = (len(rows["attn_qkv"]) - q) // 2
            attn += [by_group(part, n) for part in rows["attn_qkv"].split([q, kv, kv])]
        else:
            attn += [by_group(rows[role], n) for role in ("attn_q", "attn_k", "attn_v")]
        groups.append(sum(attn))
        inner = rows["ffn_gate"] + rows["ffn_up"] if "ffn_gate" in of else sum(rows["ffn_up"].chunk(2))
        channels.append(of["ffn_down"].sum(0) + inner)
    return Ratings(lists(groups), lists(channels))


def _products(
    model: Any, weights: list[Any], windows: Sequence[Sequence[int]], progress: Callable[[int, int], None]
) -> dict[Any, torch.Tensor]:
    """|w · Σ ∂L/∂w| of each weight, on the CPU, float32."""
    import torch
    from torch.nn.functional import cross_entropy

    gradient = {w: torch.zeros_like(w, dtype=torch.float32) for w in weights}

    def accumulate(w: Any) -> None:
        """Into float32, whatever the weights are; called as soon as one gradient is there, so that it can go."""
        gradient[w] += w.grad
        w.grad = None

    before = [w.requires_grad for w in weights]
    for w in weights:
        w.requires_grad_(True)
    noted = [w.register_post_accumulate_grad_hook(accumulate) for w in weights]
    try:
        with torch.enable_grad():
            for done, window in enumerate(windows, 1):
                tokens = torch.tensor([list(window)], device=model.device)
                logits = model(input_ids=tokens, use_cache=False).logits[0]
                cross_entropy(logits[:-1].float(), tokens[0, 1:]).backward()
                progress(done, len(windows))
    finally:
        for handle, w, needed in zip(noted, weights, before, strict=True):
            handle.remove()
            w.requires_grad_(needed)
    return {w: g.mul_(w.detach()).abs_().cpu() for w, g in gradient.items()}
