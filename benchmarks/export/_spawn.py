"""A command's time and peak memory, as the kernel counted them for it and its children.

Run as a script it is the small parent of the command: peak memory is inherited through exec, so a large parent would be
counted as the child's.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Sample = dict[str, float]


def spawn(command: Sequence[str | Path]) -> Sample:
    """{"s", "cpu_s", "peak_rss_bytes"} of a fresh process. Raises RuntimeError with its last words when it fails."""
    script = [sys.executable, "-S", "-E", __file__, *map(str, command)]
    done = subprocess.run(script, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise RuntimeError(f"{Path(str(command[0])).name} … failed: {done.stderr[-800:]}")
    return json.loads(done.stdout)


def interleave(jobs: dict[str, Callable[[], Sample]], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Every job once per round, forwards and backwards in turn: {name: {"samples", medians…}}."""
    samples: dict[str, list[Sample]] = {name: [] for name in jobs}
    for k in range(rounds):
        for name in list(jobs)[:: 1 if k % 2 == 0 else -1]:
            say(f"round {k + 1} of {rounds}: {name}")
            samples[name].append(jobs[name]())
    return {
        name: {
            "median_s": statistics.median(s["s"] for s in found),
            "median_cpu_s": statistics.median(s["cpu_s"] for s in found),
            "peak_rss_bytes": max(s["peak_rss_bytes"] for s in found),
            "samples": found,
        }
        for name, found in samples.items()
    }


def ratio(found: dict[str, Any], ours: str, theirs: str, key: str) -> float:
    """Median over rounds of ours / theirs within a round."""
    pairs = zip(found[ours]["samples"], found[theirs]["samples"], strict=True)
    return statistics.median(a[key] / b[key] for a, b in pairs)


def _main() -> None:
    start = time.monotonic()
    child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - start
    unit = 1 if sys.platform == "darwin" else 1024
    facts = {"s": seconds, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_rss_bytes": usage.ru_maxrss * unit}
    sys.stdout.write(json.dumps(facts))
    sys.exit(1 if status else 0)


if __name__ == "__main__":
    _main()
