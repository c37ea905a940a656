"""Depth against width: sizes that match, time that adds up, verdicts that follow from samples, runs that go on."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys

import pytest
from _study import LLAMACPP, synthetic, tinyllama

from edgeprune import known_models
from edgeprune import model as models
from edgeprune._generated import Geometry, make_gguf
from edgeprune._sizes import Shapes, sizes
from edgeprune.blocks import whole
from edgeprune.cli.study import _texts_apart
from edgeprune.errors import InputRejected, UsageError
from edgeprune.study import design as designing
from edgeprune.study import explain, measure, page, project, verdict
from edgeprune.study.design import design, shape_of
from edgeprune.study.record import Interval, Pair, Study

SMALL = Geometry(hidden=512, ffn=1408, heads=8, kv_heads=4, n_blocks=4, vocab=2048, tied=False, context=2048)


# --- the design -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tinyllama-1.1b", "smollm2-135m", "llama-3.2-3b", "qwen2.5-1.5b"])
def test_sizes_match_within_a_percent(name):
    """Counted from the shapes alone: embedding, head, four attention matrices, three of the feed-forward, norms."""

    def count(g):
        q, kv = g.heads * g.head_dim, g.kv_heads * g.head_dim
        block = 2 * g.hidden * q + 2 * g.hidden * kv + 3 * g.hidden * g.ffn + 2 * g.hidden
        return g.vocab * g.hidden * (1 if g.tied else 2) + g.hidden + g.n_blocks * block

    found = design(name, shape_of(known_models.load(name)), (0.1, 0.2, 0.3), LLAMACPP)
    base = found.whole.shape
    depths = {v.ratio: v for v in found.variants if v.kind == "depth"}
    for v in found.variants:
        if v.kind == "width":
            assert count(v.shape) == pytest.approx(count(depths[v.ratio].shape), rel=0.01)
            assert v.shape.ffn % v.rounding == 0 and (v.rounding > 1 or v.shape.ffn % 2)
            assert v.shape.heads * base.kv_heads == v.shape.kv_heads * base.heads, "groups of heads go whole"
            assert (v.shape.n_blocks, v.shape.head_dim, v.shape.hidden) == (base.n_blocks, base.head_dim, base.hidden)
        elif v.kind == "depth":
            assert v.shape == base._replace(n_blocks=base.n_blocks - round(v.ratio * base.n_blocks))
    for t in found.tasks:
        if t.variant.equal != "parameters":
            size = designing.file_bytes(t.variant, t.runtime, t.quant)
            assert size == pytest.approx(designing.file_bytes(depths[t.variant.ratio], t.runtime, t.quant), rel=0.01)


def test_odd_widths_fall_back_to_larger_types():
    """What was published before: 0.88 B of TinyLlama in Q4_K_M, depth 541 MB, width in 256s 538 MB, odd 794 MB."""
    found = tinyllama()
    size = {t.variant.label().split(":")[0]: designing.file_bytes(t.variant, t.runtime, t.quant) / 1e6
            for t in found.tasks if t.quant == "Q4_K_M" and t.variant.ratio == 0.2}  # fmt: skip
    assert size["width in 256s"] == pytest.approx(size["depth"], rel=0.01)
    assert size["odd width"] / size["depth"] == pytest.approx(794 / 541, rel=0.03)


def test_what_can_not_be_matched_is_said_and_the_rest_goes_on():
    found = design("small", SMALL, (0.25, 0.3, 0.9), LLAMACPP)
    assert {v.kind for v in found.variants} == {"whole", "depth", "width"}
    assert any("ratio 0.25" in line and "256" in line and "left out" in line for line in found.refused)
    assert any("ratio 0.3 " in line and "as a smaller ratio does" in line for line in found.refused)
    assert any("leaves no block" in line for line in found.refused)


def test_what_a_runtime_can_not_hold_is_named():
    """MatMulNBits packs blocks of 32 along a row; GGUF has types without blocks to fall back to."""
    found = design(
        "tinyllama-1.1b", shape_of(known_models.load("tinyllama-1.1b")), (0.2,), [*LLAMACPP, ("onnxruntime", "int8")]
    )
    held = {t.variant.rounding for t in found.tasks if t.runtime == "onnxruntime" and t.variant.kind == "width"}
    assert held == {32, 256} and any(
        "int8 holds widths in 32s" in line and "left out" in line for line in found.refused
    )
    assert {t.variant.rounding for t in found.tasks if t.runtime == "llamacpp"} == {0, 1, 32, 256}


def test_wrong_input_is_named(tmp_path):
    for bad in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(UsageError, match="more than 0 and less than 1"):
            designing.check_ratios([bad])
    with pytest.raises(InputRejected, match="sliding windows"):
        shape_of(known_models.load("gemma-3-1b"))
    with pytest.raises(UsageError, match="Q4_K_M"):
        designing.quants_of("Q4_KM")
    with pytest.raises(UsageError, match="1 or more"):
        designing.check_roundings([-1])
    both = tmp_path / "both.txt"
    both.write_text("one text")
    with pytest.raises(UsageError, match="both.txt is to judge the result"):
        _texts_apart({"calibration": [both], "evaluation": [both]})
    small = known_models.load("tinyllama-1.1b")  # holds 2048
    with pytest.raises(UsageError, match="2048"):
        designing.check_contexts([2048], 8, small)
    assert designing.default_contexts(8, small) == (0, 2040)
    designing.check_contexts(designing.default_contexts(8, small), 8, small)


# --- the explanation ------------------------------------------------------------------------------


def test_bytes_without_fallbacks_are_the_files_own_where_256_divides():
    g = Geometry(hidden=512, ffn=1536, heads=8, kv_heads=2, n_blocks=7, vocab=512)
    s = designing.spec(g)
    for quant in ("Q4_K_M", "Q5_K_M", "Q3_K_M", "Q4_0", "Q8_0"):
        work = sizes(Shapes(s), whole(7), "llamacpp", quant).matrices
        assert explain.plain_bytes(s, quant) == pytest.approx({w.type: w.block_bytes + w.head_bytes for w in work})
    odd = designing.spec(g._replace(ffn=1535))
    plain, real = explain.plain_bytes(odd, "Q4_K_M"), sizes(Shapes(odd), whole(7), "llamacpp", "Q4_K_M").matrices
    assert sum(plain.values()) < sum(w.block_bytes + w.head_bytes for w in real)
    assert "F16" in {w.type for w in real} and "F16" not in plain


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("kept"))


def test_parts_add_up_and_blind_predictions_are_near(explained):
    found, _, cells, *_ = explained
    odd = {t.variant.name for t in found.tasks if t.variant.rounding == 1}
    for c in cells:
        assert sum(c.parts.values()) == pytest.approx(c.measured_s)
        if c.variant not in odd:
            assert c.predicted_s == pytest.approx(c.measured_s, rel=0.06)
    left = [c.parts["unexplained"] / c.measured_s for c in cells if c.variant in odd]
    assert max(left) > 0.01, "what kernels lose at odd widths is not hidden in a term"


def test_verdicts_follow_from_the_samples(explained):
    found, samples, cells, rates, _ = explained
    pairs = verdict.pairs(found, samples, cells)
    assert {(p.quant, p.context) for p in pairs} == {(q, c) for _, q in LLAMACPP[:2] for c in (0, 2048)}
    specs = {t.variant.name: t.variant.spec for t in found.tasks}
    for p in pairs:
        a, b = (explain.token(specs[v], "llamacpp", p.quant, rates, p.context + 2).seconds for v in (p.depth, p.width))
        odd = next(t.variant.rounding for t in found.tasks if t.variant.name == p.width) == 1
        assert p.measured.middle == pytest.approx(b * (1.1 if odd else 1.0) / a, rel=0.01)
        assert p.winner == "depth" if odd else p.winner in ("depth", "equal", "width")
    heads_out = [p for p in pairs if specs[p.width].n_heads < 32 and p.context == 2048 and p.quant == "Q4_0"]
    assert heads_out and all(p.winner == "width" for p in heads_out), (
        "a quarter of the heads is more than 4 of 22 blocks"
    )


def test_judging():
    def x(low, middle, high):
        return verdict.judge(Interval(low=low, middle=middle, high=high))

    assert x(1.05, 1.1, 1.2) == "depth" and x(0.8, 0.9, 0.95) == "width"
    assert x(0.99, 1.0, 1.01) == "equal" and x(0.9, 1.05, 1.3) == "open" and x(1.001, 1.01, 1.02) == "equal"
    found = verdict.interval([math.log(v) for v in (1.1, 1.2, 1.3)])
    assert found.middle == pytest.approx((1.1 * 1.2 * 1.3) ** (1 / 3)) and found.low < 1.1 < 1.3 < found.high
    assert (
        project.even_at((1, 2), (Interval(low=1, middle=1.1, high=2), Interval(low=0.5, middle=1 / 1.1, high=1))) == 1.5
    )


def test_a_term_that_both_share_does_not_blur_the_ratio(explained):
    rates = explained[3]
    t = explain.token(designing.spec(SMALL), "llamacpp", "Q8_0", rates, 0)
    same = explain.advantage(t, t)
    assert (same.low, same.middle, same.high) == (1.0, 1.0, 1.0)
    deep = explain.token(designing.spec(SMALL._replace(n_blocks=2)), "llamacpp", "Q8_0", rates, 0)
    found = explain.advantage(deep, t)
    assert 1 < found.low < found.middle < found.high


@pytest.mark.slow
def test_the_page_says_what_is_foretold_and_what_was_measured(explained, tmp_path):
    made = explained[4]
    assert Study.from_json(made.to_json()) == made
    page.write(made, tmp_path)
    text, html = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    for said in (
        "Speed only",
        "| this machine (Q4\\_0, after 0) |",
        "single-board computer (rpi5-8gb, Q4\\_K\\_M, after",
        "left out: this",
    ):
        assert said in text, said
    assert "Where depth is slower" in text and "heads" in text.split("Where depth is slower")[1][:900]
    drawn = ["speed-Q4_0", "speed-Q4_K_M", "time-0", "time-2048", "predicted", "context-rpi5-8gb", "model", "bandwidth"]
    for name in drawn:
        assert f"]({name}.svg)" in text and (tmp_path / f"{name}.svg").read_text().startswith("<svg")
    assert html.count("<svg") == html.count("<figure>") == len(drawn)
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_the_headline_of_a_lead_that_changes_sides(explained):
    """Depth at 0.9, 1.2 and 1.3 times the speed of one width: ahead in most states, not in all."""
    from edgeprune.study import words

    made = explained[4]
    pair = next(p for p in made.pairs if p.what == "decode")
    at = {0.9: "width", 1.2: "depth", 1.3: "depth"}

    def told(*middles):
        mine = [
            pair.model_copy(update={"measured": Interval(low=m, middle=m, high=m), "winner": at[m]}) for m in middles
        ]
        return words.headline(made.model_copy(update={"pairs": tuple(mine)}))

    assert told(0.9, 1.2, 1.3).startswith("Fewer blocks decode mostly faster than")
    assert "(−10 % to +30 %)" in told(0.9, 1.2, 1.3)
    assert told(1.2, 1.3).startswith("Fewer blocks decode faster than")
    assert told(0.9).startswith("Fewer blocks decode slower than")
    assert told(0.9, 1.2).startswith("Fewer blocks decode without a clear lead over")


def test_damage_at_equal_size(explained):
    """0.6 nats, healed 0.3, beside a width's 0.4, healed 0.2: healed against healed."""
    from edgeprune.study import words
    from edgeprune.study.record import Quality

    made = explained[4]
    pair = next(p for p in made.pairs if p.what == "decode")
    rows = [(pair.depth, False, 0.6), (pair.depth, True, 0.3), (pair.width, False, 0.4), (pair.width, True, 0.2)]

    def told(rows, text=None):
        found = tuple(
            Quality(variant=v, quant=pair.quant, method="m", healed=h, perplexity=9.0, kl=kl, kl_stderr=0.0, text=text)
            for v, h, kl in rows
        )
        (said,) = (t for t in words.verdicts(made.model_copy(update={"qualities": found})) if "damage" in t)
        return said

    assert "leaves 1.50 times the damage" in told(rows) and told(rows).endswith("once both are healed 1.50 times (KL).")
    assert told(rows, "a.txt").endswith("1.50 times (KL on a.txt).")
    assert "healed" not in told(rows[:3]), "a healed model beside one that is not says nothing"


