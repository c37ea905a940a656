"""edgeprune study"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeprune.cli._app import command_line, verb
from edgeprune.cli._options import (
    Calibration,
    Force,
    Include,
    Json,
    Limit,
    TaskData,
    TaskNames,
    Texts,
    Window,
    Windows,
    _size,
    names,
)
from edgeprune.cli._terminal import emit, note, progress
from edgeprune.errors import UsageError


def _numbers(kind: type, text: str) -> tuple[Any, ...]:
    try:
        return tuple(dict.fromkeys(kind(part) for part in text.split(",")))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not numbers with commas between them") from None


def _ratios(text: str) -> tuple[float, ...]:
    return _numbers(float, text)


def _counts(text: str) -> tuple[int, ...]:
    return _numbers(int, text)


Ratios = Annotated[
    Any, typer.Option(parser=_ratios, metavar="R,R,…", help="Shares of the blocks' parameters to remove.")
]
Quants = Annotated[str | None, typer.Option(metavar="Q,Q,…", help="Quantisations of either runtime, e.g. Q4_K_M,int8. Default: Q8_0,Q4_K_M,Q4_0.")]  # fmt: skip  # noqa: E501
Contexts = Annotated[Any, typer.Option(parser=_counts, metavar="N,N,…", help="Tokens in the cache while decoding. Default: 0,2048, or as many as the model holds.")]  # fmt: skip  # noqa: E501
Threads = Annotated[Any, typer.Option("--threads", "-t", parser=_counts, metavar="N,N,…", help="Everything once for each. Default: physical cores.")]  # fmt: skip  # noqa: E501
SpeedOnly = Annotated[bool, typer.Option("--speed-only", help="Random weights of the model's shape: no weights are needed, nothing is said of quality.")]  # fmt: skip  # noqa: E501
Devices = Annotated[list[str] | None, typer.Option("--device", "-d", help="One to foretell it for; repeatable. Default: some of every class.")]  # fmt: skip  # noqa: E501
MaxDisk = Annotated[int, typer.Option("--max-disk", parser=_size, metavar="SIZE", help="What files may take at a time; those that were measured are deleted.")]  # fmt: skip  # noqa: E501
OpenMemory = Annotated[int, typer.Option("--max-memory", parser=_size, metavar="SIZE", help="What models that are open side by side may take.")]  # fmt: skip  # noqa: E501
LlamaBench = Annotated[Path | None, typer.Option(help="A llama-bench binary to run on the same GGUF files.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="A folder for samples, study.json, report.md and report.html; the same command goes on after a kill.")]  # fmt: skip  # noqa: E501


Methods = Annotated[list[str] | None, typer.Option("--width", metavar="METHOD", help="How widths are chosen, of those `edgeprune prune --width` knows; repeatable. Default: flap.")]  # fmt: skip  # noqa: E501
Roundings = Annotated[Any, typer.Option("--round", parser=_counts, metavar="N,N,…", help="What widths are multiples of; 0: each layer's own, as published.")]  # fmt: skip  # noqa: E501
Heals = Annotated[
    bool,
    typer.Option(
        "--heal/--no-heal", help="Also judge the models with fewer blocks, and the thinner ones, healed (refit)."
    ),
]


@verb("edgeprune study tinyllama-1.1b --speed-only --ratios 0.2 -o study")
def study(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    output: Output,
    ratios: Ratios = "0.1,0.2,0.3",
    quants: Quants = None,
    contexts: Contexts = None,
    speed_only: SpeedOnly = False,
    width: Methods = None,
    round_to: Roundings = "0,1,32,256",
    scores: Annotated[
        Path | None, typer.Option(help="Removal path, of `edgeprune score`; of the built-in model shipped.")
    ] = None,
    heal: Heals = False,
    calibration_windows: Annotated[
        int, typer.Option(min=1, help="Windows of 512 tokens that widths are chosen and healing is solved on.")
    ] = 32,
    calibration: Calibration = None,
    text: Texts = None,
    windows: Windows = 8,
    window: Window = 512,
    tasks: TaskNames = None,
    task_data: TaskData = None,
    include_path: Include = None,
    limit: Limit = None,
    n_prompt: Annotated[int, typer.Option("--n-prompt", "-p", min=1)] = 256,
    n_gen: Annotated[int, typer.Option("--n-gen", "-n", min=1)] = 24,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=2)] = 5,
    threads: Threads = None,
    llama_bench: LlamaBench = None,
    device: Devices = None,
    max_disk: MaxDisk = "4GB",
    max_memory: OpenMemory = "6GB",
    force: Force = False,
    json: Json = False,
) -> None:
    """Depth against width at equal size: fewer blocks beside thinner ones, measured side by side and explained.

    Says where the difference comes from, and foretells it for other devices, contexts and model sizes.
    """
    import contextlib

    from edgeprune import catalog, devices
    from edgeprune.bench import physical_cores
    from edgeprune.cli import _show_report
    from edgeprune.cli._models import shape_of
    from edgeprune.cli.plan import _spec_and_scores
    from edgeprune.study import design as designing
    from edgeprune.study import project
    from edgeprune.study import run as running
    from edgeprune.study.judge import Asked
    from edgeprune.study.make import generated_source
    from edgeprune.study.measure import Limits, Protocol

    designing.check_ratios(ratios)
    designing.check_roundings(round_to)
    methods = list(dict.fromkeys(width or ["flap"]))
    for method in methods:
        catalog.load("edgeprune.widths", method)
    kinds = designing.quants_of(quants or "Q8_0,Q4_K_M,Q4_0")
    profiles = project.chosen(device or [])
    limits = Limits(max_disk, max_memory)
    spec, known = (shape_of(model)[0], None) if speed_only else _spec_and_scores(model, scores)
    contexts = contexts or designing.default_contexts(n_gen, spec)
    designing.check_contexts(contexts, n_gen, spec)
    protocol = Protocol(tuple(sorted(contexts)), n_prompt, n_gen, repetitions, threads or (physical_cores(),))
    asked = {"ratios": ratios, "quants": kinds, "round": round_to} | protocol._asdict() | limits._asdict()
    stock = _stock(llama_bench, protocol)
    asked |= {"llama_bench": True} if stock else {}
    with contextlib.ExitStack() as stack:
        tick = stack.enter_context(progress())
        if speed_only:
            if tasks or heal or scores or text or calibration:
                raise UsageError(
                    "--speed-only has random weights, of which --tasks, --heal, --text, --calibration and --scores say nothing"
                )
            shape = designing.shape_of(spec)
            asked |= {"model": spec.name, "shape": shape}

            def prepare(_: Any) -> running.Ready:
                plan = designing.design(spec.name, shape, ratios, kinds, round_to)
                return running.Ready(plan, generated_source(max_disk), stock)
        elif known is None:
            raise UsageError(f"which blocks of {model} go first? Give --scores, of `edgeprune score`, or --speed-only")
        else:
            judged = Asked(windows, window, protocol.threads[-1], "refit" if heal else None, calibration_windows)
            asked |= {"model": spec.fingerprint, "scores": known.digest(), "width": methods, "judged": judged}
            asked |= {"calibration_windows": calibration_windows}
            named = {"calibration": calibration, "evaluation": text}
            asked |= _texts_apart(named)
            zeroshot = _suite(stack, tasks, task_data, include_path, limit, judged.n_threads, output)
            asked |= {"tasks": [zeroshot.names, limit]} if zeroshot else {}

            def prepare(begun: Any) -> running.Ready:
                return _real(stack, model, spec, known, begun, output, asked, judged, zeroshot, stock, tick, named)

        found = running.study(
            asked, output, prepare=prepare, host=lambda: devices.load(devices.HOST), profiles=profiles,
            command=command_line(), force=force, progress=tick, say=note,
        )  # fmt: skip
    emit(found) if json else _show_report.study(found, output)


def _texts_apart(named: dict[str, Any]) -> dict[str, list[str]]:
    """Which texts were named, by hash, of those to choose and those to judge by. Raises UsageError where one is or holds another
    of the other side."""
    from edgeprune.calibration import read_texts, text_sha256
    from edgeprune.heal_text import keep_from_judging

    texts = {split: read_texts(files, split) for split, files in named.items() if files}
    keep_from_judging(texts.get("calibration", ()), named["evaluation"] or ())
    return {f"{split} text": [text_sha256(text) for _, text in of] for split, of in texts.items()}


def _stock(binary: Path | None, p: Any) -> dict[str, Any]:
    import functools

    from edgeprune.study.kept import STOCK
    from edgeprune.study.stock import LlamaBench
    from edgeprune.types import Workload

    load = Workload(n_prompt=p.n_prompt, n_gen=p.n_gen, repetitions=p.repetitions, n_threads=p.threads[-1])
    return {STOCK: functools.partial(LlamaBench, binary, load, say=note)} if binary else {}


def _suite(
    stack: Any, tasks: list[str] | None, data: Path | None, include: Path | None, limit: float | None, n_threads: int,
    output: Path,
) -> Any:  # fmt: skip
    from edgeprune.behaviour.tasks import Asked, suite

    asked = Asked(names(tasks), data, include, limit, n_threads=n_threads)
    ready = stack.enter_context(suite(asked, output / "zeroshot", note))
    return ready if ready.names else None


def _real(
    stack: Any, model: str, spec: Any, scores: Any, begun: Any, output: Path, asked: dict[str, Any], judged: Any, zeroshot: Any,
    stock: Any, tick: Any, named: dict[str, Any],
) -> Any:  # fmt: skip
    """A study of the model's own weights: as far as `begun` goes, else rated and planned anew."""
    import functools

    from edgeprune import devices, folders
    from edgeprune import model as models
    from edgeprune.study import real
    from edgeprune.study.judge import Judge
    from edgeprune.study.kept import QUALITY
    from edgeprune.study.run import Ready

    folder = stack.enter_context(folders.as_folder(models.resolve(model)))
    made = {"plans": begun.plans, "widths": begun.widths} if begun else {}
    made |= {"calibration": named["calibration"] or (), "judging": named["evaluation"] or ()}
    subject = real.subject(
        folder, spec, folders.public_name(model), n_windows=asked["calibration_windows"], progress=tick, **made
    )
    plan = begun and begun.design
    if not plan:
        files = output / "files"
        files.mkdir(parents=True, exist_ok=True)
        note(f"rating {spec.name} by {', '.join(asked['width'])}, and making each variant once to see its shape")
        host, kinds = devices.load(devices.HOST), asked["quants"]
        plan = real.prepare(subject, scores, host, asked["ratios"], asked["width"], asked["round"], kinds, files)
    judge = functools.partial(Judge, subject, plan.tasks, judged, zeroshot, progress=tick, say=note)
    return Ready(plan, real.source(subject), {QUALITY: judge} | stock, subject.plans, subject.widths)
