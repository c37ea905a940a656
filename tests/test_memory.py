"""Memory of the runtimes: the formula, llama.cpp's load without allocation, and what a process really grew by."""

from __future__ import annotations

import pytest
from _shapes import plan_for

from edgeprune import _host_runs, devices, gguf_prune, model
from edgeprune._generated import Geometry, make_gguf, pure_size
from edgeprune._generated import spec as make_spec
from edgeprune._host_runs import Job, Pass
from edgeprune._memory import committed_compute_bytes, reserved_compute_bytes
from edgeprune.blocks import whole
from edgeprune.cost import MIB, Predictor, compute_bytes, kv_bytes, running_bytes
from edgeprune.exact_memory import exact_memory
from edgeprune.export import export
from edgeprune.prune import prune
from edgeprune.what_if import typical_removal
from exporters import gguf

EXACT = 0.01


def grown(path, context: int, runtime: str = "llamacpp", passes: int = 1) -> int:
    """Bytes a fresh process grew by, its whole context read and generated."""
    (runs,) = _host_runs.measure([Job("m", path, runtime, (Pass(context - 4, 4),) * passes)], 1, 1, lambda *_: None)
    return runs.memory["peak"] - runs.memory["before"]


def foretold(spec, blocks, quant: str, context: int, runtime: str = "llamacpp"):
    return Predictor(spec, devices.load("host"), runtime, "cpu")(blocks, quant, context, context)


@pytest.mark.slow
@pytest.mark.parametrize(("quant", "n_blocks", "context"), [("Q4_1", 30, 512), ("Q4_1", 12, 1024), ("Q8_0", 30, 256)])
def test_three_ways_agree_on_smollm2(quant, n_blocks, context, smollm2_gguf, smollm2_folder, tmp_path):
    path, spec = smollm2_gguf, model.inspect(smollm2_gguf)
    blocks = typical_removal(30, 30 - n_blocks)
    if n_blocks < 30:
        path = tmp_path / "cut.gguf"
        gguf_prune.prune_gguf(smollm2_gguf, spec, plan_for(spec, blocks), path, base_model="m")
    elif quant != "Q4_1":
        path = tmp_path / "other.gguf"
        gguf.export(smollm2_folder, path, quant, {}, lambda *_: None)
    formula = foretold(spec, blocks, quant, context)
    exact = exact_memory(path, context)
    assert formula.weights_bytes == pytest.approx(exact.weights_bytes + (exact.repack_bytes or 0), rel=1e-3)
    assert formula.kv_bytes == pytest.approx(exact.kv_bytes, abs=0.006 * MIB)  # its log has two decimals
    assert reserved_compute_bytes(spec, context) == pytest.approx(exact.compute_bytes, abs=MIB // 2)
    committed = committed_compute_bytes(spec, "llamacpp", context, context)
    assert committed == pytest.approx(exact.committed_compute_bytes, abs=MIB // 2)
    measured = grown(path, context)
    assert formula.memory_bytes == pytest.approx(measured, rel=EXACT)
    assert exact.resident_bytes == pytest.approx(measured, rel=EXACT)


@pytest.mark.slow
def test_a_vocabulary_and_blocks_take_what_they_are_said_to(tmp_path):
    """Other widths, a larger vocabulary, more blocks: within half a MiB of what a load without allocation grows by."""
    for g in (
        Geometry(256, 512, 4, 2, 2, 4096),
        Geometry(256, 512, 4, 2, 24, 4096),
        Geometry(256, 512, 4, 2, 2, 65536),
    ):
        path = tmp_path / f"{g.name}-{g.vocab}.gguf"
        make_gguf(g, "Q8_0", path)
        spec = model.inspect(path)
        predicted = foretold(spec, typical_removal(g.n_blocks, 0), "Q8_0", 256)
        assert predicted.memory_bytes == pytest.approx(grown(path, 256), abs=3 * MIB)


@pytest.mark.slow
def test_types_and_micro_batches_take_what_they_are_said_to(tmp_path):
    """One shape: what differs between types, and between one micro-batch and two, is known to 0.3 MB."""
    g, errors = Geometry(512, 1536, 8, 4, 4, 4096), []
    spec = make_spec(g)
    for quant, context in (("Q8_0", 504), ("Q8_0", 704), ("Q6_K", 504), ("F16", 504)):
        path = tmp_path / f"{quant}.gguf"
        if not path.exists():
            make_gguf(g, quant, path)
        (runs,) = _host_runs.measure([Job("m", path, "llamacpp", (Pass(context - 4, 4),))], 1, 2, lambda *_: None)
        size, blocks = pure_size(g, quant, frozenset()), whole(g.n_blocks)
        known = size.tensor_bytes + kv_bytes(spec, blocks, "llamacpp", quant, context)
        known += compute_bytes(spec, "llamacpp", "cpu", context, context - 4)
        known += running_bytes(spec, size, "llamacpp", "cpu", context - 4)
        errors.append(runs.memory["peak"] - runs.memory["before"] - known)
    assert max(errors) - min(errors) < 0.3e6


@pytest.mark.slow
def test_onnxruntime_takes_what_is_foretold(smollm2_folder, tmp_path):
    """A real export, cut, of matrices of 4 and 8 bits; prompts enough to look up most of the table."""
    spec, blocks = model.inspect(smollm2_folder), typical_removal(30, 22)
    prune(smollm2_folder, spec, plan_for(spec, blocks), tmp_path / "cut", base_model="m", command="")
    export(tmp_path / "cut", "onnx", "int4-mixed", tmp_path / "onnx", verify=False)
    measured = grown(tmp_path / "onnx", 256, "onnxruntime", passes=6)
    predicted = foretold(spec, blocks, "int4-mixed", 256, "onnxruntime").memory_bytes
    assert predicted == pytest.approx(measured, rel=0.03)
