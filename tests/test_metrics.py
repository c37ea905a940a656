"""Every criterion against its formula in a few lines of plain torch, and against blocks planted to be useless."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from conftest import FAMILIES
from safetensors.numpy import load_file
from test_prune import own_windows
from typer.testing import CliRunner

from edgeprune import families, model, score, torch_model
from edgeprune.blocks import kept_sublayers, removed_sublayers, whole
from edgeprune.calibration import Windows
from edgeprune.catalog import load
from edgeprune.errors import InputRejected, UsageError
from edgeprune.metrics import _spans
from edgeprune.metrics._streams import streams
from edgeprune.types import Text
from edgeprune.work import Work

RATES = ("block_influence", "magnitude", "perplexity", "relative_magnitude", "taylor")
PATHS = ("angular_span", "cosine_span", "sublayer_cosine")
N = 5


def rate(metric, m, windows):
    return load("edgeprune.metrics", metric).rate(m, windows, Work())


def path(metric, m, windows, max_steps):
    return load("edgeprune.metrics", metric).path(m, windows, max_steps, Work())


def hidden_states(m, window):
    """transformers' own, float64: N + 1 of (t, d), the last one before the final norm."""
    import torch

    norm, m.model.norm = m.model.norm, torch.nn.Identity()
    try:
        with torch.inference_mode():
            states = m(torch.tensor([window]), output_hidden_states=True).hidden_states
    finally:
        m.model.norm = norm
    return [h[0].double() for h in states]


def sublayer_states(m, window):
    """2N + 1 of (t, d): what a layer puts out when its feed-forward adds nothing is the stream after its attention."""
    between = hidden_states(m, window)
    ffn_out = families.for_model_type(m.config.model_type).OUTPUTS[1]
    out = [between[0]]
    for i in range(N):
        weight = m.model.layers[i].get_submodule(ffn_out).weight
        kept = weight.detach().clone()
        weight.zero_()
        out += [hidden_states(m, window)[i + 1], between[i + 1]]
        weight.copy_(kept)
    return out


def cosine(x, y):
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))


def ragged():
    """Windows of unequal lengths: means are over tokens, not over windows."""
    import torch

    torch.manual_seed(0)
    return [torch.randint(3, 300, (n,)).tolist() for n in (24, 9, 15)]


def some_text():
    return Windows(ragged(), Text(name="random", sha256="0", tokens=48, context_tokens=24, stride_tokens=24))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_is_caught_between_the_halves_of_a_block(family, tiny_folder):
    import torch

    m = torch_model.load(tiny_folder(family))
    window = ragged()[0]
    with torch.inference_mode():
        found, wanted = [h[0] for h in streams(m, torch.tensor([window]))], sublayer_states(m, window)
    assert len(found) == len(wanted) == 2 * N + 1
    for k, (x, y) in enumerate(zip(found, wanted, strict=True)):
        assert (x.double() - y).abs().max() < 1e-5 * y.abs().max(), k
    assert all((x - y).abs().max() > 1e-3 for x, y in pairwise(found))


