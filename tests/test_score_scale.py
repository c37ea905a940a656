"""Models larger than memory, work over several processes, work that was killed: the answer is the same each way."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_search import random_windows
from typer.testing import CliRunner

from edgeprune import model, score, torch_model
from edgeprune.catalog import load
from edgeprune.checkpoint import open_checkpoint, read_tensor
from edgeprune.errors import InputRejected, OutOfResources, UsageError
from edgeprune.metrics import _memory, _sweep
from edgeprune.metrics._halves import all_halves
from edgeprune.metrics._sweep import damages, measured_on
from edgeprune.metrics._weights import offloaded
from edgeprune.work import Log, Work

ROOT = Path(__file__).parent.parent
NOTHING = 1000  # bytes no model fits in
PLENTY = 10**9
CASES = [("llama", {"tie_word_embeddings": True}), ("llama", {"tie_word_embeddings": False}), ("gemma3", {})]
VERSIONS = [all_halves(5), all_halves(5)[2:], all_halves(5)[:5] + all_halves(5)[7:], all_halves(5)[1:4]]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """20 KB in the words the tiny tokenizer was trained on."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_text(
        " ".join(draw.choice("the quick brown fox jumps over lazy dog and then".split()) for _ in range(4000))
    )
    return path


@pytest.mark.parametrize(("family", "config"), CASES)
def test_a_model_on_disk_scores_as_one_in_memory(family, config, tiny_folder):
    """All windows in one piece there, one by one here."""
    import torch

    folder = tiny_folder(family, **config)
    here, there = torch_model.load(folder), torch_model.load(folder, max_bytes=NOTHING)
    assert offloaded(there) and not offloaded(here)
    windows, tokens = random_windows(), torch.tensor([list(range(3, 40))])
    for metric in ("block_influence", "magnitude"):
        rated = [load("edgeprune.metrics", metric).rate(m, windows, Work(None, PLENTY)) for m in (there, here)]
        assert rated[0] == pytest.approx(rated[1], rel=1e-5, abs=1e-7)
    spans = [load("edgeprune.metrics", "cosine_span").path(m, windows, 3, Work(None, PLENTY)) for m in (there, here)]
    assert spans[0] == spans[1]
    found = [
        measured_on(m, windows, Work(None, PLENTY), ["kl", "loss"])(VERSIONS, [0, 2, 1], int) for m in (there, here)
    ]
    np.testing.assert_allclose(np.array(found[0]), np.array(found[1]), rtol=1e-4, atol=1e-5)
    assert there(tokens).logits.equal(here(tokens).logits)  # and is as it was
    assert all(p.device.type == "meta" for p in there.parameters())


def test_a_sweep_reads_every_weight_once(tiny_folder, monkeypatch):
    from accelerate.utils.offload import OffloadedWeightsLoader

    m, read, get = torch_model.load(tiny_folder("llama"), max_bytes=NOTHING), [], OffloadedWeightsLoader.__getitem__
    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", lambda self, key: read.append(key) or get(self, key))
    damages(m, VERSIONS, random_windows()[::2], ["kl", "loss"])
    names = set(dict(m.named_parameters(remove_duplicate=False)))
    assert set(read) == names and all(read.count(name) == 1 for name in names - {"model.norm.weight"})


