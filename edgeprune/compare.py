"""Compare: the removals of several metrics side by side on one model, on text that none of them has seen.

All choose on the same calibration text and are asked for the same amounts. Every block list is measured on the same
windows, so that two methods are compared window by window.
"""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune.blocks import describe_removed
from edgeprune.calibration import Windows, read_windows
from edgeprune.comparison import Comparison, Contender, Cut, Damage, damage
from edgeprune.errors import InputRejected, UsageError
from edgeprune.metrics._halves import Kept, all_halves, kept
from edgeprune.metrics._sweep import measured_on
from edgeprune.score import (
    BOTH,
    Method,
    check_finite,
    chooses_in,
    load_metric,
    package_versions,
    removals,
    searched,
)
from edgeprune.torch_model import device, load, tokenizer
from edgeprune.types import Blocks, ModelSpec
from edgeprune.work import Log, Work, join

SLACK = 1.001  # norm vectors, which a half holds beside its matrices, don't decide whether a cut is within an amount
Pairs = dict[Kept, list[tuple[float, float]]]  # version -> (KL, loss) of each window, nats per token


class Contest(NamedTuple):
    """amounts: blocks' worth of parameters to remove. effort: of our searches."""

    metrics: tuple[str, ...]
    amounts: tuple[int, ...]
    reference: str | None = None
    effort: int = 1
    precision: str = "auto"  # while metrics choose; "auto" is as in `score`
    measure_precision: str | None = None  # None: float32 on a CPU, the stored type on CUDA


class Reading(NamedTuple):
    """One text, read by itself; no file stands for the default text."""

    files: tuple[Path, ...]
    n_windows: int
    context_tokens: int


class Chosen(NamedTuple):
    metric: str
    lists: list[Blocks]  # one per amount
    precision: str
    seconds: float
    cpu_seconds: float


def compare_folder(
    folder: Path, spec: ModelSpec, contest: Contest, readings: Sequence[Reading], calibration: Reading, *,
    max_bytes: int | None = None, log: Path | None = None, progress: Callable[[str, int, int], None] = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
) -> Comparison:  # fmt: skip
    """Every metric's cuts of a transformers folder, and what they do to each text and to the calibration text.

    One model is in memory at a time. max_bytes: what weights and activations may take, in each process; unless told what
    is free. log: a file that remembers, so that the same call goes on where it was killed; to be removed once the result
    is safe. Raises UsageError for an unknown metric, an amount that leaves no block, a text that calibration reads.
    """
    check(contest, spec)
    texts = read(tokenizer(folder), spec, calibration, readings)
    join()
    dtypes = {metric: chooses_in(metric, contest.precision) for metric in contest.metrics}
    question = {"of": spec.fingerprint, "contest": [*contest], "precision": dtypes, "max_bytes": max_bytes}
    question |= {"on": device()} | package_versions()
    question["texts"] = [[text.text.sha256, text.windows] for text in texts]
    with Log.opened(log, question, say) as memory:
        work = TimedWork(memory, max_bytes)
        chosen: dict[str, Chosen] = {}
        for dtype in dict.fromkeys(dtypes.values()):
            model = None
            gc.collect()  # its memory is needed for the next
            model = load(folder, dtype=dtype, max_bytes=work.max_bytes)
            check_finite(model, spec)
            for metric in (m for m in dtypes if dtypes[m] == dtype):
                work.progress = functools.partial(progress, f"choosing by {metric}")
                chosen[metric] = choose(model, spec, texts[0], contest, metric, work)
        if dtype != contest.measure_precision:
            model = None
            gc.collect()
            model = load(folder, dtype=contest.measure_precision, max_bytes=work.max_bytes)
        versions = list(dict.fromkeys(kept(blocks) for c in chosen.values() for blocks in c.lists))
        found = []
        for text in texts:
            work.progress = functools.partial(progress, f"measuring on {text.text.name}")
            found.append(measure(model, [all_halves(spec.n_blocks), *versions], text.windows, work))
    return _record(spec, contest, _precision(model), [chosen[m] for m in dtypes], texts, found)


