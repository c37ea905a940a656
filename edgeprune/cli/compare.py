"""edgeprune compare"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeprune.cli import _show_comparison
from edgeprune.cli._app import verb
from edgeprune.cli._options import Calibration, Effort, Force, Json, Memory, Precision, Texts, Window, Windows
from edgeprune.cli._terminal import emit, note, progress
from edgeprune.files import refuse_existing
from edgeprune.work import ranks


def _amounts(text: str) -> tuple[int, ...]:
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise typer.BadParameter(f"{text!r} is not numbers of blocks such as 3,6,9")
    return tuple(dict.fromkeys(int(part) for part in text.split(",")))


Metrics = Annotated[list[str] | None, typer.Option("--metric", help="One to compare; repeatable. Default: all.")]
Remove = Annotated[Any, typer.Option(parser=_amounts, metavar="N,N,…", help="Amounts, in blocks' worth of parameters. Default: one, two and three tenths of the blocks.")]  # fmt: skip  # noqa: E501
Chooses = Annotated[int | None, typer.Option(min=1, help="Windows that cuts are chosen on. Default: as --windows.")]
Reference = Annotated[str | None, typer.Option(metavar="METRIC", help="Compare the others with this one. Default: the least damaging, each time.")]  # fmt: skip  # noqa: E501
Measures = Annotated[str | None, typer.Option(help="Type of the weights while damage is measured. Default: float32 on a CPU, as stored on CUDA.")]  # fmt: skip  # noqa: E501
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Keep the result as JSON, and go on after a kill.")]


@verb("edgeprune compare ./SmolLM2-135M-Instruct --metric kl_search --metric block_influence --remove 3,6")
def compare(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    metric: Metrics = None,
    remove: Remove = None,
    text: Texts = None,
    calibration: Calibration = None,
    windows: Windows = 16,
    window: Window = 512,
    calibration_windows: Chooses = None,
    reference: Reference = None,
    effort: Effort = 1,
    precision: Precision = "auto",
    measure_precision: Measures = None,
    max_memory: Memory = None,
    output: Output = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Metrics side by side: what each removes, KL and perplexity on text none has seen, time. Slow.

    With -o the same command goes on where it was stopped. `torchrun -m edgeprune.cli compare` shares the work.
    """
    from edgeprune import catalog, files, folders
    from edgeprune import compare as comparing
    from edgeprune import model as models

    if output:
        refuse_existing(output, force)
    path = models.resolve(model)
    spec = models.inspect(path)
    contest = comparing.Contest(
        metrics=tuple(dict.fromkeys(metric or catalog.names("edgeprune.metrics"))),
        amounts=remove or comparing.default_amounts(spec.n_blocks), reference=reference, effort=effort,
        precision=precision, measure_precision=measure_precision,
    )  # fmt: skip
    comparing.check(contest, spec)
    readings = [comparing.Reading((t,), windows, window) for t in text or []]
    note(
        f"comparing {len(contest.metrics)} metrics on {spec.name}: {', '.join(map(str, contest.amounts))} blocks' worth,"
        f" up to {windows} windows of {window} tokens of each text"
        + ("; when stopped, the same command goes on from there" if output else "")
    )
    log = output and output.with_name(f".{output.name}.progress")
    with folders.as_folder(path) as folder, progress() as tick:
        found = comparing.compare_folder(
            folder, spec, contest, readings or [comparing.Reading((), windows, window)],
            comparing.Reading(tuple(calibration or ()), calibration_windows or windows, window),
            max_bytes=max_memory, log=log, progress=tick, say=note,
        )  # fmt: skip
    if ranks()[0]:
        return  # one process of several writes
    if output and log:
        files.write_text(output, found.to_json(), force)
        log.unlink(missing_ok=True)
    emit(found) if json else _show_comparison.comparison(found, output)
