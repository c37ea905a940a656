"""What healing wins back: perplexity and KL before and after, for several cuts of one model, on text that nothing was fitted to.

    python benchmarks/healing/run.py [--model FOLDER] [--data FOLDER]

Every cut × amount of text is one walk through the model; methods and judging windows go along together. All methods heal by
the greatest amount, the first by every amount. Writes results.json, README.md and curve.png, and goes on where it was
stopped. --redraw makes the page again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "plan_quality")]
import _curve  # noqa: E402
import _page  # noqa: E402
import _texts  # noqa: E402

HERE = Path(__file__).parent
OWN_TEXTS = 48
METHODS = ("refit", "replaceme")  # replaceme_cosine takes long
AFTER_HEAL = "ours-after-heal"  # our path, chosen by the damage that healing leaves


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--remove", default="3,6,9", help="blocks")
    parser.add_argument(
        "--paths", default=f"ours,{AFTER_HEAL},cosine_span", help=f"ours, {AFTER_HEAL}, a metric, or blocks: 0-11 18-29"
    )
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--windows", default="24,48,96", help="of calibration text")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--redraw", action="store_true", help="README.md again from results.json")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if not args.redraw:
        with tempfile.TemporaryDirectory(prefix="healing-") as temporary:
            run(args, Path(temporary))
    results = json.loads((args.output / "results.json").read_text(encoding="utf-8"))
    trained = args.output / "trained.json"
    more = json.loads(trained.read_text(encoding="utf-8")) if trained.exists() else None
    (args.output / "README.md").write_text(_page.page(results, more), encoding="utf-8")
    _curve.draw(results, args.output / "curve.png")


def options(about: str) -> argparse.ArgumentParser:
    """What every benchmark of healing can be asked for."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a transformers folder; default: SmolLM2-135M-Instruct")
    parser.add_argument("--scores", type=Path, help="our path, of `edgeprune score`; default: the built-in model's")
    parser.add_argument(
        "--healed-scores", type=Path, default=HERE / "after-heal.scores.json",
        help=f"{AFTER_HEAL}: of `edgeprune score --after-heal refit`; default: SmolLM2-135M-Instruct's",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, default=HERE.parents[2] / "shared" / "data", help="folder with the texts")
    parser.add_argument("--eval-windows", type=int, default=40, help="of each text")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--calibration", type=Path, nargs="+", help="default: see `texts`")
    parser.add_argument("--text", type=Path, nargs="+", help="to judge by; the first is the headline's")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="folder for the results")
    return parser


def run(args: argparse.Namespace, temporary: Path) -> None:
    from edgeprune import closed_form, heal
    from edgeprune import model as models
    from edgeprune._host import read_facts
    from edgeprune.blocks import describe_removed, to_text
    from edgeprune.calibration import windows
    from edgeprune.run import environment
    from edgeprune.torch_model import dtype_of, tokenizer
    from edgeprune.torch_model import load as load_model

    folder = args.model or _texts.builtin_model(temporary)
    spec, tok = models.inspect(folder), tokenizer(folder)
    calibration, judges = texts(args, folder, temporary)
    readings = [
        windows(
            lambda s: tok.encode(s, add_special_tokens=False), [path], split="evaluation", n_windows=args.eval_windows,
            context_tokens=args.context,
        )
        for path in judges
    ]  # fmt: skip
    judging = [closed_form.Kind(r.text.name, [], r.windows) for r in readings]
    whole = load_model(folder, dtype=dtype_of(args.precision))
    done = args.output / "results.json"
    results: dict[str, Any] = json.loads(done.read_text(encoding="utf-8")) if done.exists() else {"rows": []}
    results |= {
        "model": spec.name, "context": args.context, "precision": str(whole.dtype).removeprefix("torch."),
        "texts": [{"name": r.text.name, "windows": len(r.windows)} for r in readings],
        "machine": {"host": read_facts(), "versions": environment()},
    }  # fmt: skip
    for path, remove, n_windows, methods in jobs(args):
        text, kinds = heal.read_kinds(tok, spec, calibration, judges, n_windows, args.context)
        blocks = cut(path, remove, whole, spec, text, args)
        key = {"cut": to_text(blocks), "windows": n_windows, "text": text.text.sha256}
        here = [row for row in results["rows"] if all(row[k] == v for k, v in key.items())]
        for row in here:  # paths may come to the same cut
            row["paths"] = list(dict.fromkeys([*row["paths"], path]))
        if not {row["method"] for row in here} >= {*methods}:
            shared = key | {"paths": [path], "removed": describe_removed(blocks, spec.n_blocks), "blocks": remove}
            say(f"{', '.join(methods)}: {shared['removed']} ({path}), {n_windows} windows")
            results["rows"] += [shared | row for row in rows(whole, blocks, methods, kinds, judging)]
        done.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def rows(
    whole: Any, blocks: Any, methods: Sequence[str], kinds: Sequence[Any], judging: Sequence[Any]
) -> list[dict[str, Any]]:
    """What each method makes of one cut, all in one walk."""
    from edgeprune import closed_form
    from edgeprune.catalog import load

    started, cpu = time.monotonic(), time.process_time()
    healers = [load("edgeprune.healers", method) for method in methods]
    found = closed_form.attempt(whole, blocks, healers, [*kinds, *judging])
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    healed, out = iter(found.healed), []
    for method, healer in zip(methods, healers, strict=True):
        own = found._replace(healed=tuple(itertools.islice(healed, len(healer.SCOPES))))
        best = closed_form.choose(closed_form.of_kinds(own, range(len(kinds))))
        out.append(
            {
                "method": method, "kinds": [k.name for k in kinds],
                "tokens": sum(len(window) for k in kinds for window in k.fit),
                "scope": best and best.scope, "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1),
                "judged": judged(own, best, len(kinds)),
            }
        )  # fmt: skip
    return out


