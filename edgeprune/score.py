"""Score: a removal path and its measured damage. Knows nothing of devices; slow, done once per model."""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from edgeprune import __version__, after_heal, catalog
from edgeprune.blocks import from_sublayers, whole, without_block
from edgeprune.calibration import Windows, read_windows
from edgeprune.errors import InputRejected, UsageError
from edgeprune.metrics._halves import Kept, all_halves, kept
from edgeprune.metrics._race import STRETCHES
from edgeprune.metrics._search import Judge, search
from edgeprune.metrics._sweep import Measured, measured_on
from edgeprune.metrics._weights import at_hand
from edgeprune.torch_model import device, fast_dtype, load, tokenizer
from edgeprune.types import Blocks, ModelSpec, PathStep, Scores, six
from edgeprune.work import Log, Work, join

Progress = Callable[[str, int, int], None]  # what, done, total
Ends = tuple[int, int]  # blocks at the start and at the end
BOTH = ("kl", "loss")
QUICK_IN_LLAMACPP = ("block_influence", "perplexity")


class Method(NamedTuple):
    """How removals are chosen. `protect`: never removed, by metrics that rate blocks. `effort`: of our searches, see
    `metrics._search.search`; a published one stays as it was published. `after_heal`: a healer, by whose result such a
    search chooses among the best few of each size."""

    metric: str
    max_steps: int
    protect: Ends = (0, 0)
    effort: int = 1
    after_heal: str | None = None


def score(
    model: Any, spec: ModelSpec, text: Windows, method: Method, work: Work | None = None, seed: int = 0
) -> Scores:
    """Order the removals of a torch causal LM by a metric and measure each step on the same text.

    A metric that rates blocks removes one more whole block per step, lowest damage first. Raises InputRejected for
    weights or a damage that are not finite; UsageError for `protect` with a metric that does not rate blocks.
    """
    work = work or Work()
    check_finite(model, spec)
    lists, damage = removals(model, spec, text, method, work)
    measured = measured_on(model, text.windows, work, BOTH)
    return record(spec, text, method, damage, measure_path(measured, lists, text.windows, work), seed)


def score_folder(
    folder: Path, spec: ModelSpec, method: Method, *, files: Sequence[Path], n_windows: int, context_tokens: int,
    precision: str = "auto", max_bytes: int | None = None, log: Path | None = None,
    progress: Progress = lambda *_: None, say: Callable[[str], None] = lambda _: None,
) -> Scores:  # fmt: skip
    """Load a transformers folder and score it on calibration text; `spec` is the model the scores are for.

    precision: of the weights while removals are chosen ("auto": the device's fastest for a search); the path's damage
    is measured in float32 on a CPU, in the stored type on CUDA. max_bytes: what weights and activations may take
    together, in each process; unless told what is free. A larger model is read from disk. log: a file that remembers, so
    that the same call goes on where it was killed; to be removed once the scores are safe.
    """
    check_method(method)
    if method.after_heal:
        after_heal.refuse(folder, method.after_heal)
    text = read_windows(tokenizer(folder), spec, files, n_windows, context_tokens)
    join()
    dtype = chooses_in(method.metric, precision)
    question = {"of": spec.fingerprint, "method": [*method], "text": text.text.sha256, "windows": text.windows}
    question |= {"precision": dtype, "on": device()} | package_versions()
    with Log.opened(log, question, say) as memory:
        work = Work(memory, max_bytes)
        work.progress = functools.partial(progress, f"rating by {method.metric}")
        model = load(folder, dtype=dtype, max_bytes=work.max_bytes)
        check_finite(model, spec)
        lists, damage = removals(model, spec, text, method, work)
        if dtype:
            del model
            gc.collect()  # its memory is needed for the next
            model = load(folder, max_bytes=work.max_bytes)
        work.progress = functools.partial(progress, "measuring the path")
        measured = measured_on(model, text.windows, work, BOTH)
        return record(spec, text, method, damage, measure_path(measured, lists, text.windows, work))


def removals(
    model: Any, spec: ModelSpec, text: Windows, method: Method, work: Work
) -> tuple[list[Blocks], list[float] | None]:
    """Block lists after 0, 1, 2, … removals, and one damage per block where the metric rates blocks."""
    module = load_metric(method.metric, method.protect)
    if hasattr(module, "children"):
        return searched(model, spec, text, module.children, method, work), None
    if hasattr(module, "path"):
        return module.path(model, text.windows, method.max_steps, work), None
    damage = module.rate(model, text.windows, work)
    bad = [i for i, d in enumerate(damage) if not math.isfinite(d)]
    if bad:
        raise InputRejected(
            f"block {bad[0]} of {spec.name} rates {damage[bad[0]]}: its weights are not finite or overflow"
        )
    return one_shot_path(damage, method.max_steps, method.protect), damage


def searched(
    model: Any, spec: ModelSpec, text: Windows, children: Callable[[Kept], list[Kept]], method: Method, work: Work
) -> list[Blocks]:
    """What the metric's search finds in torch, over these children."""
    measured = measured_on(model, text.windows, work, [load_metric(method.metric).DAMAGE], STRETCHES)
    judge = after_heal.judge(model, text, method.after_heal, work) if method.after_heal else None
    return search_path(spec, children, measured, len(text.windows), method, work.progress, judge)


