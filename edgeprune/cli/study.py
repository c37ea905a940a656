"""edgeprune study"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeprune.cli._app import command_line, verb
from edgeprune.cli._options import Force, Json, _size
from edgeprune.cli._terminal import emit, note, progress, say, table
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
Contexts = Annotated[Any, typer.Option(parser=_counts, metavar="N,N,…", help="Tokens in the cache while decoding.")]
Threads = Annotated[Any, typer.Option("--threads", "-t", parser=_counts, metavar="N,N,…", help="Everything once for each. Default: physical cores.")]  # fmt: skip  # noqa: E501
Devices = Annotated[list[str] | None, typer.Option("--device", "-d", help="One to foretell it for; repeatable. Default: some of every class.")]  # fmt: skip  # noqa: E501
MaxDisk = Annotated[int, typer.Option("--max-disk", parser=_size, metavar="SIZE", help="What files may take at a time; those that were measured are deleted.")]  # fmt: skip  # noqa: E501
OpenMemory = Annotated[int, typer.Option("--max-memory", parser=_size, metavar="SIZE", help="What models that are open side by side may take.")]  # fmt: skip  # noqa: E501
Output = Annotated[Path, typer.Option("-o", "--output", help="A folder for samples, study.json, report.md and report.html; the same command goes on after a kill.")]  # fmt: skip  # noqa: E501


@verb("edgeprune study tinyllama-1.1b --speed-only --ratios 0.2 -o study")
def study(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    output: Output,
    ratios: Ratios = "0.1,0.2,0.3",
    quants: Quants = None,
    contexts: Contexts = "0,2048",
    speed_only: Annotated[
        bool,
        typer.Option(
            "--speed-only",
            help="Random weights of the model's shape: no weights are needed, nothing is said of quality.",
        ),
    ] = False,
    n_prompt: Annotated[int, typer.Option("--n-prompt", "-p", min=1)] = 256,
    n_gen: Annotated[int, typer.Option("--n-gen", "-n", min=1)] = 24,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=2)] = 5,
    threads: Threads = None,
    device: Devices = None,
    max_disk: MaxDisk = "4GB",
    max_memory: OpenMemory = "6GB",
    force: Force = False,
    json: Json = False,
) -> None:
    """Depth against width at equal size: fewer blocks beside thinner ones, measured side by side and explained.

    Says where the difference comes from, and foretells it for other devices, contexts and model sizes.
    """
    from edgeprune.bench import physical_cores
    from edgeprune.cli._models import shape_of
    from edgeprune.study import design as designing
    from edgeprune.study import make, project
    from edgeprune.study import run as running
    from edgeprune.study.measure import Limits, Protocol

    designing.check_ratios(ratios)
    if not speed_only:
        raise UsageError("only --speed-only is there so far: speeds of the model's shape with random weights")
    spec, _ = shape_of(model)
    asked = designing.quants_of(quants or "Q8_0,Q4_K_M,Q4_0")
    designing.check_contexts(contexts, n_gen, spec)
    profiles = project.chosen(device or [])
    limits = Limits(max_disk, max_memory)
    protocol = Protocol(tuple(sorted(contexts)), n_prompt, n_gen, repetitions, threads or (physical_cores(),))
    plan = designing.design(spec.name, designing.shape_of(spec), ratios, asked)
    host = running.load_host()
    outline = running.outline(plan, protocol, limits, host)
    note(
        f"{outline.n_models} models of {spec.name}'s shape in {outline.n_groups} groups, side by side: "
        f"{outline.n_bytes / 1e9:.1f} GB of files, at most {outline.disk_bytes / 1e9:.1f} GB at a time; very roughly "
        f"{max(1, round(outline.seconds / 60))} min"
    )
    for line in plan.refused:
        note(line)
    with progress() as tick:
        found = running.study(
            plan, protocol, limits, output, source=make.generated_source(max_disk), host=host, profiles=profiles,
            speed_only=speed_only, command=command_line(), force=force, progress=tick, say=note,
        )  # fmt: skip
    emit(found) if json else _show(found, output)


def _show(found: Any, output: Path) -> None:
    from edgeprune.study import words

    if found.speed_only:
        say("Speed only: random weights of the true shape.")
    table(None, list(words.PAIR_COLUMNS), [list(row) for row in words.pair_rows(found)])
    for line in (*words.verdicts(found), *words.reasons(found), words.foresight(found)):
        say(line)
    say(f"wrote {output}/report.html, report.md, study.json; raw samples are in samples.jsonl")
