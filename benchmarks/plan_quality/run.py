"""Every way to rate removals side by side on one model: damage on text none of them has seen, at equal amounts removed.

    python benchmarks/plan_quality/run.py [--model FOLDER] [--data FOLDER]
    torchrun --nproc-per-node 2 benchmarks/plan_quality/run.py        # the same, windows dealt over two processes

Writes results.json, README.md and curves.png, and goes on where it was killed. --redraw makes the last two again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import _curves  # noqa: E402
import _estimate  # noqa: E402
import _readme  # noqa: E402
import _texts  # noqa: E402

HERE = Path(__file__).parent


def say(text: str) -> None:
    from edgeprune.work import ranks

    if ranks()[0] == 0:
        sys.stderr.write(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a transformers folder; default: SmolLM2-135M-Instruct, float32")
    parser.add_argument("--metrics", help="some, with commas; default: all")
    parser.add_argument("--ours", default="kl_search", help="the metric others are compared with")
    parser.add_argument("--remove", default="3,6,9", help="blocks' worth of parameters")
    parser.add_argument(
        "--data", type=Path, default=HERE.parents[2] / "shared" / "data", help="folder with the default texts"
    )
    parser.add_argument("--calibration", type=Path, nargs="+", help="texts to choose by, read in turn")
    parser.add_argument("--text", type=Path, nargs="+", help="texts to judge by; the first is the headline's")
    parser.add_argument("--calibration-windows", type=int, default=32)
    parser.add_argument("--eval-windows", type=int, default=40, help="of each text")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument(
        "--headline-context", type=int, default=2048, help="the first text again, in longer windows; 0: not"
    )
    parser.add_argument("--effort", type=int, default=1)
    parser.add_argument("--precision", help="of choosing and of measuring; default: auto, float32")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="folder for the results")
    parser.add_argument("--redraw", action="store_true", help="README.md and curves.png again from results.json")
    args = parser.parse_args()
    if not args.redraw:
        run(args)
    from edgeprune.work import ranks

    if ranks()[0] == 0:
        results = json.loads((args.output / "results.json").read_text(encoding="utf-8"))
        _curves.draw(results, args.output / "curves.png")
        (args.output / "README.md").write_text(_readme.readme(results), encoding="utf-8")
        say(f"wrote {args.output}/results.json, README.md and curves.png")


def run(args: argparse.Namespace) -> None:
    import torch

    from edgeprune import catalog, compare
    from edgeprune import model as models
    from edgeprune.work import ranks

    if args.threads:
        torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    started, done = time.monotonic(), args.output / "results.json"
    with tempfile.TemporaryDirectory(prefix="plan-quality-") as temporary:
        folder = args.model or _texts.builtin_model(Path(temporary))
        spec = models.inspect(folder)
        calibration, judges, notes = _texts.texts(args, Path(temporary))
        for note in notes:
            say(note)
        every = catalog.names("edgeprune.metrics")
        contest = compare.Contest(
            metrics=tuple(args.metrics.split(",") if args.metrics else every),
            amounts=tuple(int(n) for n in args.remove.split(",")), reference=args.ours, effort=args.effort,
            precision=args.precision or "auto", measure_precision=args.precision,
        )  # fmt: skip
        compare.check(contest, spec)
        readings = [compare.Reading(files, args.eval_windows, args.context) for files in judges]
        if args.headline_context:
            n = max(2, args.eval_windows * args.context // args.headline_context)
            readings.append(compare.Reading(judges[0], n, args.headline_context))
        reading = compare.Reading(calibration, args.calibration_windows, args.context)
        say(_estimate.estimate(folder, spec, contest, reading, readings))
        log = done.with_name(".results.json.progress")
        found = compare.compare_folder(folder, spec, contest, readings, reading, log=log, progress=Told(), say=say)
    if ranks()[0]:
        return
    results = {
        "comparison": found.model_dump(mode="json"), "ours": args.ours, "notes": notes,
        "machine": machine() | {"processes": ranks()[1], "threads": torch.get_num_threads()},
        "last_run_s": round(time.monotonic() - started),
    }  # fmt: skip
    done.write_text(compact(results), encoding="utf-8")
    log.unlink(missing_ok=True)


class Told:
    """Progress as a line a minute."""

    def __init__(self) -> None:
        self.last, self.what = 0.0, ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self.what or time.monotonic() - self.last > 60:
            say(f"{what}: {done} of {total}")
            self.last, self.what = time.monotonic(), what


def compact(results: Any) -> str:
    """JSON with a line for each list of numbers."""
    text = json.dumps(results, indent=1, ensure_ascii=False)
    return re.sub(r"\[([^\[\]{}\"]*)\]", lambda m: "[" + " ".join(m[1].split()) + "]", text) + "\n"


def machine() -> dict[str, Any]:
    from edgeprune._host import read_facts
    from edgeprune.run import environment

    return {"host": read_facts(), "versions": environment()}


if __name__ == "__main__":
    main()
