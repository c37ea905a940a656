"""The timing protocol on real runtimes, and its records against llama-bench's."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprune import bench, llama_bench
from edgeprune.errors import InputRejected
from edgeprune.types import Workload

SMALL = Workload(n_prompt=64, n_gen=8, repetitions=3, n_threads=1)
# Fields of one row of `llama-bench -o json` that a reader of such files relies on.
LLAMA_BENCH_FIELDS = (
    "build_commit cpu_info gpu_info backends model_filename model_size n_threads n_prompt n_gen n_depth test_time "
    "avg_ns stddev_ns avg_ts stddev_ts samples_ns samples_ts"
).split()


def quiet(*_args):
    pass


class Counting:
    """A session that records what the protocol asks of it; the protocol is under test here, no runtime is."""

    n_vocab, bos_token = 100, 1

    def __init__(self):
        self.log = []

    def reset(self):
        self.log.append("reset")

    def prefill(self, tokens):
        assert tokens[0] == 1 and all(0 <= t < 100 for t in tokens)
        self.log.append(f"prefill {len(tokens)}")

    def decode(self, token):
        self.log.append("decode")


def test_the_protocol_is_llama_benchs():
    session = Counting()
    protocol = bench.Protocol(session, Workload(n_prompt=5, n_gen=2, n_depth=3, repetitions=2))
    protocol.warm_up()
    protocol.repeat()
    protocol.repeat()
    warm_up = ["reset", "prefill 5", "reset", "decode"]
    repetition = ["reset", "prefill 3", "prefill 5", "reset", "prefill 3", "decode", "decode"]
    assert session.log == warm_up + 2 * repetition
    assert (len(protocol.prefill), len(protocol.decode), len(protocol.single)) == (2, 2, 4)
    assert sum(protocol.single) == sum(protocol.decode)


@pytest.mark.slow
@pytest.mark.parametrize("fmt", ["gguf", "torch"])
def test_measuring_the_real_model(fmt, smollm2_gguf, smollm2_folder):
    path = smollm2_gguf if fmt == "gguf" else smollm2_folder
    (m,) = bench.measure({"it": path}, SMALL, progress=quiet)
    assert m.artifact == "it" and m.n_threads == 1
    assert len(m.prefill_samples_ns) == len(m.decode_samples_ns) == 3 and len(m.token_samples_ns) == 24
    assert all(s > 0 for s in m.token_samples_ns)
    assert m.baseline_rss_bytes < m.loaded_rss_bytes <= m.peak_rss_bytes
    # What the model adds to the process is at least most of its weights: 97 MB quantised, 538 MB in float32.
    assert m.memory_bytes > 0.8 * (96e6 if fmt == "gguf" else 538e6)
    rows = json.loads(json.dumps(llama_bench.rows(m)))
    assert [(r["n_prompt"], r["n_gen"]) for r in rows] == [(64, 0), (0, 8)]
    for row in rows:
        assert not set(LLAMA_BENCH_FIELDS) - set(row)
        rates = [(row["n_prompt"] + row["n_gen"]) * 1e9 / s for s in row["samples_ns"]]
        assert row["avg_ts"] == pytest.approx(statistics.fmean(rates))
        assert row["stddev_ts"] == pytest.approx(statistics.stdev(rates))


@pytest.mark.slow
def test_a_damaged_file_is_refused_by_the_fresh_process(smollm2_gguf, tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(smollm2_gguf.read_bytes()[:-1000])
    with pytest.raises(InputRejected, match="bad.gguf"):
        bench.measure({"bad": bad}, SMALL, progress=quiet)


@pytest.mark.slow
@pytest.mark.skipif("LLAMA_BENCH" not in os.environ, reason="LLAMA_BENCH names no llama-bench binary to compare with")
def test_agrees_with_a_real_llama_bench(smollm2_gguf):
    """Interleaved, best of three each: on a shared machine the best run is the one least disturbed."""
    load = Workload(n_prompt=256, n_gen=32, repetitions=3, n_threads=bench.physical_cores())
    ours: dict[str, list[float]] = {"pp": [], "tg": []}
    theirs: dict[str, list[float]] = {"pp": [], "tg": []}
    for _ in range(3):
        (m,) = bench.measure({"it": smollm2_gguf}, load, progress=quiet)
        for rows, into in (
            (llama_bench.rows(m), ours),
            (llama_bench.run(Path(os.environ["LLAMA_BENCH"]), smollm2_gguf, load, m.build), theirs),
        ):
            for row in rows:
                into["pp" if row["n_prompt"] else "tg"] += row["samples_ts"]
    for kind in ("pp", "tg"):
        assert max(ours[kind]) == pytest.approx(max(theirs[kind]), rel=0.15), (ours, theirs)


def test_a_llama_bench_that_is_none(tmp_path, smollm2_gguf):
    with pytest.raises(InputRejected, match="llama-bench"):
        llama_bench.run(Path("/bin/true"), smollm2_gguf, SMALL)
    with pytest.raises(InputRejected, match="llama-bench"):
        llama_bench.run(tmp_path / "gone", smollm2_gguf, SMALL)


@pytest.mark.slow
def test_bench_json_of_a_tiny_folder(tiny_folder):
    folder = tiny_folder("llama")
    args = ["bench", folder, "-p", "16", "-n", "4", "-r", "2", "--json"]
    done = subprocess.run([sys.executable, "-m", "edgeprune.cli", *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [r["engine"] for r in rows] == ["transformers"] * 2 and len(rows[0]["samples_ns"]) == 2