def test_speed_at_equal_damage():
    """Depth: 10 tokens/s at KL 0, 20 at 1; at 0.5 that is √200. A thinner model of 14 there is about as fast."""
    from edgeprune.study.record import Cell, Model, Quality

    def one(name, kind, speed, kl, healed=False):
        m = Model(variant=name, label=name, kind=kind, ratio=0.2, rounding=32, equal="parameters", n_blocks=1, heads=1,
                  kv_heads=1, ffn=1, params=1, runtime="llamacpp", quant="Q8_0", predicted_bytes=1, file_bytes=1,
                  memory_bytes=1)  # fmt: skip
        c = Cell(variant=name, runtime="llamacpp", quant="Q8_0", threads=1, context=0, measured_s=1 / speed,
                 predicted_s=1 / speed, parts={})  # fmt: skip
        q = Quality(variant=name, quant="Q8_0", method=kind, healed=healed, perplexity=9, kl=kl, kl_stderr=0.001)
        return m, q, c

    rows = [one("whole", "whole", 10, 0.0), one("deep", "depth", 20, 1.0), one("thin", "width", 14, 0.5)]
    rows += [one("worse", "width", 30, 1.5), one("slow", "width", 10, 0.5)]
    found = verdict.at_equal_quality(*zip(*rows, strict=True))
    assert [(e.width, e.winner) for e in found] == [("thin", "equal"), ("slow", "depth")], (
        "nothing is said beyond depth's damage"
    )
    assert found[0].depth_tok_per_s == pytest.approx(math.sqrt(200)) and found[0].ratio.low < found[0].ratio.middle
    rows += [one("deep", "depth", 20, 0.25, healed=True), one("thin", "width", 14, 0.2, healed=True)]
    found = verdict.at_equal_quality(*zip(*rows, strict=True))
    assert [(e.width, e.healed, e.winner) for e in found] == [
        ("thin", False, "equal"), ("slow", False, "depth"), ("thin", True, "depth")
    ], "healed ones beside the curve of healed ones"  # fmt: skip
    assert found[2].depth_tok_per_s == pytest.approx(10 * 2**0.8)


