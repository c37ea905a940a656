"""The search against the plain loop that runs the whole pruned model for every candidate; and how time grows.

    python benchmarks/search_speed/run.py [--model FOLDER] [--text FILE]

Writes results.json, README.md and growth.png; --redraw makes the last two again. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import _growth  # noqa: E402
import _pages  # noqa: E402
import _plain  # noqa: E402
import _tiny  # noqa: E402

HERE = Path(__file__).parent
SMALL_STEPS = 4


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a transformers folder; default: SmolLM2-135M-Instruct")
    parser.add_argument(
        "--text", type=Path, nargs="*", default=[], help="calibration texts; default: the installed ones"
    )
    parser.add_argument("--metric", default="kl_search", help="a metric that searches")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--sample", type=int, default=8, help="candidates a step that the plain loop runs; 0: all")
    parser.add_argument("--precision", default="auto", help="of both; auto: the fastest here")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--seeds", type=int, default=3, help="small models on which the plain loop is run in full")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="folder for the results")
    parser.add_argument("--redraw", action="store_true", help="README.md and growth.png again from results.json")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "results.json"
    if not args.redraw:
        file.write_text(json.dumps(run(args), indent=1) + "\n", encoding="utf-8")
    results = json.loads(file.read_text(encoding="utf-8"))
    _pages.draw(results["growth"], args.output / "growth.png")
    (args.output / "README.md").write_text(_pages.readme(results), encoding="utf-8")
    say(f"wrote {args.output}/results.json, README.md and growth.png")


def run(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from edgeprune._host import read_facts
    from edgeprune.run import environment

    if args.threads:
        torch.set_num_threads(args.threads)
    with torch.inference_mode():
        return {
            "search": on_the_model(args),
            "small": [on_a_small_model(args.metric, seed) for seed in range(args.seeds)],
            "growth": _growth.measure(args.metric, say),
            "machine": {"host": read_facts(), "versions": environment(), "threads": torch.get_num_threads()},
        }


def on_the_model(args: argparse.Namespace) -> dict[str, Any]:
    """Both on one model and text. Every candidate of the plain loop costs alike, so some may stand for all."""
    from edgeprune import calibration, score, torch_model
    from edgeprune import model as models

    with tempfile.TemporaryDirectory(prefix="search-speed-") as temporary:
        folder = args.model or builtin_model(Path(temporary))
        spec, tok = models.inspect(folder), torch_model.tokenizer(folder)
        m = torch_model.load(folder, dtype=torch_model.dtype_of(args.precision))
    text = calibration.windows(
        lambda s: tok.encode(s, add_special_tokens=False), args.text, split="calibration", n_windows=args.windows,
        context_tokens=args.context,
    )  # fmt: skip
    say(f"searching: {args.steps} steps on {len(text.windows)} windows of {args.context} tokens")
    path, ours = _plain.searched(m, spec, text, score.Method(args.metric, args.steps, effort=0))
    say("the same, refined")
    _, refined = _plain.searched(m, spec, text, score.Method(args.metric, args.steps))
    plain = []
    for step, (before, after) in enumerate(zip(path, path[1:], strict=False), 1):
        say(f"the plain loop, step {step}")
        plain.append(_plain.step(m, text.windows, args.metric, before, after, args.sample))
    rates = [influence(m, text.windows) for _ in range(3)]
    return {
        "model": spec.name, "n_blocks": spec.n_blocks, "metric": args.metric, "precision": str(m.dtype).split(".")[-1],
        "text": text.text.name, "windows": len(text.windows), "context_tokens": args.context, "ours": ours, "refined": refined,
        "plain": plain,
        "cpu_ratio": ours["cpu_s"] / sum(s["cpu_s"] for s in plain),
        "time_ratio": ours["s"] / sum(s["s"] for s in plain),
        "block_influence": {k: min(r[k] for r in rates) for k in rates[0]},
    }  # fmt: skip


def influence(m: Any, windows: list[list[int]]) -> dict[str, float]:
    """CPU seconds of block influence, of a forward pass with its logits, and of one without the head."""
    import torch

    from edgeprune.catalog import load
    from edgeprune.work import Work

    jobs = {
        "block_influence": lambda: load("edgeprune.metrics", "block_influence").rate(m, windows, Work()),
        "forward": lambda: [m(torch.tensor([w], device=m.device), use_cache=False) for w in windows],
        "without_head": lambda: [m.model(torch.tensor([w], device=m.device), use_cache=False) for w in windows],
    }
    found = {}
    for name, job in jobs.items():
        start = time.process_time()
        job()
        found[name] = time.process_time() - start
    return found


def on_a_small_model(metric: str, seed: int) -> dict[str, Any]:
    """The plain loop in full, on its own way: whether it ends where the search does, and if not, how much lower."""
    from edgeprune import score
    from edgeprune.metrics._sweep import measured_on
    from edgeprune.work import Work

    m, spec = _tiny.model(n_blocks=10, hidden=64, seed=seed), _tiny.spec(10)
    text = _tiny.own_text(m, 12, 64, seed)
    path, ours = _plain.searched(m, spec, text, score.Method(metric, SMALL_STEPS, effort=0))
    plain, cpu_s = [path[0]], 0.0
    for _ in path[1:]:
        step = _plain.step(m, text.windows, metric, plain[-1], None, 0)
        plain.append(step["best"])
        cpu_s += step["cpu_s"]
    measured = measured_on(m, text.windows, Work(), score.BOTH)
    ours_damage, plain_damage = (
        [step.kl for step in score.measure_path(measured, way, text.windows, Work())[1:]] for way in (path, plain)
    )
    more = [a / b - 1 for a, b in zip(ours_damage, plain_damage, strict=True)]
    return {"seed": seed, "same": plain == path, "more_damage": more, "cpu_ratio": ours["cpu_s"] / cpu_s}


def builtin_model(temporary: Path) -> Path:
    from edgeprune import model
    from edgeprune.materialise import materialise

    folder = temporary / "SmolLM2-135M-Instruct"
    materialise(model.builtin_gguf(), folder)
    return folder


if __name__ == "__main__":
    main()
