"""Wrong input through the command line: the documented code, one clear line, no traceback, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EDGEPRUNE = [sys.executable, "-m", "edgeprune.cli"]


def process(*args):
    return subprocess.run([*EDGEPRUNE, *map(str, args)], capture_output=True, text=True, timeout=120)


def refused(result, code, *words):
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""
    message = result.stderr.strip().splitlines()[-1] if code != 2 else result.stderr
    for word in words:
        assert word in message, message
    return message


@pytest.fixture
def model(tiny_folder, tmp_path):
    """A private copy that a test may damage."""
    shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    return tmp_path / "model"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_not_a_model(call, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    refused(process("inspect", tmp_path / "empty"), 4, "config.json")
    refused(call("inspect", tmp_path / "notes.txt"), 4, "neither")
    refused(call("inspect", tmp_path / "gone"), 4, "no such folder")
    refused(call("inspect", "nobody/nothing-at-all"), 4, "hub")


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_a_truncated_safetensors(call, model, keep):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(call("inspect", model), 4, "model.safetensors")


def test_a_corrupt_safetensors_header(call, model):
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[20:30] = b"\xff" * 10
    file.write_bytes(data)
    refused(call("inspect", model), 4, "model.safetensors")


@pytest.mark.parametrize("keep", [3, 30, 5000, -1])
def test_a_truncated_gguf(call, smollm2_gguf, tmp_path, keep):
    bad = tmp_path / "bad.gguf"
    with open(smollm2_gguf, "rb") as f:
        bad.write_bytes(f.read(keep) if keep >= 0 else f.read()[:keep])
    refused(call("inspect", bad), 4, "bad.gguf")


def test_only_pickle_weights(call, model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    refused(call("inspect", model), 4, "pickle")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"_attn_implementation_internal": "kernels/x"}, "implementation"),
        ({"model_type": "qwen22"}, "Did you mean 'qwen2'"),
        ({"num_hidden_layers": 4}, "layer"),
        ({"num_hidden_layers": 6}, "layers.5"),
        ({"num_hidden_layers": "5"}, "num_hidden_layers"),
        ({"hidden_size": 32}, "config.json says"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_config_that_lies_or_runs_code(call, model, change, word):
    config = json.loads((model / "config.json").read_text()) | change
    (model / "config.json").write_text(json.dumps(config))
    refused(call("inspect", model), 4, word)


def test_a_shard_outside_the_folder(call, model):
    index = {"weight_map": {"x": "../model.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(call("inspect", model), 4, "plain file name")


def test_an_unknown_device(call):
    refused(call("plan", "--device", "jetson-orinn", "--max-mem", "8GB"), 2, "jetson-orin")
    refused(call("devices", "rasberry-pi-5"), 2, "Did you mean")


@pytest.mark.parametrize("size", ["8", "8XB", "lots", "-1GB", ""])
def test_a_size_without_a_unit(call, size):
    refused(call("plan", "--device", "jetson-orin", f"--max-mem={size}"), 2, "max-mem")


def test_flags_that_make_no_sense(call, tmp_path):
    refused(call("plan", "--max-mem", "8GB"), 2, "--device")
    refused(call("plan", "--device", "rpi5", "--quant", "Q9_9"), 2, "Q9_9")
    refused(call("plan", "--device", "rpi5", "--runtime", "llamacp"), 2, "llamacp")
    refused(call("plan", "--device", "rpi5", "--context", "9999999"), 2, "context")
    refused(
        call("score", "smollm2-135m-instruct", "-o", tmp_path / "s.json", "--metric", "nonsense"), 2, "block_influence"
    )
    here = ("--through", "llamacpp", "--metric", "block_influence", "--max-memory", "1GB")
    refused(
        call("score", "smollm2-135m-instruct", "-o", tmp_path / "s.json", *here), 2, "--max-memory", "--through torch"
    )


def test_a_budget_nothing_meets(call):
    message = refused(call("plan", "--device", "jetson-orin", "--max-mem", "20MB"), 3, "memory")
    assert "MB" in message


def test_infeasible_as_json_names_the_nearest_budget_that_works(call):
    result = call("plan", "--device", "jetson-orin", "--max-mem", "20MB", "--json")
    assert result.returncode == 3
    nearest = json.loads(result.stdout)["nearest"]["max_mem_bytes"]
    assert call("plan", "--device", "jetson-orin", "--max-mem", f"{nearest}B").returncode == 0
    assert call("plan", "--device", "jetson-orin", "--max-mem", f"{nearest - 1}B").returncode == 3


@pytest.fixture
def plan_file(call, model, tmp_path):
    """A plan for `model` that removes nothing: needs no scores."""
    path = tmp_path / "plan.json"
    assert call("plan", model, "--device", "rpi5", "--context", "128", "-o", path).returncode == 0
    return path


def test_a_plan_for_other_weights(call, tiny_folder, plan_file, tmp_path):
    other = tiny_folder("llama", seed=99)
    refused(call("prune", other, "--plan", plan_file, "-o", tmp_path / "out"), 5, "other weights")
    refused(call("prune", tiny_folder("llama", n_blocks=4), "--plan", plan_file, "-o", tmp_path / "out"), 5, "blocks")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_scores_of_other_weights(call, tiny_folder, model, tmp_path):
    scores = tmp_path / "scores.json"
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox " * 60)
    done = call("score", model, "-o", scores, "--calibration", text, "--window", "32", "--windows", "2")
    assert done.returncode == 0, done.stderr
    refused(
        call("plan", tiny_folder("llama", seed=99), "--device", "rpi5", "--context", "128", "--scores", scores),
        5,
        "scores",
    )


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 99}', "\x00"])
def test_a_plan_that_is_not_one(call, model, tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    refused(call("prune", model, "--plan", tmp_path / "bad.json", "-o", tmp_path / "out"), 4, "bad.json")


def test_an_output_that_exists(call, model, plan_file, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("keep")
    before = tree(model)
    refused(call("prune", model, "--plan", plan_file, "-o", out), 2, "exists")
    assert (out / "mine").read_text() == "keep" and tree(model) == before
    assert call("prune", model, "--plan", plan_file, "-o", out, "--force").returncode == 0
    assert not (out / "mine").exists() and (out / "model.safetensors").exists() and tree(model) == before


def test_an_artifact_no_runtime_reads(call, tmp_path):
    (tmp_path / "x.txt").write_text("x")
    refused(call("bench", tmp_path / "x.txt"), 4, "runtime")
    refused(call("bench", tmp_path / "gone.gguf"), 4, "no such file")
    refused(
        call("export", tmp_path, "--format", "gguf", "--quant", "Q8_0", "-o", tmp_path / "y.gguf"), 4, "config.json"
    )


def test_an_unknown_quantisation_or_format(call, model, tmp_path):
    refused(call("export", model, "--format", "gguf", "--quant", "Q4_KM", "-o", tmp_path / "y.gguf"), 2, "Q4_K_M")
    refused(call("export", model, "--format", "ggml", "--quant", "Q8_0", "-o", tmp_path / "y.gguf"), 2, "gguf")


def test_a_report_of_nothing(call, tmp_path):
    refused(call("report", tmp_path), 4, "plan.json")


def test_a_run_into_a_folder_of_something_else(call, model, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("keep")
    refused(call("run", model, "--device", "host", "-o", tmp_path / "work", "--context", "128"), 2, "run folder")
    assert os.listdir(tmp_path / "work") == ["thesis.txt"]


def test_a_full_disk(call, model, plan_file, tmp_path):
    """A file system of 64 KiB."""
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        refused(call("prune", model, "--plan", plan_file, "-o", small / "out"), 6, "small")
        export = ("export", model, "--format", "gguf", "--quant", "F32", "-o", small / "out.gguf")
        refused(call(*export), 6)
        refused(call("export", model, "--format", "onnx", "--quant", "fp32", "-o", small / "onnx"), 6)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(smollm2_gguf, tmp_path, sent, code):
    out = tmp_path / "s.json"
    # A test run in the background inherits an ignored SIGINT; a person at a terminal does not.
    child = subprocess.Popen(
        [*EDGEPRUNE, "score", smollm2_gguf, "-o", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert "scoring" in child.stderr.readline()
    time.sleep(1)
    child.send_signal(sent)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == code, stderr
    assert "Traceback" not in stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_where_python_drops_exceptions(sent, code):
    """A signal that comes while an object is being finalised."""
    script = f"""
