"""Methods side by side: the numbers against torch, the bookkeeping against a count of tensors, the statistics against tables."""

from __future__ import annotations

import functools
import json
import math
import random
import re
import time

import pytest
from safetensors.numpy import load_file
from test_prune import own_windows
from typer.testing import CliRunner

from edgeprune import catalog, compare, comparison, model, torch_model
from edgeprune.blocks import kept_sublayers, removed_sublayers, to_text, whole
from edgeprune.compare import Contest, Reading
from edgeprune.errors import InputRejected, UsageError
from edgeprune.work import Log

N, CONTEXT, WINDOWS = 5, 32, 4
EVERY = tuple(catalog.names("edgeprune.metrics"))
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 7: 2.365, 10: 2.228, 30: 2.042, 39: 2.023, 120: 1.980}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Three files of random words: one to choose by, two to judge by."""
    folder, draw = tmp_path_factory.mktemp("texts"), random.Random(0)
    for name in ("choose", "one", "two"):
        words = ("".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(400))
        (folder / name).write_text(" ".join(words))
    return folder


def run(folder, texts, metrics, amounts=(1, 2), **options):
    contest = {k: options.pop(k) for k in ("reference", "effort", "precision", "measure_precision") if k in options}
    readings = [Reading((texts / name,), WINDOWS, CONTEXT) for name in ("one", "two")]
    return compare.compare_folder(
        folder, model.inspect(folder), Contest(metrics, amounts, **contest), readings,
        Reading((texts / "choose",), WINDOWS, CONTEXT), **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny_folder):
    return tiny_folder("llama")


@pytest.fixture(scope="module")
def found(folder, texts):
    return run(folder, texts, ("block_influence", "sublayer_cosine", "kl_search"))


@functools.cache
def whole_per_window(folder, file):
    """The model, and (window, log p) of each, float64."""
    import torch

    m, encode = torch_model.load(folder), torch_model.tokenizer(folder).encode
    tokens = torch.tensor([encode(file.read_text(), add_special_tokens=False)[: WINDOWS * CONTEXT]])
    return m, [(window, log_p(m, window)) for window in tokens.split(CONTEXT, dim=1)]


def log_p(m, window):
    import torch

    with torch.inference_mode():
        return m(window).logits[0, :-1].double().log_softmax(-1)


def per_window(folder, blocks, file):
    """(KL, loss) of each window by transformers' own forward passes."""
    m, windows = whole_per_window(folder, file)
    pruned, out = torch_model.view(m, blocks), []
    for window, p in windows:
        q = log_p(pruned, window)
        kl = (p.exp() * (p - q)).sum(-1).mean().item()
        out.append((kl, -q.gather(1, window[0, 1:, None]).mean().item()))
    return out


def mean(x):
    return sum(x) / len(x)


def half_width(x):
    """Of a 95 % interval of the mean of four, with a table's t."""
    return T_95[3] * math.sqrt(sum((v - mean(x)) ** 2 for v in x) / 3 / 4)


def test_damage_is_that_of_the_pruned_model_on_each_text(found, folder, texts):
    for t, name in enumerate(("one", "two")):
        assert found.texts[t].name == name
        plain = per_window(folder, whole(N), texts / name)
        assert found.whole_perplexity[t] == pytest.approx(math.exp(mean([x for _, x in plain])), rel=1e-4)
        for contender in found.contenders:
            for cut in contender.cuts:
                kl, loss = zip(*per_window(folder, cut.blocks, texts / name), strict=True)
                d = cut.damage[t]
                assert (d.window_kl, d.window_loss) == (pytest.approx(kl, rel=1e-3), pytest.approx(loss, rel=1e-4))
                assert d.kl == pytest.approx(mean(kl), rel=1e-3)
                assert T_95[3] * d.kl_stderr == pytest.approx(half_width(kl), rel=1e-2)
                assert d.perplexity == pytest.approx(math.exp(mean(loss)), rel=1e-4)
                assert T_95[3] * d.perplexity_stderr == pytest.approx(d.perplexity * half_width(loss), rel=1e-2)


def test_differences_are_of_pairs_of_windows_and_to_the_least(found):
    for a in (0, 1):
        for t in (0, 1):
            damages = {c.metric: c.cuts[a].damage[t] for c in found.contenders}
            best = min(damages, key=lambda m: damages[m].kl)
            assert damages[best].more is None
            for metric in set(damages) - {best}:
                pairs = zip(damages[metric].window_kl, damages[best].window_kl, strict=True)
                apart, more = [x - y for x, y in pairs], damages[metric].more
                assert more.than == best and more.mean == pytest.approx(mean(apart), rel=1e-3, abs=1e-9)
                assert more.high - more.mean == pytest.approx(half_width(apart), rel=1e-2, abs=1e-9)
                assert more.mean - more.low == pytest.approx(more.high - more.mean, abs=1e-6)


