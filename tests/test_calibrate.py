"""Calibration: terms are found again from rows that they made, files of real tools are read, wrong ones are named."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from edgeprune import _bench_files, _calibrate_files, calibrate, devices
from edgeprune._calibrate_write import paths
from edgeprune._generated import Geometry, block_shapes, make_folder, make_gguf, pure_size, spec
from edgeprune._profile_write import toml_text
from edgeprune._rates import find
from edgeprune._sizes import Shapes
from edgeprune._terms import Observation, fit_all
from edgeprune.blocks import whole
from edgeprune.calibrate import NARROW, WIDE
from edgeprune.cost import cells_waited_for, decode_times, predict, prefill_times, prompt_pairs
from edgeprune.errors import InputRejected, UsageError
from edgeprune.gguf_file import read_header
from edgeprune.model import inspect

TINY = Geometry(hidden=256, ffn=512, heads=4, kv_heads=2, n_blocks=3, vocab=1000, context=512)

# --- the fit --------------------------------------------------------------------------------------

READ = {"Q8_0": 9e9, "Q6_K": 8e9, "Q4_K": 7e9}  # bytes/s
MULTIPLY = {"Q8_0": 60e9, "Q6_K": 100e9, "Q4_K": 140e9}  # flop/s
OVERHEAD, ATTENTION, ACTIVATIONS = 120e-6, 3e9, 3e9
HERE = ("llamacpp", "cpu")


def rows(noise: float) -> list[Observation]:
    """What a machine with the rates above would take, by sums written out here."""
    rng = random.Random(0)
    out = []
    for g in (NARROW, WIDE):
        for kind in READ:
            (w,) = pure_size(g, kind, frozenset()).matrices
            base = Observation(g.name, spec(g), *HERE, "b1", kind, (w,), "decode", 0, 0.0)
            heads = 4 * g.heads * g.head_dim * g.n_blocks
            for depth in (44, 524):
                t = (w.block_bytes + w.head_bytes) / READ[kind] + g.n_blocks * OVERHEAD
                t += heads * cells_waited_for(*HERE, depth) / ATTENTION
                out.append(base._replace(tokens=depth, seconds=t * rng.gauss(1, noise)))
            for n in (32, 128, 512):
                t = 2 * w.block_params * n / MULTIPLY[kind] + w.block_bytes / READ[kind] + w.head_bytes / READ[kind]
                t += 4 * n * values(g) / ACTIVATIONS + heads * sum(prompt_pairs(*HERE, n)) / ATTENTION
                out.append(base._replace(what="prefill", tokens=n, seconds=t * rng.gauss(1, noise)))
    return out


def values(g: Geometry) -> int:  # columns and rows of matrices
    return g.n_blocks * sum(sum(shape) for shape in block_shapes(g).values() if len(shape) == 2)


@pytest.fixture(scope="module")
def profile_file(tmp_path_factory) -> Path:
    """A profile written from the rows, with one percent of noise."""
    from edgeprune import _profile_write as writing

    fitted = fit_all(rows(0.01), 20e9, "host-calibrated", "a test", {("llamacpp", "cpu"): 7e6})
    document = _calibrate_files.base_document("intel-n100")
    out = tmp_path_factory.mktemp("profile") / "board.toml"
    out.write_text(toml_text(writing.with_calibrations(document, [f.calibration for f in fitted], "a test")))
    return out


def test_terms_are_found_again(profile_file):
    (c,) = [c for c in devices.load(profile_file).calibrations if c.status == "host-calibrated"]
    assert (c.n_rows, c.n_models) == (30, 2)
    for kind, rate in READ.items():
        assert c.weight_rates[kind].value == pytest.approx(rate, rel=0.03)
        assert c.weight_rates[kind].low < rate < c.weight_rates[kind].high
        assert c.prefill_rates[kind].value == pytest.approx(MULTIPLY[kind], rel=0.1)
    assert c.overhead_per_block.value == pytest.approx(OVERHEAD * 1e6, rel=0.25)
    assert c.attention_rate.value == pytest.approx(ATTENTION, rel=0.25)  # part of it goes to reading the cache


def test_another_shape_depth_context_and_mix_is_foretold(profile_file):
    """A file quantisation is made of types that were run, though it was not run itself."""
    board = devices.load(profile_file)
    g = Geometry(hidden=1024, ffn=2816, heads=16, kv_heads=4, n_blocks=9, vocab=20000)
    s, blocks = spec(g), whole(9)
    size, rates = Shapes(s).gguf(blocks, "Q4_K_M"), find(board, "llamacpp", "cpu", None, "Q4_K_M")
    assert {w.type for w in size.matrices} == {"Q4_K", "Q6_K"}
    depth, n = 300, 200
    true = sum((w.block_bytes + w.head_bytes) / READ[w.type] for w in size.matrices)
    true += 9 * OVERHEAD + 4 * 1024 * 9 * cells_waited_for(*HERE, depth) / ATTENTION
    found = decode_times(s, blocks, size, "Q4_K_M", "llamacpp", rates, depth)[1]
    assert found == pytest.approx(true, rel=0.03)
    true = sum(
        2 * w.block_params * n / MULTIPLY[w.type] + (w.block_bytes + w.head_bytes) / READ[w.type] for w in size.matrices
    )
    true += 4 * n * values(g) / ACTIVATIONS + 4 * 1024 * 9 * sum(prompt_pairs(*HERE, n)) / ATTENTION
    assert prefill_times(s, blocks, size.matrices, "llamacpp", rates, n)[1] == pytest.approx(true, rel=0.05)
    p = predict(s, blocks, board, "llamacpp", "cpu", "Q4_K_M", 512, n)
    assert p.basis.startswith("host-calibrated: 30 rows of 2 models")
    assert p.decode_low_tok_per_s < p.decode_tok_per_s < p.decode_high_tok_per_s
    assert p.ttft_s == pytest.approx(true, rel=0.05)


def test_what_rows_can_not_tell_is_said():
    few = [o for o in rows(0.01) if o.model == WIDE.name and o.what == "decode" and o.tokens < 100]
    (fitted,) = fit_all(few, 20e9, "fitted", "a test", {})
    assert fitted.calibration.status == "prior", "three rows are not a fit"
    assert any("attention" in line for line in fitted.unclear)
    (whole_set,) = fit_all(rows(0.01), 20e9, "fitted", "a test", {})
    assert whole_set.calibration.status == "fitted"
    assert not any("per block" in line for line in whole_set.unclear if "decode" in line)


# --- generated models -----------------------------------------------------------------------------


def test_generated_models_are_what_their_shape_says(tmp_path):
    """The hand-made GGUF and the folder, as inspecting finds them."""
    make_gguf(TINY, "Q4_K", tmp_path / "m.gguf")
    make_folder(TINY, tmp_path / "folder")
    told = spec(TINY)
    for found in (inspect(tmp_path / "m.gguf"), inspect(tmp_path / "folder")):
        assert (found.params, found.n_blocks, found.n_kv_heads) == (told.params, 3, 2)
        assert found.kv_elements_per_token == told.kv_elements_per_token
        assert found.blocks[0].attn == told.blocks[0].attn and found.globals == told.globals
    tensors = read_header(tmp_path / "m.gguf").tensors.values()
    assert {t.type for t in tensors if len(t.shape) == 2} == {"Q4_K"}
    assert pure_size(TINY, "Q4_K", frozenset()).tensor_bytes == sum(t.n_bytes for t in tensors)


@pytest.mark.slow
def test_a_generated_mix_is_the_quantisers(tmp_path):
    """Types as llama.cpp's quantiser gives them, and values that it would give."""
    from exporters import gguf

    make_folder(TINY, tmp_path / "folder")
    gguf.export(tmp_path / "folder", tmp_path / "real.gguf", "Q4_K_M", {}, lambda *_: None)
    make_gguf(TINY, "Q4_K_M", tmp_path / "made.gguf", mixed=True)
    real, made = (read_header(tmp_path / f"{n}.gguf").tensors for n in ("real", "made"))
    assert {n: (t.type, t.shape) for n, t in real.items()} == {n: (t.type, t.shape) for n, t in made.items()}