def check(contest: Contest, spec: ModelSpec) -> None:
    for metric in contest.metrics:
        load_metric(metric)
    if contest.reference not in (None, *contest.metrics):
        raise UsageError(f"{contest.reference} is not among the metrics compared; add it with --metric")
    for amount in contest.amounts:
        if not 1 <= amount < spec.n_blocks:
            raise UsageError(f"{amount} of {spec.n_blocks} blocks can't be removed; ask for 1 to {spec.n_blocks - 1}")


def default_amounts(n_blocks: int) -> tuple[int, ...]:
    """One, two and three tenths of the blocks."""
    return tuple(sorted({max(1, round(n_blocks * tenths / 10)) for tenths in (1, 2, 3)}))


def read(tok: Any, spec: ModelSpec, calibration: Reading, readings: Sequence[Reading]) -> list[Windows]:
    """Windows of the calibration text and then of each other. Raises UsageError when they share a text."""
    first = read_windows(tok, spec, *calibration)
    return [first, *(read_windows(tok, spec, *r, split="evaluation", avoid=first.text) for r in readings)]


class TimedWork(Work):
    """Work that knows how long its pieces took, also those that were done before a kill or by another process."""

    def __init__(self, log: Log | None = None, max_bytes: int | None = None):
        super().__init__(log, max_bytes)
        self._pieces = self._here = (0.0, 0.0)  # of all processes and runs; of this one

    def each(self, pieces: Sequence[Any], do: Callable[[Any], Any], tick: Any = lambda _: None) -> list[Any]:
        def timed(piece: Any) -> Any:
            start = time.monotonic(), time.process_time()
            answer = do(piece)
            spent = time.monotonic() - start[0], time.process_time() - start[1]
            self._here = _sum(self._here, spent)
            return [answer, *spent]

        found = super().each(pieces, timed, tick)
        for _, *spent in found:
            self._pieces = _sum(self._pieces, spent)
        return [answer for answer, *_ in found]

    def clock(self) -> tuple[float, float]:
        """Seconds, and CPU seconds of all processes; only differences mean something."""
        seconds, cpu_seconds = time.monotonic() - self._here[0], time.process_time() - self._here[1]
        return seconds + self._pieces[0] / self.world, cpu_seconds + self._pieces[1]


def choose(model: Any, spec: ModelSpec, text: Windows, contest: Contest, metric: str, work: TimedWork) -> Chosen:
    """What the metric removes at each amount, and how long it took to find out."""
    start = work.clock()
    path = path_to(model, spec, text, metric, max(contest.amounts), contest.effort, work)
    took = [now - then for now, then in zip(work.clock(), start, strict=True)]
    spent = work.once(lambda: took)  # remembered, so that what was chosen before a kill keeps its time
    return Chosen(metric, [nearest(path, spec, amount) for amount in contest.amounts], _precision(model), *spent)


def path_to(
    model: Any, spec: ModelSpec, text: Windows, metric: str, amount: int, effort: int, work: Work
) -> list[Blocks]:
    """The metric's removal path until `amount` blocks' worth are gone, whether it removes blocks or halves."""
    module = load_metric(metric)
    if not hasattr(module, "children"):  # a longer path costs nothing
        return removals(model, spec, text, Method(metric, 2 * spec.n_blocks), work)[0]
    most = amount * block_params(spec)
    removed = functools.partial(params_removed, spec)
    smallest = min(map(removed, module.children(all_halves(spec.n_blocks))))
    method = Method(metric, math.ceil(most / smallest), effort=effort)

    def until_gone(version: Kept) -> list[Kept]:
        return module.children(version) if removed(version) < most else []

    return searched(model, spec, text, until_gone, method, work)


