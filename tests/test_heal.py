"""Healing in closed form, against least squares done by hand on what hooks see in transformers' own models."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from test_prune import cut

from edgeprune import closed_form, heal, model, torch_model
from edgeprune.blocks import from_text
from edgeprune.catalog import load
from edgeprune.checkpoint import open_checkpoint, raw_bytes
from edgeprune.closed_form import Attempt, Attempts, Change, Kind
from edgeprune.errors import InputRejected, OutOfResources, UsageError, WrongWeights
from edgeprune.files import check_sums

WORDS = "the quick brown fox jumps over a lazy dog and then the other one naps while rain falls on quiet hills".split()
CUT = from_text("0-1 4")  # layers 2 and 3 are gone; F1 comes right before the cut
SEAM = from_text("0 1:3 4")  # F1 A2 F2 A3 are gone; A1 comes right before the cut
THIRD, ALL = 0, 2  # scopes of refit
RIDGE = {THIRD: (0.1, 0), ALL: (0, 0.3)}
SHARES = {THIRD: (0.35, 0.35), ALL: (1, 0.5)}  # before a cut, after it


@pytest.fixture(scope="module")
def kinds():
    return random_kinds()


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return random_texts(tmp_path_factory.mktemp("texts"), "abc", 5, 500)


def random_kinds():
    """Three kinds of random tokens, each drawn from a part of the vocabulary; 8 windows of 32 to fit, 2 held aside."""
    draw = np.random.default_rng(0)
    many = [draw.integers(3 + 60 * k, 120 + 60 * k, (10, 32)).tolist() for k in range(3)]
    return [Kind(name, windows[:8], windows[8:]) for name, windows in zip("abc", many, strict=True)]


def random_texts(folder, names, apart, n):
    """A text of n words for each name, drawn from ten words that begin `apart` after those of the one before."""
    draw, paths = np.random.default_rng(1), [folder / f"{name}.txt" for name in names]
    for k, path in enumerate(paths):
        path.write_text(" ".join(draw.choice(WORDS[apart * k : apart * k + 10], n)))
    return paths


def healer(name):
    return load("edgeprune.healers", name)


def changes(attempt):
    return {change.half: change for change in attempt.changes}


def fit_tokens(kinds):
    return [w for kind in kinds for w in kind.fit]


def seen(m, tokens, places):
    """What each of these modules is given, (tokens, width), float64, when a transformers model runs as it is."""
    import torch

    found = {}
    hooks = [
        m.get_submodule(at).register_forward_pre_hook(
            lambda _, args, at=at: found.update({at: args[0]}), with_kwargs=False
        )
        for at in places
    ]
    with torch.inference_mode():
        m(torch.tensor(tokens), use_cache=False)
    for hook in hooks:
        hook.remove()
    return {at: x.flatten(0, 1).double().numpy() for at, x in found.items()}


def ridge_by_rows(f, r, own, mean=0.0):
    """argmin ‖f D − r‖² + Σ (λ sᵢ + μ mean s) Dᵢ², s = diag fᵀf, as plain least squares with roots of it on a diagonal for more
    rows."""
    squares = np.square(f).sum(0)
    penalty = np.diag(np.sqrt(own * squares + mean * squares.mean()))
    return np.linalg.lstsq(np.vstack([f, penalty]), np.vstack([r, np.zeros((f.shape[1], r.shape[1]))]), rcond=None)[0]


@pytest.fixture(scope="module")
def whole(tiny_folder):
    return torch_model.load(tiny_folder("llama"))


@pytest.fixture(scope="module")
def refitted(whole, kinds):
    return closed_form.attempt(whole, CUT, [healer("refit")], kinds)


@pytest.mark.parametrize("scope", [THIRD, ALL])
def test_the_refit_is_ridge_regression_on_the_projections_inputs(whole, kinds, refitted, scope):
    found = changes(refitted.healed[scope])
    at = seen(
        whole,
        fit_tokens(kinds),
        ["model.layers.1.mlp.down_proj", "model.layers.2.input_layernorm", "model.layers.4.input_layernorm"],
    )
    lacks = at["model.layers.4.input_layernorm"] - at["model.layers.2.input_layernorm"]
    expected = ridge_by_rows(at["model.layers.1.mlp.down_proj"], lacks, *RIDGE[scope])
    assert np.abs(found["F", 1].delta.numpy() - SHARES[scope][0] * expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("scope", [THIRD, ALL])
def test_later_projections_see_what_the_healed_model_gives_them(whole, kinds, refitted, scope):
    found = changes(refitted.healed[scope])
    assert list(found)[:2] == [("F", 1), ("A", 4)]
    pruned = torch_model.view(whole, CUT)
    down = pruned.model.layers[1].mlp.down_proj
    down.weight = type(down.weight)(down.weight + found["F", 1].delta.T, requires_grad=False)
    here = seen(
        pruned, fit_tokens(kinds), ["model.layers.2.self_attn.o_proj", "model.layers.2.post_attention_layernorm"]
    )
    target = seen(whole, fit_tokens(kinds), ["model.layers.4.post_attention_layernorm"])
    lacks = target["model.layers.4.post_attention_layernorm"] - here["model.layers.2.post_attention_layernorm"]
    expected = ridge_by_rows(here["model.layers.2.self_attn.o_proj"], lacks, *RIDGE[scope])
    assert np.abs(found["A", 4].delta.numpy() - SHARES[scope][1] * expected).max() < 1e-3 * np.abs(expected).max()


def test_replaceme_is_least_squares_on_the_feed_forwards_output(whole, kinds):
    (attempt,) = closed_form.attempt(whole, CUT, [healer("replaceme")], kinds).healed
    (change,) = attempt.changes
    places = ["model.layers.1.mlp.down_proj", "model.layers.2.input_layernorm", "model.layers.4.input_layernorm"]
    f, l_s, l_e = seen(whole, fit_tokens(kinds), places).values()
    w = whole.model.layers[1].mlp.down_proj.weight.double().numpy()
    m = f @ w.T
    t = np.linalg.lstsq(m, l_e - l_s + m, rcond=None)[0]
    assert change.half == ("F", 1)
    assert np.abs(w + change.delta.numpy().T - t.T @ w).max() < 1e-3 * np.abs(t.T @ w).max()


@pytest.mark.parametrize("method", ["refit", "replaceme", "replaceme_cosine"])
def test_nothing_cut_changes_nothing(whole, kinds, method):
    found = closed_form.attempt(whole, from_text("0-4"), [healer(method)], kinds)
    assert not any(a.changes for a in found.healed)
    assert found.cut.kl == pytest.approx([0] * 3, abs=1e-6)
    assert found.cut.loss == pytest.approx(found.loss_whole, abs=1e-6)


@pytest.mark.parametrize("method", ["refit", "replaceme", "replaceme_cosine"])
def test_an_identity_block_cut_changes_nothing(tiny_folder, kinds, method):
    """T = I in ReplaceMe: plain removal."""
    m = torch_model.load(tiny_folder("llama", identity=2))
    found = closed_form.attempt(m, from_text("0-1 3-4"), [healer(method)], kinds)
    assert not any(a.changes for a in found.healed)


@pytest.mark.parametrize("blocks", [CUT, SEAM, from_text("1-4"), from_text("0-3"), from_text("0 1:- 3-4")])
def test_what_is_judged_is_what_the_weights_give(whole, kinds, blocks):
    """KL of the windows held aside, of the streams in the walk, against transformers' own forward of the changed weights."""
    import torch

    found = closed_form.attempt(whole, blocks, [healer("refit")], kinds)
    for attempt in (found.cut, *found.healed):
        m = torch_model.view(whole, blocks)
        for (kind, layer), delta in attempt.changes:
            new = next(n for n, b in enumerate(blocks) if layer == (b.attn if kind == "A" else b.ffn))
            out = m.model.layers[new].self_attn.o_proj if kind == "A" else m.model.layers[new].mlp.down_proj
            out.weight = type(out.weight)(out.weight + delta.T, requires_grad=False)
        for kind, kl in zip(kinds, attempt.kl, strict=True):
            with torch.inference_mode():
                p, q = (x(torch.tensor(kind.aside), use_cache=False).logits[:, :-1].log_softmax(-1) for x in (whole, m))
            assert kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3, abs=1e-6)