def test_equal_matrices_would_be_kept_once(tmp_path):
    """onnxruntime packs equal weights once, which would falsify memory and speed."""
    from edgeprune.checkpoint import open_checkpoint, read_tensor

    make_folder(TINY, tmp_path / "folder")
    ck = open_checkpoint(tmp_path / "folder")
    first, second = (read_tensor(ck, f"model.layers.{i}.mlp.up_proj.weight") for i in (0, 1))
    assert not np.array_equal(first, second)


# --- a whole run ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_taken_up_again_and_writes_a_profile(tmp_path, monkeypatch):
    """Tiny shapes, one repetition: what is written loads, plans with it, and a second run measures nothing anew."""
    from typer.testing import CliRunner

    from edgeprune.cli import calibrate as _verb  # noqa: F401
    from edgeprune.cli._app import app

    monkeypatch.setattr(calibrate, "NARROW", TINY)
    monkeypatch.setattr(calibrate, "WIDE", TINY._replace(hidden=512, n_blocks=1, heads=8))
    monkeypatch.setattr(calibrate, "PASSES", (calibrate.Pass(8, 3), calibrate.Pass(40, 3)))
    out, work = tmp_path / "host.toml", tmp_path / "work"
    arguments = [
        "calibrate",
        "-o",
        str(out),
        "--work",
        str(work),
        "-r",
        "1",
        "-t",
        "1",
        "--type",
        "Q8_0",
        "--type",
        "int8",
    ]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    profile = devices.load(out)
    assert {(c.runtime, c.status) for c in profile.calibrations} == {
        ("llamacpp", "host-calibrated"), ("onnxruntime", "host-calibrated")
    }  # fmt: skip
    assert len(told["rows"]) == 2 * 2 * 4 and all(r["measured_s"] > 0 for r in told["rows"])
    assert all(p.is_file() for p in paths(out))
    assert predict(spec(TINY), whole(3), profile, "onnxruntime", "cpu", "int8", 64, 32).basis.startswith(
        "host-calibrated"
    )
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2 and "exists" in again.output


