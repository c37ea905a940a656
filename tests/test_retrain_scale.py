"""Training that was killed, that several processes share, that recomputes activations; exports of what Streamline makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from test_heal_text import TALK, write_jsonl
from test_retrain import CUT, cut, logits, pruned, texts, train  # noqa: F401

from edgeprune import heal, torch_model
from edgeprune.blocks import from_text
from edgeprune.catalog import load
from edgeprune.checkpoint import open_checkpoint, raw_bytes
from edgeprune.heal_text import Example
from edgeprune.healers._trainee import Cut
from edgeprune.training import batches, loop
from edgeprune.training.device import recompute_activations
from edgeprune.work import Work

ARGUMENTS = ["--window", "32", "--precision", "float32", "--tokens", "960", "--set", "rate=1e-3"]
SLOWLY = """
import sys, time
from edgeprune.training import loop
loop.SAVE_SECONDS = 0
look = loop.rate_at
loop.rate_at = lambda *a: (time.sleep(0.2), look(*a))[1]
from edgeprune.cli import main
main()
"""


def arguments(base, pruned, out, texts, method):  # noqa: F811
    more = [x for path in texts for x in ("--calibration", str(path))]
    return ["heal", str(pruned), "-o", str(out), "--base", str(base), "--method", method, *more, *ARGUMENTS]


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_bytes(tiny_folder, pruned, texts, tmp_path, call):  # noqa: F811
    base = tiny_folder("llama")
    assert call(*arguments(base, pruned, tmp_path / "whole", texts, "distill")).returncode == 0
    args = arguments(base, pruned, tmp_path / "killed", texts, "distill")
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, *args], stderr=subprocess.PIPE)
    checkpoint = tmp_path / ".killed.training" / "checkpoint.safetensors"
    while process.poll() is None and not checkpoint.is_file():
        time.sleep(0.05)
    process.kill()
    assert checkpoint.is_file(), process.communicate()[1].decode()
    process.communicate()
    done = call(*args)
    assert done.returncode == 0 and "wrote" in done.stdout
    name = "model.safetensors"
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_two_processes_train_what_one_does(tiny_folder, pruned, texts, tmp_path, monkeypatch):  # noqa: F811
    """Four sequences a step, so that each has two; sums in another order, so about the same."""
    import numpy as np

    from edgeprune.checkpoint import read_tensor

    base = tiny_folder("llama")
    script = tmp_path / "run.py"
    script.write_text(
        "import edgeprune.training.pace as p\np.LEAST_STEPS = 7\nfrom edgeprune.cli import main\nmain()\n"
    )
    for n, out in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if n == 2 else []
        done = subprocess.run(
            [sys.executable, *launch, script, *arguments(base, pruned, out, texts, "distill")], capture_output=True, text=True,
            timeout=300, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote ") == 1
    one, two, was = (open_checkpoint(folder) for folder in (tmp_path / "one", tmp_path / "two", pruned))
    assert json.loads((tmp_path / "two" / "healing.json").read_text())["trained"]["processes"] == 2
    for name in one.tensors:
        a, b, c = (read_tensor(ck, name) for ck in (one, two, was))
        assert np.abs(a - b).max() < 0.05 * np.abs(a - c).max()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["distill", "streamline"])
def test_parts_of_a_step_and_recomputed_layers_give_the_same_gradient(tiny_folder, pruned, tmp_path, method):  # noqa: F811
    """Sequences of several lengths, filled up, against one at a time."""
    import contextlib

    base, healer = tiny_folder("llama"), load("edgeprune.healers", method)
    examples = [Example(list(range(5, 5 + n)), [False] * (n // 2) + [True] * (n - n // 2)) for n in (24, 9, 17, 12)]
    options = healer.OPTIONS | ({"hidden": 1.0} if method == "distill" else {"replace": "block"})
    blocks = CUT if method == "distill" else from_text("0-2 4")
    found = []
    for most, recompute in ((1, False), (64, False), (64, True)):
        whole, student = torch_model.load(base), torch_model.view(torch_model.load(base), blocks)
        trainee = healer.prepare(student, whole, Cut(CUT, blocks), options)
        if recompute:
            recompute_activations(student)
        student.train()
        parameters = list(trainee.parameters.values())
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(batches.MICRO_TOKENS, "cpu", most)
            loss = loop._gradients(trainee, parameters, examples, 0.0, Work(), contextlib.nullcontext)
        found.append((loss, [p.grad for p in parameters]))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-4)
        for a, b in zip(found[0][1], gradients, strict=True):
            assert (a - b).abs().max() < 1e-3 * max(a.abs().max(), 1e-6)


@pytest.mark.slow
def test_a_budget_of_minutes_ends_in_time(tiny_folder, pruned, texts, tmp_path):  # noqa: F811
    started = time.monotonic()
    made = heal.heal(
        pruned, tiny_folder("llama"), heal.model.inspect(tiny_folder("llama")), tmp_path / "out", method="perp", files=texts,
        context_tokens=32, budget=heal.Budget(minutes=0.05), precision="float32", base_model="tiny", command="",
    )  # fmt: skip
    assert made.trained.steps >= 1 and time.monotonic() - started < 30


@pytest.mark.slow
def test_bfloat16_and_conversations(tiny_folder, pruned, texts, tmp_path):  # noqa: F811
    """Mixed precision is the same training, less exactly."""
    talks = write_jsonl(tmp_path / "talks.jsonl", [{"messages": TALK}] * 12)
    exact, mixed = (
        train(
            tiny_folder("llama"),
            pruned,
            tmp_path / precision,
            [texts[0], talks],
            precision=precision,
            context_tokens=64,
        )
        for precision in ("float32", "bfloat16")
    )
    for a, b in zip(exact.kinds, mixed.kinds, strict=True):
        assert a.kl_healed < 0.9 * a.kl_cut and b.kl_healed == pytest.approx(a.kl_healed, rel=0.2)
    weights = open_checkpoint(tmp_path / "bfloat16").tensors["model.embed_tokens.weight"]
    assert weights.dtype == "F32" and len(raw_bytes(weights)) == 4 * 320 * 64


@pytest.mark.slow
@pytest.mark.parametrize("fmt, quant", [("gguf", "F32"), ("onnx", "fp32")])
def test_a_replacement_without_attention_exports(tiny_folder, pruned, texts, tmp_path, one_thread, fmt, quant):  # noqa: F811
    """Export loads it in its runtime and compares logits with torch; the block has no attention there."""
    from edgeprune.export import export

    train(tiny_folder("llama"), pruned, tmp_path / "out", texts, "streamline", 320)
    assert (logits(torch_model.load(tmp_path / "out")) - logits(torch_model.load(pruned))).abs().max() > 0.01
    made = export(tmp_path / "out", fmt, quant, tmp_path / ("m.gguf" if fmt == "gguf" else "m"))
    assert made.n_blocks == 4 and made.mean_kl < 1e-4 and made.max_logit_error < 1e-3
    if fmt == "gguf":
        from edgeprune.gguf_file import read_header

        header = read_header(tmp_path / "m.gguf")
        assert header.metadata["general.architecture"] == "deci"
        assert not [name for name in header.tensors if name.startswith("blk.2.attn")]
        assert [name for name in header.tensors if name.startswith("blk.2.ffn_down")]