def test_order_and_batching_of_the_windows_change_nothing(whole, kinds, refitted, monkeypatch):
    from edgeprune.metrics import _halves

    monkeypatch.setattr(_halves, "ROWS", {"cpu": 32})
    turned = [kind._replace(fit=kind.fit[::-1]) for kind in kinds]
    again = closed_form.attempt(whole, CUT, [healer("refit")], turned)
    for a, b in zip(refitted.healed, again.healed, strict=True):
        assert [c.half for c in a.changes] == [c.half for c in b.changes]
        for x, y in zip(a.changes, b.changes, strict=True):
            assert (x.delta - y.delta).abs().max() < 1e-3 * x.delta.abs().max()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_sums_of_products_are_those_of_double_precision(dtype):
    """Some numbers great, as where attention sinks: what is lost is of float32's rounding in either type."""
    import torch

    from edgeprune.healers._moments import Seen, moments

    draw, like = torch.Generator().manual_seed(0), getattr(torch, dtype)
    inputs = torch.randn(20, 64, 48, generator=draw)
    inputs[:, 0, :3] *= 1000
    inputs, stream, target = inputs.to(like), *(torch.randn(2, 20, 64, 16, generator=draw) * 30).to(like)
    found = moments(Seen(inputs, stream, target, 0.5))
    f, r = inputs.double().flatten(0, 1), ((target.double() - stream.double()) / 0.5).flatten(0, 1)
    scale = f.square().sum(0).sqrt()
    assert ((found.ff - f.T @ f) / scale.outer(scale)).abs().max() < 1e-5
    rounded = 1e-5 if dtype == "float32" else 2**-8  # what is lacking is a difference, which bfloat16 may not hold
    assert ((found.fr - f.T @ r) / scale.outer(r.square().sum(0).sqrt())).abs().max() < rounded
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_cosine_variant_descends_its_loss(whole, kinds):
    """The slope against autograd's, and directions after the cut are nearer to the whole model's than least squares makes them."""
    import torch
    import torch.nn.functional as F

    from edgeprune.healers.replaceme_cosine import gradient

    torch.manual_seed(0)
    given, here, wanted = (torch.randn(50, 6) for _ in range(3))
    t = (0.1 * torch.randn(6, 6)).requires_grad_()
    (1 - F.cosine_similarity(here + given @ t, wanted, dim=-1)).mean().backward()
    assert (gradient(t.detach(), given, here, wanted) - t.grad).abs().max() < 1e-6

    places = ["model.layers.1.mlp.down_proj", "model.layers.2.input_layernorm", "model.layers.4.input_layernorm"]
    f, l_s, l_e = (torch.tensor(x) for x in seen(whole, fit_tokens(kinds), places).values())

    def loss(method):
        (attempt,) = closed_form.attempt(whole, CUT, [healer(method)], kinds).healed
        return float((1 - F.cosine_similarity(l_s + f @ attempt.changes[0].delta.double(), l_e, dim=-1)).mean())

    assert loss("replaceme_cosine") < loss("replaceme") < float((1 - F.cosine_similarity(l_s, l_e, dim=-1)).mean())