@pytest.mark.slow
def test_finished_rounds_are_not_run_again(tmp_path):
    plan = calibrate.make_plan(["llamacpp"], types=["Q4_0"], repetitions=1, threads=1, passes=(calibrate.Pass(8, 2),))
    plan = plan._replace(items=tuple(i._replace(geometry=TINY._replace(n_blocks=1)) for i in plan.items[:1]))
    kept = tmp_path / "rounds.json"
    first = calibrate.run(plan, tmp_path / "work", progress=lambda *_: None, kept=kept)
    assert calibrate.run(plan, tmp_path / "work", progress=lambda *_: None, kept=kept) == first
    kept.write_text(kept.read_text()[:-20])  # a damaged file is not believed
    assert calibrate.run(plan, tmp_path / "work", progress=lambda *_: None, kept=kept) != first


def test_a_model_of_the_user_s_runs_at_two_depths(tmp_path):
    """Both really made: a .gguf cut to half its blocks beside the whole, each known by its own shape."""
    make_gguf(TINY._replace(n_blocks=4), "Q8_0", tmp_path / "own.gguf")
    plan = calibrate.make_plan(["llamacpp"], [tmp_path / "own.gguf"], types=["Q4_0"], repetitions=1, threads=1)
    own = [i for i in plan.items if i.path]
    assert [(i.quant, i.n_blocks) for i in own] == [("Q8_0", None), ("Q8_0", 2)]
    made = [inspect(calibrate._make(i, tmp_path)) for i in own]
    assert [m.n_blocks for m in made] == [calibrate._spec(i).n_blocks for i in own] == [4, 2]
    assert [m.params for m in made] == [calibrate._spec(i).params for i in own]
    folder = tmp_path / "folder"
    make_folder(TINY._replace(n_blocks=4), folder)
    plan = calibrate.make_plan([], [folder], types=["Q4_0"], repetitions=1, threads=1)
    asked = {(i.runtime, i.quant, i.n_blocks) for i in plan.items if i.path}
    assert asked == {(r, q, n) for r, qs in calibrate.FOLDER_QUANTS.items() for q in qs for n in (None, 2)}