def test_along_the_threads_what_was_measured():
    def pair(width, threads, middle, context=0):
        x = Interval(low=middle - 0.1, middle=middle, high=middle + 0.1)
        return Pair(ratio=0.2, runtime="llamacpp", quant="Q4_0", threads=threads, what="decode", context=context, depth="d",
                    width=width, equal="parameters", repetitions=2, depth_tok_per_s=1, width_tok_per_s=1, measured=x,
                    predicted=None, winner="open")  # fmt: skip

    pairs = [pair("a", 2, 1.2), pair("a", 1, 1.1), pair("a", 1, 9.0, context=64), pair("b", 1, 1.3)]
    (found,) = verdict.along_threads(pairs, {"a": "A", "b": "B"}, 0.2, "Q4_0")
    assert (found.width, found.x, [y.middle for y in found.y]) == ("A", (1.0, 2.0), [1.1, 1.2]), (
        "one number is no curve"
    )


# --- real runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gigabytes", [2.6, 4, 100])
def test_groups_keep_to_the_limits_and_have_the_depth_of_each_width(gigabytes):
    found = tinyllama()
    limits = measure.Limits(disk_bytes=int(gigabytes * 1e9), memory_bytes=int(2 * gigabytes * 1e9))
    groups = measure.groups(found, measure.Protocol(), limits)
    for g in groups:
        assert len({t.name for t in g.tasks}) == len(g.tasks) > 1
        depths = {t.variant.ratio for t in g.tasks if t.variant.kind == "depth"}
        assert {t.variant.ratio for t in g.tasks if t.variant.kind == "width"} <= depths
        assert sum(map(measure.task_bytes, g.tasks)) <= limits.disk_bytes
    assert {t.name for g in groups for t in g.tasks} == {t.name for t in found.tasks}
    quants = {(t.runtime, t.quant) for t in found.tasks}
    assert len(groups) == len(quants) if gigabytes == 100 else len(groups) > len(quants)


