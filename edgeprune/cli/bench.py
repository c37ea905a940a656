"""edgeprune bench"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli import _show
from edgeprune.cli._app import verb
from edgeprune.cli._options import CacheType, Json
from edgeprune.cli._terminal import emit, note, progress
from edgeprune.errors import UsageError


@verb("edgeprune bench pruned-Q4_K_M.gguf onnx-int8")
def bench(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT…")],
    n_prompt: Annotated[int, typer.Option("--n-prompt", "-p", min=0)] = 512,
    n_gen: Annotated[int, typer.Option("--n-gen", "-n", min=0)] = 128,
    n_depth: Annotated[int, typer.Option("--n-depth", min=0, help="Tokens already in the cache.")] = 0,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1)] = 5,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Default: physical cores.")] = None,
    kv_type: CacheType = None,
    llama_bench: Annotated[
        Path | None, typer.Option(help="A llama-bench binary to run beside ours on GGUF files.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure batch-1 speed and memory as llama-bench does, each artifact in a fresh process."""
    from edgeprune import bench as benching
    from edgeprune import llama_bench as real
    from edgeprune.types import Workload

    if not n_prompt and not n_gen:
        raise UsageError("nothing to measure: --n-prompt and --n-gen are both 0")
    load = Workload(
        n_prompt=n_prompt, n_gen=n_gen, n_depth=n_depth, repetitions=repetitions, n_threads=threads, kv_type=kv_type
    )
    for path in artifacts:
        benching.runtime_for(path)
    turns = "interleaved" if benching.fits_together(artifacts) else "one after another"
    note(
        f"measuring {len(artifacts)} artifact(s), {turns}: prompt {n_prompt}, generate {n_gen}, {repetitions} repetitions"
    )
    theirs = []
    with progress() as tick:
        results = benching.measure({str(p): p for p in artifacts}, load, progress=tick)
        for m in results if llama_bench else ():
            if m.runtime == "llamacpp":
                mine = load.model_copy(update={"n_threads": m.n_threads})
                theirs += real.run(llama_bench, Path(m.artifact), mine, m.build)
    emit([row for m in results for row in real.rows(m)] + theirs) if json else _show.measurements(results, theirs)