def test_an_attempt_that_is_worse_on_any_kind_is_not_taken():
    def made(scope, *kl):
        return Attempt(scope, (Change(("F", 0), None),), kl, kl)

    cut = made("", 1.0, 1.0)
    better, best, worse = made("better", 0.9, 0.9), made("best", 0.5, 1.0), made("worse", 0.1, 1.01)
    assert closed_form.choose(Attempts((0.0,), cut, (worse, better, best))) is best
    assert closed_form.choose(Attempts((0.0,), cut, (worse,))) is None
    assert closed_form.choose(Attempts((0.0,), cut, (better._replace(changes=()),))) is None


def heal_folder(base, pruned, out, texts=(), method="refit", **changes):
    options = dict(n_windows=30, context_tokens=32, precision="float32", base_model="tiny", command="edgeprune heal")
    return heal.heal(pruned, base, model.inspect(base), out, method=method, files=texts, **(options | changes))


@pytest.mark.parametrize("method", ["refit", "replaceme"])
def test_a_healed_folder_is_the_pruned_one_with_the_solved_weights(tiny_folder, texts, tmp_path, method):
    base = tiny_folder("llama")
    pruned, out = cut(base, SEAM, tmp_path / "pruned"), tmp_path / "healed"
    made = heal_folder(base, pruned, out, texts, method)
    check_sums(out)
    assert made.changed and all(k.kl_healed <= k.kl_cut for k in made.kinds)
    names = {"F": "mlp.down_proj", "A": "self_attn.o_proj"}
    places = {("A", 0): 0, ("F", 0): 0, ("A", 1): 1, ("F", 3): 1, ("A", 4): 2, ("F", 4): 2}
    changed = {(name[0], int(name[1:])) for name in made.changed}
    expected = {f"model.layers.{places[half]}.{names[half[0]]}.weight" for half in changed}
    before, after = open_checkpoint(pruned).tensors, open_checkpoint(out).tensors
    assert list(before) == list(after)
    assert {name for name in before if raw_bytes(before[name]) != raw_bytes(after[name])} == expected
    assert {p.name for p in out.iterdir()} == {p.name for p in pruned.iterdir()} | {"healing.json"}
    again = heal_folder(base, pruned, tmp_path / "again", texts, method)
    assert again.model_copy(update={"seconds": made.seconds}) == made
    assert f"healed by {method}" in (out / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "phi3", "smollm3", "granite"])