@pytest.mark.slow
def test_a_study_of_a_small_model_goes_on_where_it_stopped(tmp_path):
    make_gguf(SMALL, "Q8_0", tmp_path / "small.gguf")
    out = tmp_path / "study"
    command = [
        sys.executable,
        "-m",
        "edgeprune.cli",
        "study",
        str(tmp_path / "small.gguf"),
        "--speed-only",
        "-o",
        str(out),
    ]
    command += "--ratios 0.25 --quants Q4_0 --contexts 0,64 -p 16 -n 3 -r 2 -t 1 --device rpi5-8gb --json".split()

    real = os.environ.get("LLAMA_BENCH")
    command += ["--llama-bench", real] if real else []

    def run(*more):
        return subprocess.run([*command, *more], capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr
    found = Study.from_json(done.stdout)
    assert found.speed_only and {p.what for p in found.pairs} == {"prefill", "decode"} and not (out / "files").exists()
    for m in found.models:
        assert m.file_bytes == pytest.approx(m.predicted_bytes, rel=0.02) and m.memory_bytes
    assert {(x.variant, x.quant) for x in found.llama_bench} == (
        {(m.variant, m.quant) for m in found.models} if real else set()
    )
    text = (out / "report.md").read_text()
    assert "Speed only" in text and "predicted" in text
    page = (out / "report.html").read_text()
    assert "<svg" in page and "http:" not in page.replace("http://www.w3.org", "") and "https" not in page
    lines = (out / "samples.jsonl").read_text().splitlines()
    (out / "samples.jsonl").write_text("\n".join(lines[:9]) + '\n{"variant": "cut sho')
    (out / "study.json").unlink()
    again = run()
    assert again.returncode == 0 and "going on where it stopped" in again.stderr
    kept = measure.replay([json.loads(x) for x in (out / "samples.jsonl").read_text().splitlines()[1:]])[0]
    keys = [s[:8] for s in kept]
    assert len(keys) == len(set(keys)) == len(lines) - 2, "a group begun again counts once"
    other = run("-n", "4")
    assert other.returncode == 2 and "another study" in other.stderr
    assert models.inspect(tmp_path / "small.gguf").n_blocks == 4