def test_windows_run_together_are_remembered_one_by_one(tiny_folder, tmp_path, monkeypatch):
    """Stopped with memory for three windows at once, gone on with memory for one: no window is taken for another."""
    m = torch_model.load(tiny_folder("llama"), max_bytes=NOTHING)
    draw, ran = random.Random(0), []
    windows = [[draw.randrange(3, 300) for _ in range(512)] for _ in range(7)]
    monkeypatch.setattr(_sweep, "damages", lambda *args: ran.append(len(args[2])) or damages(*args))
    stream = 512 * m.config.hidden_size * 4
    room = 10**8 - _memory.room(m, windows, 10**8, 2) * stream  # what is not left to streams

    def measure(log, streams):
        measured = _sweep.measured_on(m, windows, Work(log, room + streams * stream), ["kl"])
        return measured(VERSIONS[1:3], range(7), lambda n: None)

    with Log.opened(tmp_path / "log", {}) as log:
        whole = measure(log, 9)
    assert ran == [3, 3, 1]
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    (tmp_path / "log").write_bytes(b"".join(lines[: 2 + 4]))  # the question, the memory, four windows
    with Log.opened(tmp_path / "log", {}) as log:
        assert measure(log, 3) == whole and ran[3:] == [1, 1, 1]


@pytest.mark.parametrize("metric", ["kl_search", "block_influence", "taylor"])
def test_what_cannot_fit_is_said_in_one_line(metric, tiny_folder):
    folder = tiny_folder("llama")
    m, spec, method = torch_model.load(folder, max_bytes=NOTHING), model.inspect(folder), score.Method(metric, 1)
    windows = type("Windows", (), {"windows": random_windows()})
    with pytest.raises(OutOfResources, match=r"raise --max-memory or take") as e:
        score.removals(m, spec, windows, method, Work(None, NOTHING))
    assert "\n" not in str(e.value)


def test_weights_on_disk_that_are_not_finite_are_named(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "m")
    name = "model.layers.3.mlp.down_proj.weight"
    at = open_checkpoint(folder).tensors[name]
    with open(at.file, "r+b") as f:
        f.seek(at.end - 4)
        f.write(np.float32("nan").tobytes())
    assert np.isnan(read_tensor(open_checkpoint(folder), name)).any()
    with pytest.raises(InputRejected, match=rf"{name} .* not finite"):
        score.check_finite(torch_model.load(folder, max_bytes=NOTHING), model.inspect(folder))


def test_free_memory_is_shared_by_the_processes_of_a_machine(monkeypatch):
    import psutil

    alone = torch_model.free_bytes("cpu")
    assert 0.5 * alone < 0.9 * psutil.virtual_memory().available
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert torch_model.free_bytes("cpu") == pytest.approx(alone / 4, rel=0.2)


def test_answers_are_taken_up_only_where_the_question_is_the_same(tmp_path):
    path = tmp_path / "new" / "log"
    answers = [[0.1, float("inf")], [1e-300, "ß"], 3, [None, -0.0]]
    question = {"windows": [[1, 2]], "protect": (4, 2)}
    with Log.opened(path, question) as log:
        for a in answers:
            log.add(a)
    whole = path.read_bytes()
    said = []
    with Log.opened(path, question, said.append) as log:
        assert repr(log.answers) == repr(answers) and "4 pieces" in said[0]
        with pytest.raises(UsageError, match="going on already"):
            Log(path, question)
    path.write_bytes(whole[:-3])  # killed while the last one was written
    with Log.opened(path, question) as log:
        assert log.answers == answers[:3]
        log.add(answers[3])
    assert path.read_bytes() == whole
    path.write_bytes(whole[: -len("[null, -0.0]\n")] + b"1\n\0\0\0\n5\n")  # a crash of the system
    with Log.opened(path, question) as log:
        assert log.answers == [*answers[:3], 1]
    with Log.opened(path, question | {"protect": (0, 0)}, said.append) as log:
        assert log.answers == [] and len(said) == 1
    path.write_bytes(b"\xff\xfe not ours\n")
    with Log.opened(path, question) as log:
        assert log.answers == []


def command(folder, text, out, *more):
    """As a user types it, in this process."""
    import edgeprune.cli.score  # noqa: F401  registers the verb
    from edgeprune.cli._app import app

    result = CliRunner().invoke(app, arguments(folder, text, out, *more))
    assert result.exit_code == 0, result.output
    return result.output


