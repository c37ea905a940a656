"""How long planning takes and how much memory: an 80-block 70B model, each command in a fresh process.

python benchmarks/planning_speed.py          # prints a Markdown table; --runs N for more repetitions
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys

COMMANDS = {
    "what-if of one device": ["plan", "llama-3.1-70b", "--device", "jetson-agx-orin-64gb", "--max-mem", "30GB"],
    "the matrix over all devices": ["fit", "llama-3.1-70b", "-o", "{folder}/fit.svg", "--force"],
    "plan of the built-in model": ["plan", "--device", "jetson-orin", "--max-mem", "8GB"],
    "nothing but start": ["--version"],
}
CHILD = """
import contextlib, io, json, resource, sys, time
from edgeprune import cli
sys.argv[1:] = json.loads(sys.argv[1])
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    try:
        cli.main()
    except SystemExit:
        pass
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3), len(sys.modules)]))
"""
PLAN = """
import json, resource, sys, time
sys.path.insert(0, "tests")
from _shapes import make_scores
from edgeprune import devices, known_models, plan
from edgeprune.types import Budget
spec, device = known_models.load("llama-3.1-70b"), devices.load("m4-max-128gb")
scores = make_scores(spec, list(range(70, 10, -1)))
plan.make_plan(spec, scores, device, Budget(max_mem_bytes=20 * 10**9))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3), len(sys.modules)]))
"""


def measure(code: str, arguments: list[str], runs: int, compiled: str) -> tuple[float, float, int]:
    """Median seconds of processor time of a whole process, its peak memory in MB, and how many modules it imported.

    A first run, not counted, leaves bytecode in the folder `compiled`, as the first start of an installed program does.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {
        "PYTHONPYCACHEPREFIX": compiled
    }
    found = []
    for _ in range(runs + 1):
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(arguments)], capture_output=True, text=True, env=environment
        )
        if done.returncode:
            sys.exit(done.stderr)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    del found[0]
    seconds, megabytes, modules = zip(*found, strict=True)
    return statistics.median(seconds), max(megabytes), modules[0]


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, command in COMMANDS.items():
            rows.append((name, *measure(CHILD, [part.format(folder=folder) for part in command], runs, folder)))
        rows.insert(2, ("plan over a path of 60 removals", *measure(PLAN, [], runs, folder)))
    lines = ["| | processor time, s | peak memory, MB | modules |", "|---|---|---|---|"]
    lines += [f"| {name} | {seconds:.2f} | {megabytes:.0f} | {n} |" for name, seconds, megabytes, n in rows]
    lines += ["", f"Median of {runs} fresh processes, imports included; Python {platform.python_version()}."]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
