"""Terms and their intervals: priors, fits and calibrations never look equally sure; what is shipped is what was fitted."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from _shapes import make_spec

from edgeprune import devices
from edgeprune._fit import Fit, Row, predict
from edgeprune._prior import Term
from edgeprune._rates import TERMS, WEAK, find, prior
from edgeprune._sizes import Sizes
from edgeprune.blocks import whole
from edgeprune.cost import Predictor, attention_work, cells_waited_for, decode_times, prompt_pairs
from edgeprune.types import Calibration, Figure

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks" / "prediction"))
BACKENDS = json.loads((ROOT / "edgeprune" / "builtin" / "backend_priors.json").read_text())["backends"]


def llama():
    return make_spec(32, 4096, 14336, 32, 8, 128, 128256, False, 8192, name="llama-3-8b")


def width(device, runtime="llamacpp", backend=None, quant="Q4_K_M", mode=None):
    p = Predictor(llama(), device, runtime, backend or device.runtimes[runtime][0], mode)(whole(32), quant, 2048, 512)
    return p.decode_high_tok_per_s / p.decode_low_tok_per_s


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_a_prior_is_what_the_file_says(backend):
    found, said = prior(backend), BACKENDS[backend]
    assert tuple(t.name for t in found.terms) == TERMS
    low, middle, high = said["efficiency"]
    weights = found.terms[0]
    assert 1 / weights.value == pytest.approx(middle)
    assert (1 / weights.high, 1 / weights.low) == pytest.approx((low, high), rel=0.02)
    assert found.terms[1].value == pytest.approx(said["overhead_us"][1] * 1e-6)
    assert 0.01 < found.noise < 0.3 and found.n_devices >= 1 and found.n_rows >= found.n_devices


def test_priors_agree_with_the_survey():
    """Medians of the survey's dense models of 1.5 GiB or more: an independent count that has no per-block term."""
    for backend, median in {"cpu": 0.58, "cuda": 0.74, "metal": 0.79, "vulkan": 0.67, "opencl": 0.59}.items():
        assert 1 / prior(backend).terms[0].value == pytest.approx(median, rel=0.15)
    assert prior("no-such-backend") is None


def test_what_is_surer_looks_surer():
    fitted, few, none = (devices.load(n) for n in ("m4-pro", "m2", "m2-max"))
    assert width(fitted) < width(few) < width(none)
    own = fitted.calibrations[0].model_copy(
        update={
            "status": "host-calibrated",
            **{
                name: getattr(fitted.calibrations[0], name).model_copy(update={"low": None, "high": None})
                for name in ("cache_rate", "attention_rate")
            },
            "error": Figure(value=0.01, unit="ratio", source="here", kind="measured"),
        }
    )
    assert width(fitted.model_copy(update={"calibrations": (own,)})) < width(fitted)
    for device, word in ((fitted, "fitted"), (few, "prior"), (none, "prior")):
        assert find(device, "llamacpp", "metal", None, "Q4_K_M").basis.startswith(word)
    assert "on this device" in find(few, "llamacpp", "metal", None, "Q4_K_M").basis
    assert "devices" in find(none, "llamacpp", "metal", None, "Q4_K_M").basis


def test_what_was_not_measured_is_less_sure():
    x, orin = devices.load("qcom-x-elite"), devices.load("jetson-agx-orin-64gb")
    assert width(x, quant="Q2_K") > width(x, quant="Q4_0"), "a quantisation"
    assert width(x, "onnxruntime", "cpu", "int4") > 1.2 * width(x, "llamacpp", "cpu", "Q4_0"), "a runtime"
    assert width(orin, mode="50W") > 2 * width(orin, mode="MAXN"), "a power mode"


