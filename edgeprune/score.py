"""Score: a removal path and its measured damage. Knows nothing of devices; slow, done once per model."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeprune import __version__, catalog
from edgeprune.blocks import whole, without_block
from edgeprune.calibration import Windows, windows
from edgeprune.divergence import compare, nll
from edgeprune.errors import InputRejected, UsageError
from edgeprune.metrics._capture import capture, head, run_layers
from edgeprune.torch_model import load, tokenizer, view
from edgeprune.types import Block, Blocks, ModelSpec, PathStep, Scores

Progress = Callable[[str, int, int], None]  # what, done, total
Ends = tuple[int, int]  # blocks at the start and at the end


def score(
    model: Any, spec: ModelSpec, text: Windows, *, metric: str, max_steps: int, protect: Ends = (0, 0), seed: int = 0,
    progress: Progress,
) -> Scores:  # fmt: skip
    """Order the removals of a torch causal LM by `metric` and measure each step on the same text.

    A metric that rates blocks removes one more whole block per step, lowest damage first, `max_steps` of them, and
    never the `protect` first and last ones. Raises InputRejected for weights that are not finite, or when a damage is
    not; UsageError for `protect` with a metric that does not rate blocks.
    """
    module, damage = load_metric(metric, protect), None
    _check_finite(model, spec)
    tick = functools.partial(progress, f"rating by {metric}")
    if hasattr(module, "path"):
        lists = module.path(model, text.windows, max_steps, tick)
    else:
        damage = module.rate(model, text.windows, tick)
        bad = [i for i, d in enumerate(damage) if not math.isfinite(d)]
        if bad:
            raise InputRejected(
                f"block {bad[0]} of {spec.name} rates {damage[bad[0]]}: its weights are not finite or overflow"
            )
        lists = one_shot_path(damage, max_steps, protect)
    return Scores(
        model=spec.name,
        fingerprint=spec.fingerprint,
        n_blocks=spec.n_blocks,
        metric=metric,
        source=module.SOURCE + (f"; first {protect[0]} and last {protect[1]} blocks kept" if any(protect) else ""),
        block_damage=None if damage is None else tuple(float(f"{d:.6g}") for d in damage),
        path=measure_path(model, lists, text.windows, progress),
        text=text.text,
        seed=seed,
        versions={"edgeprune": __version__} | {p: version(p) for p in ("torch", "transformers")},
    )


def default_steps(n_blocks: int) -> int:
    """How far a removal path goes unless asked: a third of the blocks."""
    return max(1, n_blocks // 3)


def load_metric(name: str, protect: Ends = (0, 0)) -> ModuleType:
    """The metric's module. Raises UsageError for an unknown one, or one that can't keep the ends of the model."""
    module = catalog.load("edgeprune.metrics", name)
    if any(protect) and not hasattr(module, "rate"):
        able = [n for n, m in catalog.load_all("edgeprune.metrics").items() if hasattr(m, "rate")]
        raise UsageError(
            f"--protect needs a metric that rates blocks, and {name} does not; those are {', '.join(able)}"
        )
    return module


def _check_finite(model: Any, spec: ModelSpec) -> None:
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise InputRejected(f"{name} of {spec.name} holds values that are not finite; get an undamaged copy")


def one_shot_path(damage: list[float], max_steps: int, protect: Ends = (0, 0)) -> list[Blocks]:
    """Block lists after 0, 1, 2, … removals in order of damage; one block always stays.

    `protect`: how many blocks at the start and at the end are never removed; the "+" of Shortened LLaMA (Kim et al.
    2024, arXiv:2402.02834) is (4, 2). Raises UsageError when that leaves none to remove.
    """
    first, last = protect
    order = sorted(range(first, len(damage) - last), key=lambda i: (damage[i], i))
    if not order:
        raise UsageError(f"--protect {first},{last} leaves none of {len(damage)} blocks to remove; protect fewer")
    lists = [whole(len(damage))]
    for i in order[: min(max_steps, len(damage) - 1)]:
        lists.append(without_block(lists[-1], i))
    return lists


def measure_path(model: Any, lists: list[Blocks], windows: list[list[int]], progress: Progress) -> tuple[PathStep, ...]:
    """KL(whole ‖ pruned) and perplexity of every block list, in one pass over the windows; nothing is stored."""
    import torch

    views = [view(model, blocks) for blocks in lists[1:]]
    kl, loss, n_tokens = [0.0] * len(lists), [0.0] * len(lists), 0
    with torch.inference_mode():
        for done, window in enumerate(windows):
            tokens = torch.tensor([window], device=model.device)
            got = capture(model, tokens)
            reference = head(model, got.stream).float().log_softmax(-1)
            loss[0] += nll(reference, tokens[0])
            n_tokens += len(window) - 1
            for k, (blocks, pruned) in enumerate(zip(lists[1:], views, strict=True), 1):
                same = _shared_prefix(blocks)
                calls = [got.calls[b.ffn if b.attn is None else b.attn] for b in blocks[same:]]
                start = got.calls[same].hidden if same < len(got.calls) else got.stream
                logits = head(pruned, run_layers(pruned.model.layers[same:], start, calls))
                d = compare(reference, logits, tokens[0])
                kl[k] += d.kl
                loss[k] += d.nll
                progress("measuring the path", done * (len(lists) - 1) + k, len(windows) * (len(lists) - 1))
    return tuple(
        PathStep(blocks=b, kl=float(f"{kl[k] / n_tokens:.6g}"), perplexity=float(f"{math.exp(loss[k] / n_tokens):.6g}"))
        for k, b in enumerate(lists)
    )


def _shared_prefix(blocks: Blocks) -> int:
    """How many leading blocks are those of the whole model."""
    n = 0
    while n < len(blocks) and blocks[n] == Block(attn=n, ffn=n):
        n += 1
    return n


def score_folder(
    folder: Path, spec: ModelSpec, *, files: Sequence[Path], metric: str, max_steps: int, n_windows: int,
    context_tokens: int, protect: Ends = (0, 0), progress: Progress,
) -> Scores:  # fmt: skip
    """Load a transformers folder and score it on calibration text; `spec` is the model the scores are for."""
    load_metric(metric, protect)
    tok = tokenizer(folder)
    text = windows(
        lambda s: tok.encode(s, add_special_tokens=False), files, split="calibration", n_windows=n_windows,
        context_tokens=min(context_tokens, spec.context_length_tokens), bos_token=_bos(tok),
    )  # fmt: skip
    return score(load(folder), spec, text, metric=metric, max_steps=max_steps, protect=protect, progress=progress)


def _bos(tok: Any) -> int | None:
    """The token this tokenizer puts before a text, if it does."""
    ids = tok.encode("a")
    return tok.bos_token_id if ids and tok.bos_token_id is not None and ids[0] == tok.bos_token_id else None