import os, sys, time, typer
from edgeprune.cli._terminal import guarded

class Closing:
    def __del__(self):
        os.kill(os.getpid(), {int(sent)})
        time.sleep(0.1)

def verb():
    Closing()
    time.sleep(30)

try:
    guarded(verb)()
except typer.Exit as e:
    sys.exit(e.exit_code)
"""
    r = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=25,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert r.returncode == code, r.stderr
    assert "ignored" not in r.stderr and "Traceback" not in r.stderr


def test_huge_headers_are_read_fast_and_lean(tmp_path):
    """A sparse 80-layer checkpoint of 139 GB: inspect in under 2 s of processor time and 300 MB."""
    d, ff, kv, vocab, n = 8192, 28672, 1024, 128256, 80
    config = dict(
        model_type="llama", hidden_size=d, intermediate_size=ff, num_hidden_layers=n, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=vocab, max_position_embeddings=131072, tie_word_embeddings=False,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (vocab, d), "lm_head.weight": (vocab, d), "model.norm.weight": (d,)}
    for i in range(n):
        layer = f"model.layers.{i}."
        shapes |= {layer + "input_layernorm.weight": (d,), layer + "post_attention_layernorm.weight": (d,)}
        shapes |= {layer + f"self_attn.{p}_proj.weight": (d if p in "qo" else kv, d) for p in "qkvo"}
        shapes |= {layer + f"mlp.{p}_proj.weight": (ff, d) for p in ("gate", "up")} | {
            layer + "mlp.down_proj.weight": (d, ff)
        }
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as f:
        f.write(len(raw).to_bytes(8, "little") + raw)
        f.truncate(8 + len(raw) + at)
    assert at > 139e9
    code = (
        "import sys, time; sys.argv = ['edgeprune', 'inspect', sys.argv[1], '--json']\n"
        "from edgeprune.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code\n"
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(time.process_time(), peak, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_blocks"] == n
    seconds, peak = done.stderr.split()
    assert float(seconds) < 2 and int(peak) * 1024 < 300e6, done.stderr


def test_interrupted_within_a_library_s_exec():
    code = "from edgeprune.cli._terminal import guarded; guarded(lambda: exec('raise KeyboardInterrupt'))()"
    code = f"import typer\ntry:\n    {code}\nexcept typer.Exit as e:\n    raise SystemExit(e.exit_code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and "interrupted" in done.stderr


@pytest.mark.parametrize(
    "said", ["DefaultCPUAllocator: can't allocate memory: you tried to allocate 9", "CUDA out of memory. Tried"]
)
def test_out_of_memory_is_one_line(call, model, plan_file, monkeypatch, tmp_path, said):
    """As torch says it, wherever that happens."""
    from edgeprune import prune

    def fail(*_args, **_kwargs):
        raise RuntimeError(f"[enforce fail at alloc_cpu.cpp:127] err == 0. {said}")

    monkeypatch.setattr(prune, "prune", fail)
    refused(call("prune", model, "--plan", plan_file, "-o", tmp_path / "out"), 6, "out of memory")