def test_the_interval_is_the_fit_s_own():
    """Quadrature over the terms' shares of the time: what edgeprune._fit.predict gives for the same, unrelated, terms."""
    spec, device = llama(), devices.load("rtx3060-12gb")
    rates = find(device, "llamacpp", "cuda", None, "Q4_K_M")
    ends = (rates.efficiency, rates.overhead_us, rates.cache_bytes_per_s, rates.attention_flops)
    spreads = [math.log(max(e) / min(e)) / (2 * 1.645) for e in ends]
    values = (1 / rates.efficiency.middle, rates.overhead_us.middle * 1e-6)
    values += (rates.bandwidth / rates.cache_bytes_per_s.middle, 1 / rates.attention_flops.middle)
    terms = tuple(Term(n, v, s) for n, v, s in zip(TERMS, values, spreads, strict=True))
    found = Fit(terms, (), np.diag(np.square(spreads)), 0.0, rates.noise, 0, 0, (), ())
    size = 5 * 10**9
    for depth in (64, 8000):
        cache, flops = attention_work(spec, whole(32), depth, 2)
        assert cache == 32 * 2 * 8 * 128 * depth * 2 and flops == 4 * 32 * 128 * 32 * depth
        e = predict(found, (size / rates.bandwidth, 32, cache / rates.bandwidth, flops))
        slow, middle, fast = decode_times(spec, whole(32), Sizes(0, 0, size, 0), "Q4_K_M", "llamacpp", rates, depth)
        assert middle == pytest.approx(e.seconds)
        assert (slow, fast) == pytest.approx((e.high, e.low), rel=0.03)


def test_time_to_first_token_has_an_interval():
    p = Predictor(llama(), devices.load("m4-pro"), "llamacpp", "metal")(whole(32), "Q4_K_M", 2048, 512)
    assert p.ttft_low_s < p.ttft_s < p.ttft_high_s
    unknown = Predictor(llama(), devices.load("pixel9"), "llamacpp", "cpu")(whole(32), "Q4_K_M", 2048, 512)
    assert unknown.ttft_s is unknown.ttft_low_s is unknown.ttft_high_s is None