def arguments(folder, text, out, *more):
    of = ["score", folder, "--calibration", text, "--window", 32, "--max-steps", 2, "-o", out]
    return [str(a) for a in (*of, *more)]


@pytest.mark.parametrize("metric", ["kl_search", pytest.param("block_influence", marks=pytest.mark.slow), "taylor"])
def test_what_was_stopped_goes_on_to_the_same_bytes(metric, tiny_folder, text, tmp_path, monkeypatch):
    """Stopped at a third and at two thirds of its pieces; a log of another question is no help."""
    folder, more = tiny_folder("llama"), ("--windows", 6, "--metric", metric)
    done, add = [], Log.add
    monkeypatch.setattr(Log, "add", lambda self, answer: done.append(answer) or add(self, answer))
    command(folder, text, tmp_path / "whole.json", *more)
    n, log = len(done), tmp_path / ".s.json.progress"
    monkeypatch.setattr(Log, "add", add)

    def stop_at(k):
        def limited(self, answer):
            add(self, answer)
            if len(self.answers) == k:
                raise KeyboardInterrupt

        monkeypatch.setattr(Log, "add", limited)
        with pytest.raises(AssertionError, match="interrupted"):
            command(folder, text, tmp_path / "s.json", *more)
        monkeypatch.setattr(Log, "add", add)

    for k in (n // 3, 2 * n // 3):
        stop_at(k)
        assert len(log.read_bytes().splitlines()) == k + 1
    assert f"{2 * n // 3} pieces" in command(folder, text, tmp_path / "s.json", *more)
    assert (tmp_path / "s.json").read_bytes() == (tmp_path / "whole.json").read_bytes() and not log.exists()
    (tmp_path / "s.json").unlink()
    stop_at(n // 3)
    assert "pieces" not in command(folder, text, tmp_path / "s.json", *more[2:], "--windows", 5)
    assert json.loads((tmp_path / "s.json").read_text())["text"]["tokens"] == 5 * 32


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_bytes(tiny_folder, text, tmp_path):
    folder, more = tiny_folder("llama"), ("--windows", 120, "--metric", "block_influence")
    command(folder, text, tmp_path / "whole.json", *more)
    log, args = tmp_path / ".s.json.progress", arguments(folder, text, tmp_path / "s.json", *more)
    process = subprocess.Popen([sys.executable, "-m", "edgeprune.cli", *args], cwd=ROOT, stderr=subprocess.PIPE)
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < 20):
        time.sleep(0.005)
    process.kill()
    assert process.communicate()[1].count(b"\n") == 1  # what will be done; no progress where there is no terminal
    n = log.read_bytes().count(b"\n") - 1
    assert 20 <= n + 1 < 240 and not (tmp_path / "s.json").exists()
    assert f"{n} pieces" in command(folder, text, tmp_path / "s.json", *more)
    assert (tmp_path / "s.json").read_bytes() == (tmp_path / "whole.json").read_bytes() and not log.exists()


SEVERAL = """
import json, os, sys
import torch.distributed
from edgeprune.cli import main

codes = []
for sys.argv[1:] in json.loads(os.environ["COMMANDS"]):
    try:
        main()
    except SystemExit as e:
        codes.append(e.code)
    torch.distributed.barrier()  # the first process has written what the next command finds

from pathlib import Path
from edgeprune import torch_model
from edgeprune.metrics._sweep import measured_on
from edgeprune.work import Work

windows, versions = json.loads(os.environ["WINDOWS"])
versions = [[tuple(half) for half in version] for version in versions]
m = torch_model.load(Path(sys.argv[2]), max_bytes=1000)
found = measured_on(m, windows, Work(None, 10**9), ["kl", "loss"])(versions, range(len(windows)), int)
open(os.path.join(os.environ["FOUND"], os.environ["RANK"]), "w").write(json.dumps([codes, found]))
"""
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate launch": [
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_give_the_bytes_of_one(launcher, tiny_folder, text, tmp_path):
    """Several metrics, one of them twice: the second time the output exists, which ends both processes. Then one sweep of
    the model read from disk."""
    folder, script = tiny_folder("llama"), tmp_path / "several.py"
    script.write_text(SEVERAL)
    metrics = ["kl_search", "block_influence", "taylor", "cosine_span"] if launcher == "torchrun" else ["kl_search"]
    outs = [tmp_path / f"{metric}.json" for metric in metrics]
    more = [("--windows", 5, "--metric", metric) for metric in metrics]
    commands = [arguments(folder, text, out, *m) for out, m in zip(outs, more, strict=True)]
    windows, versions = [*random_windows(), *random_windows()], [[["F", 0], ["A", 2]], [["A", 1], ["F", 1]]]
    given = {"COMMANDS": [*commands, commands[0]], "WINDOWS": [windows, versions]}
    environment = os.environ | {k: json.dumps(v) for k, v in given.items()}
    (tmp_path / "found").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher], script], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=environment | {"PYTHONPATH": str(ROOT), "FOUND": str(tmp_path / "found")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    here = measured_on(torch_model.load(folder), windows, Work(), ["kl", "loss"])(
        [[*map(tuple, v)] for v in versions], range(6), int
    )
    for rank in "01":
        codes, found = json.loads((tmp_path / "found" / rank).read_text())
        assert codes == [0] * len(metrics) + [2]
        np.testing.assert_allclose(np.array(found), np.array(here), rtol=1e-4, atol=1e-5)
    assert done.stdout.count("wrote ") == done.stderr.count("scoring ") == len(metrics)
    for out, m in zip(outs, more, strict=True):
        command(folder, text, tmp_path / "one.json", *m, "--force")
        assert out.read_bytes() == (tmp_path / "one.json").read_bytes()
    assert not list(tmp_path.glob(".*"))


PEAK = """
import sys
from pathlib import Path
import accelerate, torch
from transformers.models.llama import modeling_llama
from edgeprune import model, score, torch_model
from edgeprune.calibration import Windows
from edgeprune.types import Text

def resident(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

text = Windows([[(7 * i + w) % 300 for i in range(48)] for w in range(2)], Text.model_validate_json(sys.argv[1]))
limit = int(sys.argv[2])
for folder in map(Path, sys.argv[3:]):  # a small model first, which brings in all code
    before = resident("VmRSS")
    for metric in ("block_influence", "kl_search"):
        m = torch_model.load(folder, max_bytes=limit)
        work = score.Work(None, limit)
        print(score.score(m, model.inspect(folder), text, score.Method(metric, 1), work).path[1].kl)
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
def test_memory_stays_under_its_limit(tiny_folder, tmp_path):
    """320 MB of weights in 120 MB, beside what the interpreter and torch take; with the damage found in memory."""
    from edgeprune.calibration import Windows
    from edgeprune.types import Text

    folder, limit = tiny_folder("llama", hidden_size=1024, intermediate_size=4096, n_blocks=6, head_dim=64), 120 * 10**6
    assert (folder / "model.safetensors").stat().st_size > 2.5 * limit
    about = Text(name="t", sha256="0", tokens=96, context_tokens=48, stride_tokens=48)
    args = [sys.executable, "-c", PEAK, about.model_dump_json(), str(limit), str(tiny_folder("llama")), str(folder)]
    *_, one, other, peak = map(float, subprocess.run(args, cwd=ROOT, capture_output=True, check=True).stdout.split())
    assert peak < limit
    text = Windows([[(7 * i + w) % 300 for i in range(48)] for w in range(2)], about)
    m, spec = torch_model.load(folder), model.inspect(folder)
    for metric, kl in (("block_influence", one), ("kl_search", other)):
        assert score.score(m, spec, text, score.Method(metric, 1)).path[1].kl == pytest.approx(kl, rel=1e-4)