def test_every_family_without_norms_after_is_healed_on_its_own_terms(tiny_folder, kinds, family):
    """Scales of residuals, biases, norms of queries: what the walk foretells is what the changed weights give."""
    m = torch_model.load(tiny_folder(family))
    test_what_is_judged_is_what_the_weights_give(m, kinds, CUT)


@pytest.mark.slow
@pytest.mark.parametrize("fmt, quant", [("gguf", "F16"), ("onnx", "fp32")])
def test_a_healed_folder_exports_like_any_other(tiny_folder, texts, tmp_path, fmt, quant):
    from edgeprune.export import export

    base = tiny_folder("llama")
    heal_folder(base, cut(base, SEAM, tmp_path / "pruned"), tmp_path / "healed", texts)
    made = export(tmp_path / "healed", fmt, quant, tmp_path / ("m.gguf" if fmt == "gguf" else "m"))
    assert made.n_blocks == 3 and made.mean_kl < 1e-4


def test_the_parts_of_a_single_text_stand_for_kinds(tiny_folder, texts, tmp_path):
    base = tiny_folder("llama")
    made = heal_folder(base, cut(base, SEAM, tmp_path / "pruned"), tmp_path / "healed", texts[:1])
    assert [k.text for k in made.kinds] == [f"a.txt, part {i}" for i in (1, 2, 3)]
    assert made.fit_windows + sum(k.windows for k in made.kinds) == made.text.tokens // 32


def test_wrong_input_is_refused_in_one_line(tiny_folder, texts, tmp_path):
    base = tiny_folder("llama")
    pruned = cut(base, CUT, tmp_path / "pruned")
    out = tmp_path / "out"
    with pytest.raises(InputRejected, match="has no plan.json"):
        heal_folder(base, base, out, texts)
    with pytest.raises(WrongWeights, match="other weights"):
        heal_folder(tiny_folder("llama", seed=1), pruned, out, texts)
    with pytest.raises(UsageError, match="two of each kind"):
        heal_folder(base, pruned, out, texts, n_windows=3)
    with pytest.raises(UsageError, match=r"b\.txt is to judge"):
        heal_folder(base, pruned, out, texts, avoid=texts[1:2])
    with pytest.raises(UsageError, match="no healers called"):
        heal_folder(base, pruned, out, texts, "refits")
    with pytest.raises(OutOfResources, match="fewer --windows"):
        heal_folder(base, pruned, out, texts, max_bytes=2_000_000)
    assert not out.exists() and not list(tmp_path.glob(".out*"))
    heal_folder(base, pruned, out, texts)
    with pytest.raises(InputRejected, match="healed already"):
        heal_folder(base, out, tmp_path / "twice", texts)
    with pytest.raises(UsageError, match="exists"):
        heal_folder(base, pruned, out, texts)
    (pruned / "config.json").write_text((pruned / "config.json").read_text() + " ")
    with pytest.raises(InputRejected, match="does not match SHA256SUMS"):
        heal_folder(base, pruned, tmp_path / "changed", texts)


def test_norms_after_the_projection_are_refused_with_the_reason(tiny_folder, texts, tmp_path):
    base = tiny_folder("gemma3")
    pruned = cut(base, from_text("0-1 4"), tmp_path / "pruned")
    with pytest.raises(InputRejected, match="norms after their output projections"):
        heal_folder(base, pruned, tmp_path / "out", texts)


def test_biases_after_the_projection_are_refused_by_replaceme_alone(tiny_folder, kinds, texts, tmp_path):
    base = tiny_folder("llama", mlp_bias=True)
    pruned = cut(base, CUT, tmp_path / "pruned")
    with pytest.raises(InputRejected, match="mlp.down_proj.bias"):
        heal_folder(base, pruned, tmp_path / "out", texts, "replaceme")
    test_what_is_judged_is_what_the_weights_give(torch_model.load(base), kinds, CUT)


def test_weights_that_are_not_finite_are_refused_by_name(tiny_folder, texts, tmp_path):
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(tiny_folder("llama"), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.4.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    pruned = cut(base, CUT, tmp_path / "pruned")
    with pytest.raises(InputRejected, match=r"layers\.4\.mlp\.up_proj"):
        heal_folder(base, pruned, tmp_path / "out", texts)
