"""Text that the model writes itself, and the default texts by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgeprune import own_text, torch_model
from edgeprune.calibration import read_texts
from edgeprune.run.job import shas


def test_tokens_are_drawn_from_the_models_own_distribution(tiny_folder):
    """Of 4,000 texts the first tokens, against the softmax of the logits after BOS."""
    m = torch_model.load(tiny_folder("llama"))
    n, bos = 4000, 1
    for temperature in (1.0, 0.5):
        p = (m(torch.tensor([[bos]])).logits[0, -1].float() / temperature).softmax(-1)
        ends = m.generation_config.eos_token_id
        drawn = own_text._drawn(m, bos, n, 2, temperature, seed=3)
        seen = torch.bincount(torch.tensor([ids[0] if ids else ends for ids in drawn]), minlength=len(p)) / n
        assert (seen - p).abs().le(5 * (p * (1 - p) / n).sqrt() + 2 / n).all()
    greedy = m.generate(torch.tensor([[bos]]), do_sample=False, max_new_tokens=9, eos_token_id=None)[0, 1:].tolist()
    m.generation_config.eos_token_id = None
    assert own_text._drawn(m, bos, 2, 10, 1e-4, seed=0) == [greedy, greedy]


def test_a_text_ends_where_the_model_ends_it():
    assert own_text._up_to([5, 6, 2, 2], [2]) == [5, 6]
    assert own_text._up_to([5, 6], [2]) == [5, 6]
    assert own_text._up_to([5, 6, 7], []) == [5, 6, 7]


def test_the_same_seed_writes_the_same_text(tiny_folder, tmp_path, call):
    folder = tiny_folder("llama")
    a, b, c = (tmp_path / f"{name}.txt" for name in "abc")
    for out, seed in ((a, 0), (b, 0), (c, 1)):
        done = call("sample", folder, "-o", out, "--texts", 3, "--window", 32, "--seed", seed, "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert 0 < told["tokens"] <= 3 * 31 and told["texts"] <= 3
    assert a.read_text() == b.read_text() != c.read_text()
    done = call("sample", folder, "-o", a, "--texts", 3, "--window", 32)
    assert done.returncode == 2 and "--force" in done.stderr


def test_it_goes_on_where_it_was_stopped(tiny_folder, tmp_path, call, monkeypatch):
    folder, whole, parts = tiny_folder("llama"), tmp_path / "whole.txt", tmp_path / "parts.txt"
    asked = ("--texts", 40, "--window", 16)
    assert call("sample", folder, "-o", whole, *asked).returncode == 0
    draw, calls = own_text._drawn, []

    def interrupted(*args):
        calls.append(args[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(*args)

    monkeypatch.setattr(own_text, "_drawn", interrupted)
    assert call("sample", folder, "-o", parts, *asked).returncode == 130
    assert not parts.exists()
    assert call("sample", folder, "-o", parts, *asked).returncode == 0
    assert calls == [16, 16, 16, 8]  # the first is not drawn again
    assert parts.read_text() == whole.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts.txt", "whole.txt"]


def test_a_text_is_no_longer_than_the_models_context(tiny_folder, tmp_path, call):
    folder = tiny_folder("llama", max_position_embeddings=24)
    done = call("sample", folder, "-o", tmp_path / "own.txt", "--texts", 2, "--window", 100_000, "--json")
    assert done.returncode == 0 and 0 < json.loads(done.stdout)["tokens"] <= 2 * 23


def test_what_is_no_model_writes_nothing(tmp_path, call):
    done = call("sample", tmp_path / "none", "-o", tmp_path / "own.txt")
    assert done.returncode == 4 and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_default_texts_go_with_others_by_name(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("words of my own")
    default = Path("default")
    for split in ("calibration", "evaluation"):
        assert read_texts([default], split) == read_texts([], split)
        assert read_texts([default, mine], split) == [*read_texts([], split), ("mine.txt", "words of my own")]
    assert shas([default, mine]) == ["default", *shas([mine])]


def test_scores_by_the_default_texts_and_ones_own(tiny_folder, tmp_path, call):
    folder, own = tiny_folder("llama"), tmp_path / "own.txt"
    assert call("sample", folder, "-o", own, "--texts", 4, "--window", 64).returncode == 0
    given = ("--metric", "block_influence", "--windows", 8, "--window", 16, "--json")
    done = call("score", folder, "--calibration", "default", "--calibration", own, *given, "-o", tmp_path / "s.json")
    assert done.returncode == 0, done.stderr
    text = json.loads(done.stdout)["text"]
    assert text["name"].endswith("package descriptions, own.txt") and len(text["parts"]) == 4


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(tiny_folder, tmp_path, call):
    folder, one, two = tiny_folder("llama"), tmp_path / "one.txt", tmp_path / "two.txt"
    asked = ("--texts", 40, "--window", 16)
    assert call("sample", folder, "-o", one, *asked).returncode == 0
    launched = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "edgeprune.cli",
    ]
    done = subprocess.run(
        [*launched, *map(str, ("sample", folder, "-o", two, *asked))], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    assert two.read_bytes() == one.read_bytes()