@pytest.mark.parametrize("threads", [2, 3, 4, 8])
def test_threads_wait_for_the_one_whose_run_of_the_cache_is_full(threads):
    """llama.cpp's rule played through: positions as threads get them, those not written skipped, the slowest counted."""
    for depth in (1, 100, 256, 257, 300, 511, 513, 700, 1025, 4000):
        cells = -(-depth // 256) * 256
        run = -(-cells // threads)
        slowest = max(len(range(t * run, min((t + 1) * run, cells, depth))) for t in range(threads))
        waited = cells_waited_for("llamacpp", "cpu", depth)
        if cells < 512:
            assert waited == depth, "threads share heads, evenly"
        else:
            assert 0 <= slowest * threads - waited < threads
    for other in (("llamacpp", "cuda"), ("onnxruntime", "cpu")):
        assert cells_waited_for(*other, 700) == 700
    assert cells_waited_for("llamacpp", "cpu", 700, "q8_0") == 700, "only a float cache is cut into runs"


def pairs(n: int) -> int:
    """Queries and keys that llama.cpp multiplies for a prompt in one micro-batch: tiles of 64 × 64 that hold a pair which
    the mask leaves, in full; of fewer than 64 queries only the pairs themselves."""
    seen = [(q, k) for q in range(n) for k in range(q + 1)]
    return len(seen) if n < 64 else 64 * 64 * len({(q // 64, k // 64) for q, k in seen})


def test_pairs_of_a_prompt():
    for n in (1, 63, 64, 65, 96, 300, 512):
        assert prompt_pairs("llamacpp", "cpu", n) == ((0, pairs(n)) if n < 64 else (pairs(n), 0))
        assert sum(prompt_pairs("onnxruntime", "cpu", n)) == n * (n + 1) / 2
    tiled, single = prompt_pairs("llamacpp", "cpu", 530)  # 512, then 18 more that see all before them
    assert (tiled, single) == (pairs(512), sum(range(513, 531)))
    assert prompt_pairs("llamacpp", "cpu", 700)[1] == 0


def test_a_window_bounds_attention():
    spec = make_spec(window=1024)
    at, beyond = (attention_work(spec, whole(30), depth, 2) for depth in (1024, 8000))
    assert at == beyond and at[0] < attention_work(make_spec(), whole(30), 8000, 2)[0]


# --- from rates to profiles ---------------------------------------------------------------------

HEADER = "device,backend,runtime,model,params_b,quant,file_gib,streamed_gib,depth,pp_tps,tg_tps,threads,theoretical_bw_gbs,source,note"
TRUE = (1 / 0.7, 60e-6, 1 / 0.5, 1 / 200e9)


def rates_file(path):
    """Eight models on a made-up M2 with known terms, one expert mixture and one device without a bandwidth."""
    import _models

    lines = [HEADER]
    for model in ("Llama-2-7B", "Qwen3-0.6B", "Qwen3-4B", "Llama-3.2-1B", "Phi-4-14B", "SmolLM2-1.7B", "Qwen2.5-7B"):
        shape = _models.SHAPES[model]
        for depth in (128, 4096):
            size = shape.params * 0.56 / 2**30
            amounts = (
                size * 2**30 / 100e9,
                shape.blocks,
                shape.cache_bytes(depth) / 100e9,
                shape.attention_flops(depth),
            )
            speed = 1 / sum(a * t for a, t in zip(amounts, TRUE, strict=True))
            row = ["Apple M2 10c GPU", "Metal", "llama.cpp", model, shape.params / 1e9, "Q4_K_M", size, size, depth]
            lines.append(",".join(map(str, [*row, "", speed, "", 100, "made up", ""])))
    lines.append("Apple M2 10c GPU,Metal,llama.cpp,Qwen3-30B-A3B (MoE),30.5,Q4_K_M,17,17,128,,40,,100,made up,")
    lines.append("Some Board,CPU,llama.cpp,Llama-2-7B,6.738,Q4_0,3.6,3.5,128,,4,,,made up,")
    path.write_text("\n".join(lines) + "\n")


def test_rates_become_a_profile(tmp_path):
    import _learn
    import _profiles
    import _rows

    rates_file(tmp_path / "rates.csv")
    lines, left_out = _rows.read(tmp_path / "rates.csv")
    assert len(lines) == 14 and [n for n, _ in left_out] == [16, 17]
    found, priors = _learn.devices(lines, lambda text: None)
    assert len(found) == 1 and found[0].status == "fitted" and found[0].models == 7
    text = (devices.FOLDER / "m2.toml").read_text(encoding="utf-8")
    written = _profiles.with_calibrations(text, found)
    assert _profiles.with_calibrations(written, found) == written, "a second run changes nothing"
    (tmp_path / "m2.toml").write_text(written, encoding="utf-8")
    before, after = devices.load("m2"), devices.load(tmp_path / "m2.toml")
    (c,) = after.calibrations
    assert c.efficiency_of["Q4_K_M"].value == pytest.approx(0.7, rel=0.05)
    assert c.overhead_per_block.value == pytest.approx(60, rel=0.3)
    assert c.efficiency.low < c.efficiency.value < c.efficiency.high and (c.n_rows, c.n_models) == (14, 7)
    assert c.prefill_rate.value == before.calibrations[0].prefill_rate.value, "what the rates don't tell stays"
    assert before.model_copy(update={"calibrations": ()}) == after.model_copy(update={"calibrations": ()})
    assert set(json.loads(_profiles.backend_priors(priors, "x"))["backends"]) == {"metal"}


def test_rates_that_are_not_understood_are_refused(tmp_path):
    import _rows

    rates_file(tmp_path / "rates.csv")
    text = (tmp_path / "rates.csv").read_text()
    for old, new, said in (
        ("Llama-2-7B,6.7", "Llama-2-7B,7.9", "parameters"),
        ("Apple M2", "Banana Pi", "no profile"),
        (",Qwen3-4B,", ",Qwen4-4B,", "no shape"),
    ):
        (tmp_path / "bad.csv").write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=said):
            _rows.read(tmp_path / "bad.csv")


def test_shapes_of_the_survey():
    """Cache of Llama-2-7B: 0.5 MiB a token, as llama.cpp prints; parameters as published."""
    import _models

    assert _models.SHAPES["Llama-2-7B"].cache_bytes(1) == 2**19
    assert _models.SHAPES["Llama-3.1-8B"].params == pytest.approx(8.03e9, rel=1e-3)
    with pytest.raises(ValueError, match="Phi-4-mini"):
        _models.check("Phi-4-mini", 4.2)


def test_without_a_model_left_the_prior_is_all():
    import _learn

    row = Row("one", (0.03, 32.0, 0.001, 1e9), 0.06)
    assert _learn._prefill([]) == (None, [])
    assert len(row.amounts) == len(WEAK.terms) and isinstance(Calibration.model_fields["error"].default, type(None))
