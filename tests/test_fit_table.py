"""The matrix against single what-ifs; what it takes to make it; its table and its picture."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from edgeprune import _fit_svg, devices, known_models
from edgeprune.errors import UsageError
from edgeprune.fit_table import fit_table
from edgeprune.types import Budget
from edgeprune.what_if import needs

ROOT = Path(__file__).parent.parent
SPEC = known_models.load("llama-3.2-3b")
SOME = [devices.load(n) for n in ("rpi5-8gb", "jetson-orin", "pixel8", "rpi4-4gb")]


@pytest.fixture(scope="module")
def table():
    return fit_table(SPEC, SOME, Budget(context_tokens=16384), "meta-llama/Llama-3.2-3B")


def test_every_cell_is_its_own_what_if(table):
    assert [r.device for r in table.rows] == ["pixel8", "rpi4-4gb", "jetson-orin-nano-8gb-super", "rpi5-8gb"]
    for row in table.rows:
        found = {(n.runtime, n.quant): n for n in needs(SPEC, devices.load(row.device), table.budget)}
        for column, cell in zip(table.columns, row.cells, strict=True):
            need = found.get((column.runtime, column.quant))
            if need is None:
                assert cell is None and row.device == "pixel8" and column.runtime == "onnxruntime"
            else:
                assert (cell.blocks_to_remove, cell.kv_type) == (need.blocks_to_remove, need.kv_type)


def test_the_picture_says_what_the_table_says(table):
    root = ET.fromstring(_fit_svg.draw(table))
    space = "{http://www.w3.org/2000/svg}"
    boxes = [r for r in root.iter(f"{space}rect") if r.find(f"{space}title") is not None]
    assert len(boxes) == len(table.rows) * len(table.columns)
    texts = [t.text for t in root.iter(f"{space}text")]
    cells = [c for r in table.rows for c in r.cells if c]
    assert texts.count("whole") == sum(c.blocks_to_remove == 0 for c in cells)
    for cell in cells:
        assert not cell.blocks_to_remove or str(cell.blocks_to_remove) in texts
    for name in (*(r.device for r in table.rows), "Q4_K_M", "int4", "fits whole"):
        assert name in texts
    width, height = float(root.get("width")), float(root.get("height"))
    for box in root.iter(f"{space}rect"):
        assert float(box.get("x", 0)) + float(box.get("width")) <= width
    for text in root.iter(f"{space}text"):
        assert 0 < float(text.get("y")) < height and 0 < float(text.get("x")) < width
    assert _fit_svg.draw(table) == _fit_svg.draw(table)


def test_a_name_can_not_break_the_picture(table):
    ET.fromstring(_fit_svg.draw(table.model_copy(update={"model": '<script>"&\x1b[31m'})))


def test_what_no_device_runs_is_refused():
    with pytest.raises(UsageError, match="none of pixel8 runs onnxruntime"):
        fit_table(SPEC, [devices.load("pixel8")], Budget(runtime="onnxruntime"))
    with pytest.raises(UsageError, match="known: llamacpp, onnxruntime"):
        fit_table(SPEC, SOME, Budget(runtime="mlx"))
    with pytest.raises(UsageError, match="no quantisation called 'Q9'"):
        fit_table(SPEC, SOME, Budget(quant="Q9"))
    with pytest.raises(UsageError, match="holds 1 to 131072"):
        fit_table(SPEC, SOME, Budget(context_tokens=200000))


LEAN = """
import os, sys
from edgeprune import cli
sys.argv[1:] = {arguments!r}
try:
    cli.main()
except SystemExit as e:
    assert not e.code, e.code
heavy = {{"torch", "transformers", "onnxruntime", "llama_cpp", "onnx", "matplotlib", "numpy", "gguf"}} & set(sys.modules)
assert not heavy, heavy
if os.path.exists("/proc/self/status"):  # what getrusage tells includes the process it was forked from
    peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    assert peak < 300e6, peak
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "llama-3.1-70b", "--device", "jetson-agx-orin-64gb", "--max-mem", "30GB", "--min-tps", "3", "--json"],
        pytest.param(["fit", "meta-llama/Llama-3.1-70B", "--json"], marks=pytest.mark.slow),
        pytest.param(["plan", "--device", "jetson-orin", "--max-mem", "8GB", "--json"], marks=pytest.mark.slow),
    ],
)
def test_no_heavy_import_and_little_memory(arguments):
    """For an 80-block model on all devices too. Time is a benchmark's: benchmarks/planning_speed.py."""
    code = LEAN.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-800:]
    found = json.loads(done.stdout)
    assert found.get("rows") or found.get("needs") or found.get("alternatives")


@pytest.mark.slow
def test_the_command_line(call, tmp_path):
    out = tmp_path / "fit.svg"
    done = call("fit", "llama-3.1-8b", "-d", "rpi5-8gb", "-d", "m4", "-o", out)
    assert done.returncode == 0 and "rpi5-8gb" in done.stdout and "whole" in done.stdout
    ET.fromstring(out.read_text())
    again = call("fit", "llama-3.1-8b", "-d", "m4", "-o", out)
    assert again.returncode == 2 and str(out) in again.stderr
    assert call("fit", "llama-3.1-8b", "-d", "m4", "-o", tmp_path / "fit.png").returncode == 2
    for arguments, code, told in (
        (("plan", "llama-3.1-9b", "-d", "m4"), 2, "Did you mean 'llama-3.1-8b'"),
        (("plan", "llama-3.1-8b", "-d", "rpi4-4gb", "--max-kl", "0.001"), 3, "Nearest that works: --max-kl"),
        (("plan", "llama-3.1-8b", "-d", "m4", "-o", tmp_path / "plan.json"), 2, "exact weights"),
        (("plan", "llama-3.1-8b", "-d", "m4", "--context", "200000"), 2, "131072"),
        (("plan", "llama-3.1-8b", "-d", "pixel8", "--runtime", "onnxruntime"), 2, "does not run onnxruntime"),
        (("plan", "-d", "m4", "--objective", "beauty"), 2, "quality, speed, size, memory"),
        (("plan", "-d", "m4", "--max-kl", "nan"), 2, "nan"),
        (("plan", "-d", "m4", "--max-file", "1B"), 3, "file size binds"),
    ):
        done = call(*arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert told in done.stderr and done.stderr.strip().count("edgeprune: ") <= 1
    assert not (tmp_path / "plan.json").exists()