def test_what_can_not_be_calibrated():
    with pytest.raises(UsageError, match="tensorrt can't be calibrated: it is not installed"):
        calibrate.make_plan(["tensorrt"])
    with pytest.raises(UsageError, match="no generated model of type Q9_9; known: F16, Q8_0"):
        calibrate.make_plan(["llamacpp"], types=["Q9_9"])


def test_profiles_survive_being_written(tmp_path):
    path = tmp_path / "copy.toml"
    for name in ("rpi5-4gb", "jetson-agx-orin-64gb", "m4-pro", "sd-8elite"):
        document = _calibrate_files.base_document(name)
        path.write_text(toml_text(document))
        assert devices.read_document(path) == document
    sized = _calibrate_files.base_document("m2-16gb")
    assert sized["memory"]["total"]["value"] == 16 and math.isclose(
        devices.load("m2-16gb").memory_total.value, 16 * 2.0**30 if sized["memory"]["total"]["unit"] == "GiB" else 16e9
    )


# --- files that people have -----------------------------------------------------------------------

LLAMA_BENCH = {
    "build_commit": "0c1e570", "backends": "CPU", "model_filename": "gone.gguf", "model_type": "llama 1B Q4_K - Medium",
    "model_size": 10, "model_n_params": 0, "n_gpu_layers": 0, "n_prompt": 0, "n_gen": 0, "n_depth": 0, "avg_ns": 0,
    "samples_ns": [],
}  # fmt: skip
GENAI_PLAIN = (
    "Batch Size,Prompt Length,Tokens Generated,Max Length,Prompt Processing Latency (ms),Token Generation Latency (ms)\n"
    "1,128,64,192,2.5,30\n4,128,64,192,2.5,30\n"
)


