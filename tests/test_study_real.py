"""A study of a real model: variants are what their files say, quality is of the files, and a method that can't is left out."""

from __future__ import annotations

import pytest
from _shapes import make_scores

from edgeprune import devices, model
from edgeprune.errors import WrongWeights
from edgeprune.study import measure, real, run
from edgeprune.work import Log

QUANTS = [("llamacpp", "Q8_0")]


def prepared(folder, work, methods=("wanda_sp",), ratios=(0.4,)):
    spec = model.inspect(folder)
    scores = make_scores(spec, [2, 3, 1])
    host = devices.load("intel-12-13-ddr5")
    sized = dict(n_windows=2, context_tokens=48)
    return real.prepare(folder, spec, "tiny", scores, host, ratios, methods, (1,), QUANTS, work, **sized)


def test_variants_are_what_their_files_say(tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    d, subject = prepared(folder, tmp_path, methods=("wanda_sp", "slicegpt"), ratios=(0.4, 0.9))
    by_name = {v.name: v for v in d.variants}
    assert {"whole", "depth-3b", "wanda_sp-3b-1"} <= by_name.keys()
    subject.write("wanda_sp-3b-1", tmp_path / "thin")
    assert by_name["wanda_sp-3b-1"].spec.blocks == model.inspect(tmp_path / "thin").blocks
    assert by_name["depth-3b"].spec.n_blocks == 3
    assert by_name["wanda_sp-3b-1"].params == pytest.approx(by_name["depth-3b"].params, rel=0.01)
    assert any("0.9" in line and "does not go there" in line for line in d.refused)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thin"], "folders made to look at are gone"


def test_a_method_that_can_not_is_left_out_and_the_rest_goes_on(tiny_folder, tmp_path):
    d, _ = prepared(tiny_folder("qwen2"), tmp_path, methods=("flap", "wanda_sp"))
    assert any(line.startswith("flap:") and "left out" in line for line in d.refused)
    assert "wanda_sp-3b-1" in {v.name for v in d.variants}
    spec = model.inspect(tiny_folder("llama"))
    other = make_scores(spec, [2, 3], fingerprint="0" * 64)
    with pytest.raises(WrongWeights):
        real.prepare(
            tiny_folder("llama"), spec, "tiny", other, devices.load("rpi5-8gb"), (0.4,), (), (1,), QUANTS, tmp_path
        )


@pytest.mark.slow
def test_measured_and_judged_from_the_same_files(tiny_folder, tmp_path):
    d, subject = prepared(tiny_folder("llama"), tmp_path)
    out = tmp_path / "study"
    protocol = measure.Protocol(contexts=(0,), n_prompt=8, n_gen=2, repetitions=2)

    def judge(work):
        with Log.opened(out / "quality.jsonl", {"a": "test"}) as log:
            return real.judge(
                d, subject, work, log, healer=None, n_windows=1, context_tokens=64, n_threads=1, progress=lambda *_: None,
                say=print,
            )  # fmt: skip

    def study():
        host = devices.load("intel-12-13-ddr5")
        return run.study(
            d,
            protocol,
            measure.Limits(),
            out,
            source=real.source(subject),
            host=host,
            profiles=[],
            judge=judge,
            command="test",
        )

    found = study()
    assert not found.speed_only and {p.what for p in found.pairs} == {"decode", "prefill"}
    kl = {q.variant: q.kl for q in found.qualities}
    assert set(kl) == {"whole", "depth-3b", "wanda_sp-3b-1"}
    assert kl["whole"] < 0.01 < min(kl["depth-3b"], kl["wanda_sp-3b-1"]), "Q8_0 alone hardly differs from torch"
    text = (out / "report.md").read_text()
    assert "What it does to the model" in text and "Speed only" not in text
    n_lines = len((out / "quality.jsonl").read_text().splitlines())
    assert study().qualities == found.qualities and len((out / "quality.jsonl").read_text().splitlines()) == n_lines
