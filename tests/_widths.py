"""Thin models the slow way: activations kept whole, removals as zeros in the whole model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeprune import families
from edgeprune.catalog import load
from edgeprune.width_plan import Widths

TOKENS = list(range(5, 45))


def whole_model(folder: Path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def outputs(m, i: int) -> list:
    """A layer's output projections, of attention and of the feed-forward."""
    return [m.model.layers[i].get_submodule(p) for p in families.for_model_type(m.config.model_type).OUTPUTS]


def seen(m, modules, windows) -> list[np.ndarray]:
    """All that goes into each module, (tokens, k), float64."""
    import torch

    found: dict = {module: [] for module in modules}
    hooks = [x.register_forward_pre_hook(lambda x, a: found[x].append(a[0][0].double().numpy())) for x in modules]
    with torch.no_grad():
        for w in windows:
            m(input_ids=torch.tensor([w]))
    for hook in hooks:
        hook.remove()
    return [np.concatenate(parts) for parts in found.values()]


def gone(plan: Widths, m, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns of a layer's two output projections that the plan takes out."""
    attn, ffn = (p.in_features for p in outputs(m, i))
    groups = families.decoder(m.config.to_dict()).n_kv_heads

    def mask(text: str | None, n: int, each: int) -> np.ndarray:
        out = np.zeros(n, bool) if text is None else np.ones(n, bool)
        for part in (text or "").split():
            first, last = (part.split("-") * 2)[:2]
            out[int(first) : int(last) + 1] = False
        return np.repeat(out, each)

    return mask(plan.blocks[i].groups, groups, attn // groups), mask(plan.blocks[i].channels, ffn, 1)


def masked(folder: Path, plan: Widths, windows=None) -> np.ndarray:
    """Logits (t, v) of the whole model with zeros where the plan takes out; with windows, their mean inputs stay."""
    import torch

    m = whole_model(folder)
    layers = range(m.config.num_hidden_layers)
    every = [p for i in layers for p in outputs(m, i)]
    inputs = seen(m, every, windows) if windows else [None] * len(every)
    with torch.no_grad():
        for p, x, columns in zip(every, inputs, (c for i in layers for c in gone(plan, m, i)), strict=True):
            if x is not None:
                lost = torch.tensor(x.mean(0)[columns]).float() @ p.weight[:, columns].T
                p.bias = torch.nn.Parameter(lost if p.bias is None else p.bias + lost)
            p.weight[:, columns] = 0
        return m(input_ids=torch.tensor([TOKENS])).logits[0].numpy()


def logits(path: Path) -> np.ndarray:
    """Logits (t, v) of an artifact in its own runtime, as exact as that goes."""
    runtime = {".gguf": "llamacpp"}.get(path.suffix) or (
        "onnxruntime" if (path / "model.onnx").exists() else "transformers"
    )
    session = load("edgeprune.runtimes", runtime).open_session(path, n_ctx=64, n_threads=1, precise=True)
    try:
        return session.logits(TOKENS).copy()
    finally:
        session.close()
