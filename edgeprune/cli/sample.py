"""edgeprune sample"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli._app import verb
from edgeprune.cli._options import Force, Json, Memory, Precision, Window
from edgeprune.cli._terminal import emit, note, progress, say
from edgeprune.files import refuse_existing
from edgeprune.work import ranks


@verb("edgeprune sample ./SmolLM2-135M-Instruct -o own.txt")
def sample(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The text file to make.")],
    texts: Annotated[int, typer.Option(min=1, help="How many texts.")] = 48,
    window: Window = 512,
    temperature: Annotated[float, typer.Option(min=0.01, help="1: as the model has it.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another text.")] = 0,
    precision: Precision = "auto",
    max_memory: Memory = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Let the model write text to calibrate by, of all kinds it knows: score and heal by --calibration default and this.

    The same command goes on where it was stopped; `torchrun -m edgeprune.cli sample` shares the work among processes.
    """
    from edgeprune import __version__, files, folders, own_text
    from edgeprune import model as models
    from edgeprune.calibration import text_sha256
    from edgeprune.work import Log, Work, join

    refuse_existing(output, force)
    path = models.resolve(model)
    spec = models.inspect(path)
    note(f"{spec.name} writes {texts} texts of up to {window} tokens, at temperature {temperature:g}, seed {seed}")
    join()
    log = output.with_name(f".{output.name}.progress")
    how = {"n_texts": texts, "context_tokens": window, "temperature": temperature, "seed": seed, "precision": precision}
    with progress() as tick, folders.as_folder(path) as folder:
        with Log.opened(log, {"of": spec.fingerprint, "edgeprune": __version__} | how, note) as memory:
            work = Work(memory, max_memory)
            work.progress = lambda done, total: tick("writing", done, total)
            own = own_text.write(folder, spec, **how, work=work)
    if ranks()[0]:
        return  # one process of several writes
    files.write_text(output, own.text, force)
    log.unlink(missing_ok=True)
    about = {"output": str(output), "texts": own.texts, "tokens": own.tokens, "sha256": text_sha256(own.text)}
    emit(about | how) if json else say(f"wrote {output}: {own.texts} texts, {own.tokens} tokens")