@pytest.mark.parametrize("family", FAMILIES)
def test_sublayer_cosine_is_llm_drops(family, tiny_folder):
    import torch

    m = torch_model.load(tiny_folder(family))
    windows = ragged()
    states = [torch.cat(s) for s in zip(*(sublayer_states(m, w) for w in windows), strict=True)]
    damage = [1 - cosine(x, y).mean().item() for x, y in pairwise(states)]
    order = sorted(range(2 * N), key=damage.__getitem__)
    lists = path("sublayer_cosine", m, windows, 2 * N)
    assert len(lists) == 2 * N  # one half stays
    for step, blocks in enumerate(lists):
        assert kept_sublayers(blocks) == [("AF"[k % 2], k // 2) for k in sorted(order[step:])]
        assert not any(a.ffn is None and b.attn is None for a, b in pairwise(blocks))  # these make one block


def test_relative_magnitude_is_the_ratio_of_norms(tiny_folder):
    import torch

    m = torch_model.load(tiny_folder("qwen2"))
    windows = ragged()
    states = [torch.cat(s) for s in zip(*(hidden_states(m, w) for w in windows), strict=True)]
    wanted = [((y - x).norm(dim=-1) / y.norm(dim=-1)).mean().item() for x, y in pairwise(states)]
    assert rate("relative_magnitude", m, windows) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("metric", ["cosine_span", "angular_span"])
def test_spans_are_the_best_of_each_length(metric, tiny_folder):
    """Brute force over every run, formulas of LLM-Streamline and of Gromov et al."""
    m = torch_model.load(tiny_folder("llama"))
    windows = ragged()
    states = [hidden_states(m, w) for w in windows]

    def distance(first, length):
        if metric == "angular_span":
            last = [cosine(h[first][-1], h[first + length][-1]).item() for h in states]
            return sum(math.acos(c) / math.pi for c in last)
        return -sum(cosine(h[first], h[first + length]).sum().item() for h in states)

    lists = path(metric, m, windows, 9)
    assert lists[0] == whole(N) and len(lists) == N
    for length in range(1, N):
        first = min(range(N - length + 1), key=lambda f: distance(f, length))  # noqa: B023
        assert [b.attn for b in lists[length]] == [i for i in range(N) if not first <= i < first + length]


def test_spans_of_growing_length_need_not_be_nested():
    """Streams as angles on a circle, before block 0, 1, … and after the last."""
    import torch

    angle = torch.tensor([0.0, 0.1, 1.0, 1.2, 1.4, 2.4])
    at = _spans.cosines(torch.stack([angle.cos(), angle.sin()], dim=1))
    assert at.numpy() == pytest.approx((angle[:, None] - angle).cos().numpy(), abs=1e-6)
    assert [b.attn for b in _spans.best_runs(-at, 2)[1]] == [1, 2, 3, 4]
    assert [b.attn for b in _spans.best_runs(-at, 2)[2]] == [0, 1, 4]


def test_magnitude_sums_the_matrices_of_the_file(tiny_folder):
    folder = tiny_folder("qwen2")  # has biases, which don't count
    tensors = load_file(folder / "model.safetensors")
    wanted = [sum(abs(w).sum() for k, w in tensors.items() if f".{i}." in k and w.ndim == 2) for i in range(N)]
    assert rate("magnitude", torch_model.load(folder), []) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_taylor_sums_over_windows_before_it_takes_absolutes(family, tiny_folder):
    import torch

    m = torch_model.load(tiny_folder(family))
    windows = ragged()
    found = rate("taylor", m, windows)
    assert not any(p.requires_grad or p.grad is not None for p in m.parameters())
    m.requires_grad_(True)
    named = {k: p for k, p in m.named_parameters() if ".layers." in k and p.ndim == 2}
    signed = dict.fromkeys(named, 0)
    for w in windows:
        loss = m(torch.tensor([w]), labels=torch.tensor([w])).loss
        for (k, p), g in zip(named.items(), torch.autograd.grad(loss, list(named.values())), strict=True):
            signed[k] = signed[k] + p.detach() * g
    wanted = [sum(s.abs().sum().item() for k, s in signed.items() if f".layers.{i}." in k) for i in range(N)]
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.fixture(scope="module")
def planted(tiny_folder):
    """A model whose blocks 1 and 2 do almost nothing, and text it wrote."""
    m = torch_model.load(tiny_folder("llama"))
    for i in (1, 2):
        for name in families.for_model_type("llama").OUTPUTS:
            m.model.layers[i].get_submodule(name).weight.mul_(1e-3)
    return m, own_windows(m).windows


@pytest.mark.parametrize("metric", RATES + PATHS)
def test_a_planted_run_of_near_identities_is_found(metric, planted):
    if metric in RATES:
        damage = rate(metric, *planted)
        assert set(sorted(range(N), key=damage.__getitem__)[:2]) == {1, 2}
    else:
        steps = 4 if metric == "sublayer_cosine" else 2
        assert [b.attn for b in path(metric, *planted, steps)[steps]] == [0, 3, 4]


def test_protected_ends_are_never_removed(tiny_folder):
    folder = tiny_folder("llama", n_blocks=6)
    m, spec, text = torch_model.load(folder), model.inspect(folder), some_text()
    found = score.score(m, spec, text, score.Method("magnitude", 9, protect=(2, 1)))
    damage = found.block_damage
    order = sorted([2, 3, 4], key=lambda i: damage[i])
    for step, entry in enumerate(found.path):
        assert {i for _, i in removed_sublayers(entry.blocks, 6)} == set(order[:step])
    assert len(found.path) == 4 and found.source.endswith("; first 2 and last 1 blocks kept")
    with pytest.raises(UsageError, match="none of 6 blocks"):
        score.score(m, spec, text, score.Method("magnitude", 9, protect=(4, 2)))
    with pytest.raises(UsageError, match="cosine_span does not; those are block_influence"):
        score.score(m, spec, text, score.Method("cosine_span", 1, protect=(1, 1)))


@pytest.mark.parametrize("value", ["4", "4,-2", "a,b", "1,2,3"])
def test_a_malformed_protect_is_refused(value, tmp_path):
    import edgeprune.cli.score  # noqa: F401  registers the verb
    from edgeprune.cli._app import app

    result = CliRunner().invoke(app, ["score", "nowhere", "-o", str(tmp_path / "s.json"), "--protect", value])
    assert result.exit_code == 2 and "two numbers such as 4,2" in " ".join(result.output.split())


@pytest.mark.parametrize("metric", ["cosine_span", "taylor", "magnitude"])
def test_weights_that_are_not_finite_are_named_whatever_the_metric(metric, tiny_folder):
    folder = tiny_folder("llama")
    m, text = torch_model.load(folder), some_text()
    m.model.layers[3].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(InputRejected, match=r"model\.layers\.3\.mlp\.down_proj\.weight .* not finite"):
        score.score(m, model.inspect(folder), text, score.Method(metric, 1))