def test(n_prompt: int, n_gen: int, n_depth: int, *samples_ns: int) -> dict:
    told = {"n_prompt": n_prompt, "n_gen": n_gen, "n_depth": n_depth, "samples_ns": list(samples_ns)}
    return LLAMA_BENCH | told | {"avg_ns": sum(samples_ns) // len(samples_ns), "model_n_params": spec(TINY).params}


test.__test__ = False


def written(folder: Path, text: str) -> Path:
    path = folder / "bench.out"
    path.write_text(text)
    return path


def test_llama_bench_rows(tmp_path):
    """Medians of samples, in JSON, JSON lines and CSV alike; without n_depth, as older versions write."""
    tests = [test(512, 0, 0, 4_000_000_000, 2_000_000_000, 3_000_000_000), test(0, 128, 1024, 1_280_000_000)]
    found = _bench_files.read(written(tmp_path, json.dumps(tests, indent=1)))
    assert [(r.prompt_s, r.token_s, r.n_depth) for r in found] == [(3.0, None, 0), (None, 0.01, 1024)]
    assert (found[0].quant, found[0].backend) == ("Q4_K_M", "cpu")
    lines = _bench_files.read(written(tmp_path, "\n".join(map(json.dumps, tests))))
    assert [r[1:] for r in lines] == [r[1:] for r in found]
    old = {k: v for k, v in tests[0].items() if k not in ("n_depth", "samples_ns")}
    text = ",".join(old) + "\n" + ",".join(f'"{v}"' for v in old.values()) + "\n"
    (row,) = _bench_files.read(written(tmp_path, text))
    assert row.prompt_s == 3.0 and row.where.endswith("line 2")
    gpu = [tests[1] | {"backends": "CUDA,CPU", "n_gpu_layers": 99}, tests[1] | {"backends": "CUDA,CPU"}]
    assert [r.backend for r in _bench_files.read(written(tmp_path, json.dumps(gpu)))] == ["cuda", "cpu"]


@pytest.mark.parametrize(
    ("told", "quant"),
    [
        ("llama 7B Q8_0", "Q8_0"), ("qwen2 1B Q4_K - Small", "Q4_K_S"), ("llama ?B (guessed) F16", "F16"),
        ("llama 7B all F32", "F32"), ("llama 8B IQ4_XS - 4.25 bpw", "IQ4_XS"), ("llama 8B IQ3_S mix - 3.66 bpw", "IQ3_S"),
        ("llama 8B Q2_K - Medium", "Q2_K"), ("gemma3 4B Q3_K - Large", "Q3_K_L"), ("llama 8B Q6_K", "Q6_K"),
    ],
)  # fmt: skip
def test_quantisations_as_llama_bench_spells_them(told, quant, tmp_path):
    (row,) = _bench_files.read(written(tmp_path, json.dumps([test(8, 0, 0, 5) | {"model_type": told}])))
    assert row.quant == quant


def test_genai_rows(tmp_path):
    """Both forms of benchmark_e2e.py's CSV; latencies are per token, other batch sizes are left out."""
    prompt, decode = _bench_files.read(written(tmp_path, GENAI_PLAIN))
    assert (prompt.n_prompt, prompt.prompt_s) == (128, pytest.approx(0.32))
    assert (decode.n_depth, decode.n_gen, decode.token_s) == (128, 64, pytest.approx(0.03))
    record = {
        "config": {"batch_size": 1, "precision": "int4", "prompt_length": 128, "tokens_generated": 64},
        "metadata": {"device": "cuda", "package_version": "0.9.0"},
        "metrics": {"prompt_processing_latency_ms": 2.5, "token_generation_latency_ms": 30.0},
    }
    for text in (json.dumps([record]), csv_of(_bench_files._flat(record))):
        found = _bench_files.read(written(tmp_path, text))
        assert [(r.backend, r.quant, r.build) for r in found] == [("cuda", "int4", "onnxruntime-genai 0.9.0")] * 2
        assert [r.prompt_s or r.token_s for r in found] == [prompt.prompt_s, decode.token_s]


def csv_of(record: dict) -> str:
    return ",".join(record) + "\n" + ",".join(map(str, record.values())) + "\n"


def calibrated_from(folder: Path, tests: list[dict], **more) -> dict:
    path = written(folder, json.dumps(tests))
    base = devices.load("intel-n100")
    document = _calibrate_files.base_document("intel-n100")
    return _calibrate_files.calibrate_files([path], [spec(TINY)], base, document, "mine", **more)[0]


def test_few_rows_adjust_a_fit_of_many(tmp_path):
    """A row that the profile foretells leaves it as it is; one a tenth slower moves it a part of the way there."""
    base = devices.load("rpi5-8gb")
    (known,) = [c for c in base.calibrations if (c.runtime, c.backend) == ("llamacpp", "cpu")]
    assert known.n_rows >= 8
    foretold = 1 / predict(spec(TINY), whole(3), base, "llamacpp", "cpu", "Q4_K_M", 512, 64).decode_tok_per_s
    times = []
    for slower in (1.0, 1.1):
        path = written(tmp_path, json.dumps([test(0, 128, 0, round(128e9 * foretold * slower))]))
        document = _calibrate_files.base_document("rpi5-8gb")
        document, (fitted,), said = _calibrate_files.calibrate_files([path], [spec(TINY)], base, document, "mine")
        assert (fitted.calibration.n_rows, fitted.calibration.status) == (known.n_rows + 1, "fitted")
        assert any(f"rests on {known.n_rows} rows" in line for line in said)
        (tmp_path / "mine.toml").write_text(toml_text(document))
        mine = devices.load(tmp_path / "mine.toml")
        times.append(1 / predict(spec(TINY), whole(3), mine, "llamacpp", "cpu", "Q4_K_M", 512, 64).decode_tok_per_s)
    assert times[0] == pytest.approx(foretold, rel=0.03)
    assert times[0] * 1.01 < times[1] < foretold * 1.1


def test_files_are_of_a_power_mode(tmp_path):
    path = written(tmp_path, json.dumps([test(0, 64, 0, 10**9)]))
    base, document = devices.load("jetson-agx-orin-64gb"), _calibrate_files.base_document("jetson-agx-orin-64gb")
    with pytest.raises(UsageError, match="has no power mode '7W'; known: MAXN"):
        _calibrate_files.calibrate_files([path], [spec(TINY)], base, document, "mine", "7W")
    found = _calibrate_files.calibrate_files([path], [spec(TINY)], base, document, "mine")
    assert found[1][0].calibration.mode == base.modes[0].name and "--mode names another" in found[2][0]


def test_a_profile_is_extended(tmp_path):
    document = calibrated_from(tmp_path, [test(512, 0, 0, 10**9), test(0, 64, 0, 10**9), test(0, 64, 256, 2 * 10**9)])
    (tmp_path / "mine.toml").write_text(toml_text(document))
    mine, base = devices.load(tmp_path / "mine.toml"), devices.load("intel-n100")
    assert (mine.id, mine.bandwidth, mine.memory_total) == ("mine", base.bandwidth, base.memory_total)
    (before,) = [c for c in base.calibrations if (c.runtime, c.backend) == ("llamacpp", "cpu")]
    (c,) = [c for c in mine.calibrations if (c.runtime, c.backend) == ("llamacpp", "cpu")]
    assert (c.n_rows, c.status) == (before.n_rows + 3, "prior") and "bench.out" in c.overhead_per_block.source
    assert set(c.weight_rates) == {w.type for w in Shapes(spec(TINY)).gguf(whole(3), "Q4_K_M").matrices}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; was the benchmark stopped"),
        ("[]", "holds no test"),
        (json.dumps([test(8, 0, 0, 5)], indent=1)[:-40], "line .*: ends in the middle; was the benchmark stopped"),
        (json.dumps([test(8, 0, 0, 5)]) + "x", "line 1: not JSON"),
        (
            json.dumps([{"n_prompt": 8, "model_size": 3}]),
            "test 1: n_gen is missing; this llama-bench is of another version",
        ),
        (json.dumps([test(8, 0, 0, 5) | {"n_prompt": "eight"}]), "test 1: n_prompt is 'eight', not a number"),
        (json.dumps([test(8, 0, 0, 5), test(0, 8, 0, -5)]), "test 2: samples_ns is -5, which can't be"),
        (
            json.dumps([test(8, 0, 0, 5) | {"model_type": "llama 7B"}]),
            "test 1: model_type 'llama 7B' names no quantisation",
        ),
        (json.dumps([{"loss": 3.2}]), "neither llama-bench's output .* nor onnxruntime-genai's"),
        ("| model | size |\n", "line 1: not JSON and not a CSV header"),
        ("n_prompt,n_gen,model_size,model_type,model_n_params\n8,0,10", "line 2: 3 fields, the header has 5"),
        (GENAI_PLAIN.replace("Prompt Length", "Prompt"), "line 2: neither config.prompt_length nor 'Prompt Length'"),
        (json.dumps([test(8, 0, 0, 5) | {"model_n_params": 7 * 10**9}]), "which model is it.* --model|name its folder"),
        (json.dumps([test(8, 8, 0, 5)]), "no test of a prompt or of generation alone"),
    ],
)
def test_files_that_can_not_be_used(text, message, tmp_path):
    with pytest.raises(InputRejected, match=message) as e:
        path = written(tmp_path, text)
        _calibrate_files.observations([path], [spec(TINY)])
    assert str(e.value).startswith(str(tmp_path)) and "\n" not in str(e.value)
