"""Score a GGUF through llama.cpp itself: no torch, no transformers folder, little memory beyond the file's own.

Removals are measured on the file as it is, quantised weights and llama.cpp's arithmetic included: what is left out is
left out of llama.cpp's own graph (edgeprune.runtimes._llama_streams), any whole blocks, and halves where the
architecture has a stream between them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import _gguf_arch as archs
from edgeprune._model_gguf import block_of
from edgeprune.bench import physical_cores
from edgeprune.calibration import windows as text_windows
from edgeprune.errors import InputRejected, UsageError
from edgeprune.metrics._race import STRETCHES
from edgeprune.metrics._sweep import Measured
from edgeprune.metrics.perplexity import by_removal
from edgeprune.runtimes import llamacpp
from edgeprune.runtimes._llama_streams import LlamaStreams, open_streams
from edgeprune.score import BOTH, Method, load_metric, measure_path, one_shot_path, record, search_path
from edgeprune.types import ModelSpec, Scores
from edgeprune.work import Log, Work, join


def score_gguf(
    path: Path, spec: ModelSpec, method: Method, *, files: Sequence[Path] = (), n_windows: int, context_tokens: int,
    n_threads: int | None = None, log: Path | None = None, progress: Callable[[str, int, int], None] = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
) -> Scores:  # fmt: skip
    """`edgeprune.score.score_folder` for a .gguf: block influence, perplexity by removal, and every metric that searches.

    Raises UsageError for another metric, or one that cuts between halves that the architecture runs side by side;
    InputRejected for what is no dense stack of blocks, and where values are not finite, naming the block.
    """
    module = load_metric(method.metric, method.protect)
    if method.metric not in RATES and not hasattr(module, "children"):
        raise UsageError(
            f"{method.metric} needs torch, so it rates transformers folders; for a .gguf choose {', '.join(metrics())}"
        )
    join()
    context_tokens = min(context_tokens, spec.context_length_tokens)
    model = open_model(path, spec.model_type, n_ctx=context_tokens, n_threads=n_threads or physical_cores())
    try:
        text = text_windows(
            model.tokenize, files, split="calibration", n_windows=n_windows, context_tokens=context_tokens,
            bos_token=model.bos_token,
        )  # fmt: skip
        versions = {"llamacpp": llamacpp.version()}
        question = {"of": spec.fingerprint, "method": [*method], "text": text.text.sha256, "windows": text.windows}
        with Log.opened(log, question | {"versions": versions}, say) as memory:
            work = Work(memory)
            work.progress = functools.partial(progress, f"rating by {method.metric}")
            if method.metric in RATES:
                damage = RATES[method.metric](model, text.windows, work)
                lists = one_shot_path(damage, method.max_steps, method.protect)
            else:
                measured = measured_on(model, text.windows, work, [module.DAMAGE], STRETCHES)
                lists = search_path(spec, module.children, measured, len(text.windows), method, work.progress)
                damage = None
            work.progress = functools.partial(progress, "measuring the path")
            steps = measure_path(measured_on(model, text.windows, work, BOTH), lists, text.windows, work)
            return record(spec, text, method, damage, steps, versions=versions)
    finally:
        model.close()


def metrics() -> list[str]:
    """The metrics that a .gguf can be scored by."""
    from edgeprune.catalog import load_all

    return [name for name, m in load_all("edgeprune.metrics").items() if name in RATES or hasattr(m, "children")]


def open_model(path: Path, arch: str, *, n_ctx: int, n_threads: int) -> LlamaStreams:
    """A GGUF of this architecture, opened so that its stream can be read and its halves left out."""
    known = archs.ARCHITECTURES.get(arch)

    def half_of(tensor: str) -> tuple[str, int] | None:
        block = block_of(tensor)
        half = archs.half(arch, block[1]) if block else None
        kind = "B" if known and not known.sequential else {"attn": "A", "ffn": "F"}.get(half)
        return (kind, block[0]) if half else None

    return open_streams(path, half_of, n_ctx=n_ctx, n_threads=n_threads)


def block_influence(model: LlamaStreams, windows: Sequence[Sequence[int]], work: Work) -> list[float]:
    """1 − E_t[cos(h_i,t, h_i+1,t)] per block, h_i the stream before it: ShortGPT, Men et al. 2024, arXiv:2403.03853, eq. 1."""
    blocks = [i for _, i in model.sublayers]
    between = [k for k in range(len(blocks) + 1) if k in (0, len(blocks)) or blocks[k - 1] != blocks[k]]

    def change(w: int) -> list[float]:
        return [float((1 - _cosine(x, y)).sum()) for x, y in pairwise(model.streams(windows[w], between))]

    sums = work.each(range(len(windows)), change, lambda done: work.progress(done, len(windows)))
    n_tokens = sum(map(len, windows))
    return [math.fsum(of_block) / n_tokens for of_block in zip(*sums, strict=True)]


def perplexity(model: LlamaStreams, windows: Sequence[Sequence[int]], work: Work) -> list[float]:
    """The perplexity without each block: Shortened LLaMA, Kim et al. 2024, arXiv:2402.02834, section 3.1."""
    found = by_removal(measured_on(model, windows, work, ["loss"]), model.n_blocks, windows, work)
    if math.inf in found:
        raise InputRejected(
            f"without block {found.index(math.inf)} the model's output is not finite: its weights are not, or overflow"
        )
    return found


RATES = {"block_influence": block_influence, "perplexity": perplexity}


def measured_on(
    model: LlamaStreams, windows: Sequence[Sequence[int]], work: Work, kinds: Sequence[str], n_segments: int = 1
) -> Measured:
    """`edgeprune.metrics._sweep.measured_on` on llama.cpp."""

    def measure(versions: Sequence[Any], chosen: Sequence[int], tick: Callable[[int], None]) -> list[Any]:
        return work.each(chosen, lambda w: model.damage(versions, windows[w], kinds, n_segments).tolist(), tick)

    return measure


def _cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Per row, summed in float64."""
    dot = functools.partial(np.einsum, "ij,ij->i", dtype=np.float64)
    return dot(x, y) / np.sqrt(dot(x, x) * dot(y, y))