def nearest(path: Iterable[Blocks], spec: ModelSpec, amount: int) -> Blocks:
    """The block list that removes most parameters, but no more than `amount` blocks' worth."""
    sizes = {blocks: params_removed(spec, kept(blocks)) for blocks in path}
    return max((b for b in sizes if sizes[b] <= SLACK * amount * block_params(spec)), key=sizes.__getitem__)


def block_params(spec: ModelSpec) -> float:
    """Mean parameters of a block: what "a block's worth" is."""
    return sum(b.attn.params + b.ffn.params for b in spec.blocks) / spec.n_blocks


def params_removed(spec: ModelSpec, version: Kept) -> int:
    stays = set(version)
    halves = ((half, i, part.params) for i, b in enumerate(spec.blocks) for half, part in (("A", b.attn), ("F", b.ffn)))
    return sum(params for half, i, params in halves if (half, i) not in stays)


def measure(model: Any, versions: Sequence[Kept], text: Sequence[Sequence[int]], work: Work) -> Pairs:
    """KL(whole ‖ version) and loss of every version. Raises InputRejected where logits are not finite."""
    measured = measured_on(model, text, work, BOTH)
    found = measured(versions, range(len(text)), lambda done: work.progress(done, len(text)))
    pairs: Pairs = {version: [] for version in versions}
    for window, tokens in zip(found, text, strict=True):
        for version, (kl,), (loss,) in zip(versions, *window, strict=True):
            if not math.isfinite(kl + loss):
                raise InputRejected(
                    "a pruned version's logits are not finite: the model's weights are not, or overflow"
                )
            pairs[version].append((kl / (len(tokens) - 1), loss / (len(tokens) - 1)))
    return pairs


def _record(
    spec: ModelSpec, contest: Contest, precision: str, chosen: Sequence[Chosen], texts: Sequence[Windows],
    found: Sequence[Pairs],
) -> Comparison:  # fmt: skip
    """texts, found: of the calibration text and then of each other."""
    judged = [_damages(contest, chosen, pairs) for pairs in found]
    contenders = []
    for i, c in enumerate(chosen):
        cuts = [
            Cut(
                asked_blocks=amount, blocks=blocks, removed=describe_removed(blocks, spec.n_blocks),
                params_removed=params_removed(spec, kept(blocks)),
                damage=tuple(on_text[a][i] for on_text in judged[1:]), on_calibration=judged[0][a][i],
            )
            for a, (amount, blocks) in enumerate(zip(contest.amounts, c.lists, strict=True))
        ]  # fmt: skip
        seconds, cpu_seconds = round(c.seconds, 3), round(c.cpu_seconds, 3)
        contenders.append(
            Contender(
                metric=c.metric, source=load_metric(c.metric).SOURCE, precision=c.precision, seconds=seconds,
                cpu_seconds=cpu_seconds, cuts=tuple(cuts),
            )
        )  # fmt: skip
    nothing = all_halves(spec.n_blocks)
    return Comparison(
        model=spec.name, fingerprint=spec.fingerprint, n_blocks=spec.n_blocks, params=spec.params,
        block_params=block_params(spec), effort=contest.effort, precision=precision, calibration=texts[0].text,
        texts=tuple(t.text for t in texts[1:]), reference=contest.reference, contenders=tuple(contenders),
        whole_perplexity=tuple(damage(pairs[nothing], None).perplexity for pairs in found[1:]),
        versions=package_versions(),
    )  # fmt: skip


def _damages(contest: Contest, chosen: Sequence[Chosen], pairs: Pairs) -> list[list[Damage]]:
    """[amount][contender] on one text, each beside the reference of its amount."""
    out = []
    for a in range(len(contest.amounts)):
        found = [pairs[kept(c.lists[a])] for c in chosen]
        means = [math.fsum(kl for kl, _ in windows) for windows in found]
        r = contest.metrics.index(contest.reference) if contest.reference else means.index(min(means))
        than = contest.metrics[r], found[r]
        out.append([damage(windows, None if i == r else than) for i, windows in enumerate(found)])
    return out


def _precision(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _sum(a: Iterable[float], b: Iterable[float]) -> tuple[float, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))