def test_a_named_reference_is_what_all_others_are_compared_with(folder, texts):
    c = run(folder, texts, ("magnitude", "block_influence"), reference="magnitude")
    for one, other in zip(*(x.cuts for x in c.contenders), strict=True):
        for d, e in zip(one.damage, other.damage, strict=True):
            assert d.more is None and e.more.than == "magnitude" and e.more.mean == pytest.approx(e.kl - d.kl, abs=1e-5)
    with pytest.raises(UsageError, match="taylor is not among"):
        run(folder, texts, ("magnitude",), reference="taylor")


def test_t_is_the_tables():
    assert {freedom: comparison.t_95(freedom) for freedom in T_95} == pytest.approx(T_95, abs=6e-4)


@pytest.mark.parametrize("family", ["llama", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_every_metric_removes_a_planted_identity_first(family, tiny_folder):
    """Perplexity of so little text may fall when a real half goes; only with several gone must the identity be among them."""
    folder = tiny_folder(family, identity=2)
    m, spec = torch_model.load(folder), model.inspect(folder)
    text = own_windows(m)
    for metric in EVERY:
        amount = 3 if metric == "block_pruner" else 1
        chosen = compare.choose(m, spec, text, Contest(EVERY, (amount,)), metric, compare.TimedWork())
        gone = removed_sublayers(chosen.lists[0], N)
        assert [("A", 2), ("F", 2)] == (gone if amount == 1 else [half for half in gone if half[1] == 2]), metric
        assert chosen.seconds > 0 and chosen.cpu_seconds > 0


@pytest.mark.parametrize("metric", [pytest.param("block_pruner", marks=pytest.mark.slow), "sublayer_cosine"])
def test_metrics_of_halves_remove_as_many_parameters_as_others(metric, folder):
    """Their paths are walked until one step more would be too much; parameters are counted from the file."""
    spec, m = model.inspect(folder), torch_model.load(folder)
    size = {(half, i): 0 for half in "AF" for i in range(N)}
    for name, tensor in load_file(folder / "model.safetensors").items():
        layer = re.search(r"layers\.(\d+)\.", name)
        if layer:
            size["A" if "self_attn" in name or "input_layernorm" in name else "F", int(layer[1])] += tensor.size
    block = sum(size.values()) / N
    text, work = own_windows(m), compare.TimedWork()
    for amount in (1, 2, 4):
        (blocks,) = compare.choose(m, spec, text, Contest(EVERY, (amount,)), metric, work).lists
        gone = sum(size[half] for half in removed_sublayers(blocks, N))
        assert compare.params_removed(spec, tuple(kept_sublayers(blocks))) == gone
        path = compare.path_to(m, spec, text, metric, amount, 1, work)
        after = path[path.index(blocks) + 1]
        assert gone <= 1.001 * amount * block < sum(size[half] for half in removed_sublayers(after, N))


@pytest.mark.slow
def test_a_longer_search_begins_like_a_shorter_one(folder):
    m, spec = torch_model.load(folder), model.inspect(folder)
    text = own_windows(m)
    short, long = (compare.path_to(m, spec, text, "block_pruner", n, 1, compare.TimedWork()) for n in (1, 3))
    assert long[: len(short)] == short and len(short) < len(long) < 2 * N


@pytest.mark.slow
def test_seams_off_is_a_search_over_whole_blocks(folder):
    m, text = torch_model.load(folder), own_windows(torch_model.load(folder))
    path = compare.path_to(m, model.inspect(folder), text, "kl_search_aligned", 2, 1, compare.TimedWork())
    for before, after in zip(path, path[1:], strict=False):
        tried = [[b for b in before if b != gone] for gone in before]
        versions = [compare.kept(blocks) for blocks in tried]
        found = compare.measure(m, versions, text.windows, compare.TimedWork())
        assert after == tuple(min(tried, key=lambda blocks: mean([kl for kl, _ in found[compare.kept(blocks)]])))  # noqa: B023
    assert [len(blocks) for blocks in path] == [5, 4, 3]


def test_calibration_text_can_not_judge(folder, texts, tmp_path):
    copy = tmp_path / "copy"
    copy.write_text((texts / "choose").read_text())
    one, choose = Reading((texts / "one",), 2, 16), Reading((texts / "two", texts / "choose"), 2, 16)
    spec, contest = model.inspect(folder), Contest(("magnitude",), (1,))
    with pytest.raises(UsageError, match="copy chose the cuts"):
        compare.compare_folder(folder, spec, contest, [one, Reading((copy,), 2, 16)], choose)


def test_amounts_that_leave_no_block_are_refused(folder, texts):
    with pytest.raises(UsageError, match="5 of 5 blocks can't be removed"):
        run(folder, texts, ("magnitude",), (1, 5))
    assert compare.default_amounts(30) == (3, 6, 9) and compare.default_amounts(3) == (1,)


def test_a_pruned_version_whose_logits_are_not_finite_is_refused(folder):
    m = torch_model.load(folder)
    m.model.norm.weight.fill_(float("inf"))
    with pytest.raises(InputRejected, match="not finite"):
        compare.measure(m, [compare.kept(whole(N))], [[1, 5, 77]], compare.TimedWork())


def timeless(c):
    return c.model_copy(
        update={"contenders": tuple(x.model_copy(update={"seconds": 0, "cpu_seconds": 0}) for x in c.contenders)}
    )


def test_what_was_killed_goes_on_to_the_same_result(found, folder, texts, tmp_path):
    """Killed while it chooses, then while it measures; what had been chosen keeps its time."""
    log, metrics = tmp_path / "log", tuple(c.metric for c in found.contenders)

    def kill(when, least):
        def progress(what, done, _total):
            if what == when and done >= least:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(KeyboardInterrupt):
        run(folder, texts, metrics, log=log, progress=kill("choosing by kl_search", 300))
    answers = [json.loads(line) for line in log.read_text().splitlines()[1:]]
    seconds = [a[0] for a in answers if isinstance(a, list) and len(a) == 2]  # of the two metrics that came before
    with pytest.raises(KeyboardInterrupt):
        run(folder, texts, metrics, log=log, progress=kill("measuring on one", 2))
    assert len(log.read_text().splitlines()) > len(answers) + 1
    c = run(folder, texts, metrics, log=log)
    assert [x.seconds for x in c.contenders][:2] == pytest.approx(seconds, abs=1e-3)
    assert timeless(c).to_json() == timeless(found).to_json()


def test_time_counts_what_was_done_before_a_kill(tmp_path):
    for _ in range(2):  # the second time nothing is left to do
        with Log.opened(tmp_path / "log", {}) as memory:
            work = compare.TimedWork(memory)
            start = work.clock()
            assert work.each([0.05, 0.1], lambda s: time.sleep(s) or s) == [0.05, 0.1]
            seconds, cpu_seconds = (now - then for now, then in zip(work.clock(), start, strict=True))
            assert 0.15 <= seconds < 5 and cpu_seconds < 0.05


def test_a_comparison_survives_json(found):
    again = comparison.Comparison.from_json(found.to_json())
    assert again == found and again.to_json() == found.to_json()
    assert [to_text(c.cuts[0].blocks) for c in again.contenders] == [
        to_text(c.cuts[0].blocks) for c in found.contenders
    ]


def command(*args):
    import edgeprune.cli.compare  # noqa: F401  registers the verb
    from edgeprune.cli._app import app

    return CliRunner().invoke(app, ["compare", *map(str, args)])


def test_the_command_prints_a_table_or_json_and_keeps_it(folder, texts, tmp_path):
    out = tmp_path / "c.json"
    args = [folder, "--metric", "magnitude", "--metric", "cosine_span", "--remove", "2", "--windows", 3, "--window", 16]
    args += ["--text", texts / "one", "--calibration", texts / "choose", "-o", out]
    table = command(*args)
    assert table.exit_code == 0, table.output
    kept = comparison.Comparison.from_json(out.read_text())
    for c in kept.contenders:
        assert re.search(rf"^{c.metric} .*{c.cuts[0].removed}", table.output, re.MULTILINE)
        assert re.search(rf"^{c.metric} +{c.cuts[0].damage[0].kl:.4f} ± ", table.output, re.MULTILINE)
    assert command(*args).exit_code == 2  # it exists
    again = command(*args, "--force", "--json")
    assert timeless(comparison.Comparison.from_json(again.stdout)) == timeless(kept)
    assert command(folder, "--remove", "3;4").exit_code == 2
    assert command(folder, "--metric", "nothing").exit_code == 2


def test_a_winner_is_named_only_where_the_interval_leaves_zero_out(found):
    from edgeprune.cli._show_comparison import verdict

    def told(*kls):
        contenders = []
        for n, (c, kl) in enumerate(zip(found.contenders, kls, strict=True), 1):
            d = comparison.damage([(x, 1.0) for x in kl], None)
            cut = c.cuts[0].model_copy(update={"damage": (d,), "blocks": whole(n)})
            contenders.append(c.model_copy(update={"cuts": (cut,)}))
        return verdict(found.model_copy(update={"contenders": tuple(contenders)}), 0, 0)

    far, near, noisy = [2.0, 2.1, 2.2, 2.1], [1.0, 1.1, 1.2, 1.0], [2.2, 1.1, 0.3, 1.4]
    assert told(far, near, far).startswith("wins: sublayer_cosine; block_influence, the next, does 1.0250 ")
    assert told(far, noisy, near).startswith("no winner: kl_search does least damage, sublayer_cosine 0.1750 ")