def search_path(
    spec: ModelSpec, children: Callable[[Kept], list[Kept]], measured: Measured, n_windows: int, method: Method,
    progress: Callable[[int, int], None], judge: Judge | None = None,
) -> list[Blocks]:  # fmt: skip
    """What a searching metric finds, by the damage that `measured` tells. Needs no torch."""

    def measure(versions: Sequence[Kept], chosen: Sequence[int], done: Callable[[int], None]) -> list[Any]:
        return [window[0] for window in measured(versions, chosen, done)]

    versions = search(
        all_halves(spec.n_blocks), children, measure, n_windows, method.max_steps,
        getattr(load_metric(method.metric), "parents", None), method.effort, judge,
        lambda part: progress(round(1000 * part), 1000),
    )  # fmt: skip
    return [from_sublayers(list(halves)) for halves in versions]


def record(
    spec: ModelSpec, text: Windows, method: Method, damage: list[float] | None, path: tuple[PathStep, ...],
    seed: int = 0, versions: dict[str, str] | None = None,
) -> Scores:  # fmt: skip
    module = load_metric(method.metric)
    first, last = method.protect
    notes = [f"first {first} and last {last} blocks kept"] if first or last else []
    notes += [f"effort {method.effort}"] if hasattr(module, "parents") and method.effort != 1 else []
    notes += [f"chosen by damage after healing by {method.after_heal}"] if method.after_heal else []
    return Scores(
        model=spec.name,
        fingerprint=spec.fingerprint,
        n_blocks=spec.n_blocks,
        metric=method.metric,
        source="; ".join([module.SOURCE, *notes]),
        block_damage=None if damage is None else tuple(map(six, damage)),
        path=path,
        text=text.text,
        seed=seed,
        versions={"edgeprune": __version__} | (versions or package_versions()),
    )


def package_versions() -> dict[str, str]:
    """Of what runs the model in torch, ours first."""
    return {"edgeprune": __version__} | {p: version(p) for p in ("torch", "transformers")}


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


def check_method(method: Method) -> None:
    """Raises UsageError for an unknown metric or healer, and for what the metric can't do."""
    module = load_metric(method.metric, method.protect)
    if method.after_heal and not (hasattr(module, "parents") and method.effort):
        raise UsageError(
            f"--after-heal chooses among what a refined search found, and {method.metric} with --effort {method.effort} is none;"
            " take kl_search and --effort 1"
        )
    if method.after_heal:
        after_heal.check(method.after_heal)


def of_granularity(metric: str, granularity: str) -> str:
    """The metric that searches with such cuts: "portable" is each metric's own. Raises UsageError."""
    name = metric if granularity == "portable" else f"{metric}_{granularity}"
    if granularity != "portable" and name not in catalog.names("edgeprune.metrics"):
        raise UsageError(
            f"--granularity {granularity} of {metric} is not known; kl_search has portable, aligned and sublayer"
        )
    return name


def in_llamacpp(spec: ModelSpec, path: Path, method: Method, through: str, for_torch: bool = False) -> bool:
    """Whether to score in llama.cpp. "auto": a .gguf, by metrics that run it once or once per block, or of a family that
    torch is not known to run here. Raises UsageError for what can't be; `for_torch`: something beside the method was asked that
    only torch has."""
    gguf, known = path.suffix == ".gguf", spec.family in catalog.names("edgeprune.families")
    if through not in ("auto", "torch", "llamacpp"):
        raise UsageError(f"--through {through}: torch, llamacpp or auto")
    if through == "llamacpp" and not gguf:
        raise UsageError(
            f"--through llamacpp scores .gguf files, and {path} is none; export it first, or leave that out"
        )
    if through == "torch" and not known:
        raise UsageError(f"{spec.family} models are read from GGUF and stay there; score it --through llamacpp")
    chosen = gguf and (through == "llamacpp" or not known or (through == "auto" and method.metric in QUICK_IN_LLAMACPP))
    if chosen and (for_torch or method.after_heal):
        raise UsageError(
            "--max-memory, --precision and --after-heal are for torch, and llama.cpp scores this: it maps the file and computes"
            " in its types; leave them out, or say --through torch"
        )
    return chosen


def check_finite(model: Any, spec: ModelSpec) -> None:
    """Raises InputRejected naming the first weight that is not. Reads a module at a time where they lie on disk."""
    for owner, module in model.named_modules():
        with at_hand(*[module] if next(module.parameters(recurse=False), None) is not None else []):
            for name, weight in module.named_parameters(owner, recurse=False):
                if not all(math.isfinite(end) for end in weight.aminmax()):
                    raise InputRejected(
                        f"{name} of {spec.name} holds values that are not finite; get an undamaged copy"
                    )


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


def measure_path(
    measured: Measured, lists: Sequence[Blocks], windows: Sequence[Sequence[int]], work: Work
) -> tuple[PathStep, ...]:
    """KL(whole ‖ pruned) and perplexity of every block list, the whole model's first; `measured` tells both damages."""
    versions = [kept(blocks) for blocks in lists]
    found = measured(versions, range(len(windows)), lambda done: work.progress(done, len(windows)))
    n_tokens = sum(len(w) - 1 for w in windows)
    steps = []
    for v, blocks in enumerate(lists):
        kl, loss = (math.fsum(window[kind][v][0] for window in found) / n_tokens for kind in (0, 1))
        steps.append(PathStep(blocks=blocks, kl=six(kl), perplexity=six(math.exp(loss))))
    return tuple(steps)


def chooses_in(metric: str, precision: str) -> str | None:
    """The type of the weights while removals are chosen: for "auto" the fastest in a search, and for the formulas of
    papers the one that damage is measured in (None)."""
    if precision != "auto":
        return precision
    return fast_dtype() if hasattr(load_metric(metric), "children") else None
