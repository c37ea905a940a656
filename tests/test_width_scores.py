"""Every way to rate widths against a few lines that compute its formula from whole activations or gradients."""

from __future__ import annotations

import numpy as np
import pytest
from _widths import outputs, seen, whole_model

from edgeprune.catalog import load

WINDOWS = [list(range(3, 35)), list(range(40, 72)), [5, 9] * 16]


@pytest.fixture(scope="module")
def model(tiny_folder):
    m = whole_model(tiny_folder("llama"))
    return m.requires_grad_(False)


def rate(method, m):
    ticks = []
    found = load("edgeprune.widths", method).rate(m, WINDOWS, lambda done, of: ticks.append((done, of)))
    assert ticks[-1] == (len(WINDOWS), len(WINDOWS))
    return found


def layers(m):
    """Per layer its two output projections as (W, X)."""
    for i in range(len(m.model.layers)):
        parts = outputs(m, i)
        yield [(p.weight.double().numpy(), x) for p, x in zip(parts, seen(m, parts, WINDOWS), strict=True)]


def test_flap(model):
    found = rate("flap", model)
    for i, ((wo, xo), (wd, xd)) in enumerate(layers(model)):
        s = (xo.var(0) * (wo**2).sum(0)) ** 2
        heads = ((s - s.mean()) / s.std(ddof=1)).reshape(2, 32).mean(1)  # 2 groups of 2 heads of 16
        np.testing.assert_allclose(found.groups[i], heads, rtol=1e-6)
        c = xd.var(0) * (wd**2).sum(0)
        np.testing.assert_allclose(found.channels[i], (c - c.mean()) / c.std(ddof=1), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found.attn_means[i], xo.mean(0), rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(found.ffn_means[i], xd.mean(0), rtol=1e-6, atol=1e-12)


def test_wanda_sp(model):
    found = rate("wanda_sp", model)
    for i, ((wo, xo), (wd, xd)) in enumerate(layers(model)):
        heads = (abs(wo) * np.linalg.norm(xo, axis=0)).mean(0).reshape(2, 32).sum(1)
        np.testing.assert_allclose(found.groups[i], heads, rtol=1e-6)
        np.testing.assert_allclose(found.channels[i], (abs(wd) * np.linalg.norm(xd, axis=0)).mean(0), rtol=1e-6)


def test_taylor(tiny_folder, model):
    import torch

    before = {n: p.clone() for n, p in model.named_parameters()}
    found = rate("taylor", model)
    assert all(
        torch.equal(p, before[n]) and not p.requires_grad and p.grad is None for n, p in model.named_parameters()
    )
    m = whole_model(tiny_folder("llama"))
    loss = sum(m(input_ids=torch.tensor([w]), labels=torch.tensor([w])).loss for w in WINDOWS)
    loss.backward()
    for i, layer in enumerate(m.model.layers):
        product = {n: (p * p.grad).detach().double().abs().numpy() for n, p in layer.named_parameters() if p.ndim == 2}
        q, k, v, o = (product[f"self_attn.{x}_proj.weight"] for x in "qkvo")
        heads = sum(x.sum(1).reshape(2, -1).sum(1) for x in (q, k, v)) + o.sum(0).reshape(2, -1).sum(1)
        np.testing.assert_allclose(found.groups[i], heads, rtol=1e-4)
        gate, up, down = (product[f"mlp.{x}_proj.weight"] for x in ("gate", "up", "down"))
        np.testing.assert_allclose(found.channels[i], gate.sum(1) + up.sum(1) + down.sum(0), rtol=1e-4)


def test_taylor_takes_fused_matrices_apart(tiny_folder):
    """Phi-3 keeps queries, keys and values in one matrix, gate and up in another; a llama of the same weights does not."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fused = whole_model(tiny_folder("phi3")).requires_grad_(False)
    c = fused.config
    same = dict(
        vocab_size=c.vocab_size, hidden_size=64, intermediate_size=96, num_hidden_layers=c.num_hidden_layers, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=c.rms_norm_eps, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    apart = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **same), dtype=torch.float32)
    state = {}
    for name, value in fused.state_dict().items():
        if "qkv_proj" in name:
            parts = value.split([64, 32, 32])
            state |= {name.replace("qkv_proj", f"{x}_proj"): part for x, part in zip("qkv", parts, strict=True)}
        elif "gate_up_proj" in name:
            state |= dict(zip([name.replace("gate_up", x) for x in ("gate", "up")], value.chunk(2), strict=True))
        else:
            state[name] = value
    apart.load_state_dict(state)
    one, other = rate("taylor", fused), rate("taylor", apart.eval().requires_grad_(False))
    np.testing.assert_allclose(one.groups, other.groups, rtol=1e-4)
    np.testing.assert_allclose(one.channels, other.channels, rtol=1e-4)


def test_slicegpt_finds_the_principal_directions(model):
    q = load("edgeprune.widths", "slicegpt").rotation(model, WINDOWS, lambda *_: None).numpy()
    np.testing.assert_allclose(q.T @ q, np.eye(64), atol=1e-10)
    norms = [n for layer in model.model.layers for n in (layer.input_layernorm, layer.post_attention_layernorm)]
    streams = np.concatenate(seen(model, [*norms, model.model.norm], WINDOWS))
    unit = streams / np.sqrt((streams**2).mean(1, keepdims=True))
    spread = q.T @ (unit.T @ unit) @ q
    assert abs(spread - np.diag(np.diag(spread))).max() < 1e-3 * np.diag(spread).max()
    assert (np.diff(np.diag(spread)) < 1e-6).all()