def judged(found: Any, best: Any, first: int) -> list[dict[str, Any]]:
    """Of each text after the first so many: loss and KL, nats per token, of the whole model, the cut and all attempts."""
    taken = next((a for a in found.healed if best and a.scope == best.scope), found.cut)
    return [
        {
            "loss_whole": found.loss_whole[k], "loss_cut": found.cut.loss[k], "kl_cut": found.cut.kl[k],
            "loss_healed": taken.loss[k], "kl_healed": taken.kl[k],
            "kl_of_scopes": {a.scope: a.kl[k] for a in found.healed},
        }
        for k in range(first, len(found.loss_whole))
    ]  # fmt: skip


def jobs(args: argparse.Namespace) -> list[tuple[str, int, int, list[str]]]:
    """(path, blocks to remove, calibration windows, methods), the greatest amount of text first."""
    methods, windows = args.methods.split(","), sorted(map(int, args.windows.split(",")), reverse=True)
    return [
        (path, int(remove), n, methods if n == windows[0] else methods[:1])
        for n in windows
        for remove in args.remove.split(",")
        for path in args.paths.split(",")
    ]


def cut(path: str, remove: int, whole: Any, spec: Any, text: Any, args: argparse.Namespace) -> Any:
    """The block list after `remove` blocks' worth of removals: of our stored paths, of a metric on some of the calibration text,
    or as given. Only a metric needs the model and text."""
    from edgeprune import model as models
    from edgeprune import score
    from edgeprune.blocks import from_text, removed_sublayers
    from edgeprune.types import Scores
    from edgeprune.work import Work

    if path[0].isdigit():
        return from_text(path)
    if is_metric(path):
        few = text._replace(windows=text.windows[::8])
        lists, _ = score.removals(whole, spec, few, score.Method(path, remove), Work())
    else:
        scores = args.healed_scores if path == AFTER_HEAL else args.scores
        stored = scores.read_text(encoding="utf-8") if scores else models.builtin_text("scores")
        lists = [step.blocks for step in Scores.from_json(stored).path]
    return next(b for b in lists if len(removed_sublayers(b, spec.n_blocks)) == 2 * remove)


def is_metric(path: str) -> bool:
    return not (path[0].isdigit() or path in ("ours", AFTER_HEAL))


def texts(args: argparse.Namespace, model: Path, folder: Path) -> tuple[Sequence[Path], list[Path]]:
    """(to heal by, to judge by). By default it heals by what is installed with edgeprune, what the model writes itself, Wikipedia
    and the validation part of WikiText-2, and judges by WikiText-2's test part, C4 and a technical text; the last two are
    of kinds that nothing was fitted to."""
    from edgeprune.calibration import read_texts

    judges = args.text or _there(args.data, _texts.WIKITEXT, _texts.C4, _texts.TECHNICAL)
    if not judges:
        raise SystemExit(f"{args.data} has none of the texts to judge by; name some with --text")
    if args.calibration:
        return args.calibration, judges
    out = []
    for name, text in read_texts([], "calibration"):
        out.append(folder / f"{name}.txt")
        out[-1].write_text(text, encoding="utf-8")
    return [*out, _own(model, folder), *_there(args.data, _texts.WIKI, _texts.WIKITEXT_VALIDATION)], judges


def _there(data: Path, *names: str) -> list[Path]:
    return [data / name for name in names if (data / name).is_file()]


def _own(model: Path, folder: Path) -> Path:
    """What the model writes itself."""
    from edgeprune import model as models
    from edgeprune import own_text
    from edgeprune.work import Work

    out = folder / "own text.txt"
    if not out.exists():
        say("the model writes text to heal by")
        own = own_text.write(model, models.inspect(model), n_texts=OWN_TEXTS, context_tokens=512, work=Work())
        out.write_text(own.text, encoding="utf-8")
    return out


if __name__ == "__main__":
    main()
