"""Healing by training beside healing in closed form, on one cut: quality, zero-shot accuracy, what is generated, bytes, decode speed, time.

    python benchmarks/healing/trained.py [--model FOLDER] [--data FOLDER] [--tokens 80000]

Every method is the command a user types: prune, heal (one after the other where a method is written a+b), evaluate, export,
bench. Adds the cut to trained.json, from which run.py --redraw makes its part of README.md. With --folder it goes on where it
was stopped. All methods of one cut take over an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "plan_quality")]
import _texts  # noqa: E402
import run as closed  # noqa: E402

HERE = Path(__file__).parent
CHAINS = "refit,replaceme,distill,refit+distill,refit+lora,refit+perp,refit+full,streamline"
SOLVED = ("refit", "replaceme", "replaceme_cosine")


def main() -> None:
    parser = closed.options(__doc__)
    parser.add_argument("--path", default="ours", help=f"ours, {closed.AFTER_HEAL}, a metric, or blocks: 0-11 18-29")
    parser.add_argument("--remove", type=int, default=6, help="blocks")
    parser.add_argument("--methods", default=CHAINS, help="a+b: b on what a healed")
    parser.add_argument("--tokens", type=int, default=80_000, help="to train on")
    parser.add_argument("--windows", type=int, default=96, help="of calibration text, to solve by")
    parser.add_argument("--limit", type=int, default=50, help="documents of each zero-shot set; 0: none")
    parser.add_argument("--asked", default="whole,cut,refit,refit+distill", help="who is asked them, and generates")
    parser.add_argument("--quant", default="Q4_0", help="to time and weigh")
    parser.add_argument("--folder", type=Path, help="for the models; they stay, and are taken up")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="healing-") as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = run(args, folder)
    out = args.output / "trained.json"
    before = json.loads(out.read_text(encoding="utf-8"))["cuts"] if out.exists() else []
    cuts = [*(c for c in before if c["removed"] != results["removed"]), results]
    cuts.sort(key=lambda c: c["blocks"])
    out.write_text(json.dumps({"cuts": cuts}, indent=1) + "\n", encoding="utf-8")


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from edgeprune import model as models
    from edgeprune._host import read_facts
    from edgeprune.blocks import describe_removed
    from edgeprune.run import environment

    whole = args.model or folder / "SmolLM2-135M-Instruct"
    if not whole.exists():
        _texts.builtin_model(folder)
    spec = models.inspect(whole)
    calibration, judges = closed.texts(args, whole, folder)
    blocks = cut(args, whole, spec, calibration, folder)
    chains = args.methods.split(",")
    rows = {name: {"method": name} for name in ("whole", "cut", *chains)}
    places = {"whole": whole, "cut": folder / "cut"} | {c: folder / c for c in chains}
    for chain in chains:
        rows[chain]["healing"] = healed(chain, folder, whole, calibration, judges, args)
    for text in judges:
        for name, found in zip(rows, qualities([*places.values()], whole, text, args), strict=True):
            rows[name].setdefault("quality", []).append(found | {"subject": name})
    ggufs = [folder / f"{name}.gguf" for name in rows]
    for name, out in zip(rows, ggufs, strict=True):
        if not out.exists():
            edgeprune("export", places[name], "--format", "gguf", "--quant", args.quant, "-o", out)
        rows[name]["bytes"] = out.stat().st_size
    timed = edgeprune("bench", *ggufs, "-p", 16, "-n", 128, "-r", 15, keep=folder / "bench.json")
    for row, measured in zip(rows.values(), (m for m in timed if m["n_gen"]), strict=True):
        row["decode_tok_per_s"] = measured["samples_ts"]
    asked = [name for name in args.asked.split(",") if name in rows] if args.limit else []
    for name in asked:
        what = (
            "--tasks",
            "zeroshot",
            "--task-data",
            args.data / "zeroshot",
            "--limit",
            args.limit,
            "--windows",
            1,
            "--generate",
        )
        out, keep = folder / f"{name}.tasks", folder / f"{name}.tasks.json"
        found = edgeprune("evaluate", folder / f"{name}.gguf", *what, "-o", out, keep=keep)
        rows[name]["tasks"] = found[0]["tasks"]["scores"]
        rows[name]["generation"] = found[0]["generation"]
    return {
        "model": spec.name, "removed": describe_removed(blocks, spec.n_blocks), "path": args.path, "blocks": args.remove,
        "texts": [{"name": q["text"]["name"], "windows": q["windows"]} for q in rows["cut"]["quality"]],
        "quant": args.quant, "limit": args.limit, "rows": [*rows.values()],
        "machine": {"host": read_facts(), "versions": environment()},
    }  # fmt: skip


def cut(args: argparse.Namespace, whole: Path, spec: Any, calibration: Any, folder: Path) -> Any:
    """The pruned folder, as a plan for this machine that keeps the blocks asked for. Returns those blocks."""
    from edgeprune import heal, prune, torch_model
    from edgeprune.blocks import describe_removed
    from edgeprune.devices import load
    from edgeprune.plan import make_plan
    from edgeprune.types import Budget

    text = model = None
    if closed.is_metric(args.path):
        text, _ = heal.read_kinds(torch_model.tokenizer(whole), spec, calibration, [], 40, args.context)
        model = torch_model.load(whole, dtype=torch_model.fast_dtype())
    blocks = closed.cut(args.path, args.remove, model, spec, text, args)
    plan = make_plan(
        spec, None, load("host"), Budget(context_tokens=args.context, prompt_tokens=args.context)
    ).model_copy(update={"blocks": blocks, "removed": describe_removed(blocks, spec.n_blocks)})
    if not (folder / "cut").exists():
        prune.prune(whole, spec, plan, folder / "cut", base_model=str(whole), command="benchmarks/healing/trained.py")
    return blocks


def healed(
    chain: str, folder: Path, whole: Path, calibration: Any, judges: list[Path], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """What healing.json says of every step of a chain, which is made where it isn't there."""
    *before, method = chain.split("+")
    start, out = folder / "+".join(before or ["cut"]), folder / chain
    found = healed("+".join(before), folder, whole, calibration, judges, args) if before else []
    if not out.exists():
        texts = [x for path in calibration for x in ("--calibration", path)] + [
            x for path in judges for x in ("--avoid", path)
        ]
        amount = ("--windows", args.windows) if method in SOLVED else ("--tokens", args.tokens)
        edgeprune(
            "heal", start, "--base", whole, "--method", method, *texts, *amount, "--window", args.context, "-o", out
        )
    return [*found, json.loads((out / "healing.json").read_text(encoding="utf-8"))]


def qualities(places: list[Path], whole: Path, text: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    given = ("--against", whole, "--text", text, "--windows", args.eval_windows, "--window", args.context)
    return edgeprune("evaluate", *places, *given, keep=places[1].parent / f"{text.stem}.quality.json")


def edgeprune(verb: str, *args: Any, keep: Path | None = None) -> Any:
    """The JSON that the command prints; kept in a file, from which it comes the next time."""
    if keep is not None and keep.exists():
        return json.loads(keep.read_text(encoding="utf-8"))
    started = time.monotonic()
    command = [sys.executable, "-m", "edgeprune.cli", verb, *map(str, args), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    closed.say(f"{time.monotonic() - started:6.0f} s  edgeprune {verb} {Path(args[0]).name} …: exit {done.returncode}")
    if done.returncode:
        raise SystemExit(done.returncode)
    if keep is not None:
        keep.write_bytes(done.stdout)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
