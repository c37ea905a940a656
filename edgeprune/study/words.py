"""The sentences and the rows of the study's page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator

from edgeprune.study.explain import PARTS
from edgeprune.study.record import Cell, Interval, Pair, Projection, Study, Winner
from edgeprune.study.verdict import MARGIN

WIDE = 5.0  # a ratio beyond which an interval's end says nothing
WHO = {"depth": "depth", "width": "width", "equal": "equal", "open": "not settled"}

VERDICT_COLUMNS = (
    "where", "how sure", "quantisation", "context", "odd width, as published", "width in 32s", "width in 256s", "equal bytes"
)  # fmt: skip
VERDICT_CAPTION = (
    "How much faster depth is at equal size, with 95 % (measured) or 90 % (foretold) in brackets; minus: slower. Equal: "
    f"within {MARGIN - 1:.0%} either way. Not settled: the interval leaves it open. Foretold rows were not measured on such a device."
)
PAIR_COLUMNS = (
    "removed",
    "quantisation",
    "what",
    "context",
    "depth, tokens/s",
    "against",
    "tokens/s",
    "depth is",
    "foretold",
    "winner",
)
PAIR_CAPTION = "Repetitions side by side in the same minutes; the bracket is the 95 % interval of their mean ratio."
WHY_COLUMNS = (
    "quantisation",
    "context",
    "against",
    "weights",
    "larger types",
    "blocks",
    "attention",
    "not explained",
    "in all",
)
WHY_CAPTION = (
    "Milliseconds per token that the thinner model takes more than the one with fewer blocks; minus: less. Larger types are "
    "those that the runtime stores a width in which its quantisation's blocks don't divide."
)
PROJECTION_COLUMNS = (
    "device",
    "what it rests on",
    "quantisation",
    "context",
    "against",
    "depth, tokens/s",
    "depth is",
    "winner",
)
PROJECTION_CAPTION = (
    "Predictions: by the device's own calibration where its profile has one, else by its backend's prior."
)
QUALITY_COLUMNS = ("model", "method", "healed", "perplexity", "KL, nats per token")
QUALITY_CAPTION = "On text that nothing was chosen by. KL is from the whole, unquantised model."

EQUAL_COLUMNS = (
    "quantisation",
    "thinner model",
    "KL",
    "its tokens/s",
    "depth at that KL, tokens/s",
    "depth is",
    "winner",
)
EQUAL_CAPTION = (
    "At equal damage instead of equal size: depth's speed is read off between the models that were measured, on the line through "
    "the whole model and those with fewer blocks. The bracket is of the KL's standard error. A thinner model with more or less "
    "damage than any depth model is left out."
)


def equal_rows(s: Study) -> Iterator[tuple[str, ...]]:
    labels = _labels(s)
    for e in s.equal_quality:
        healed = " (healed)" if e.healed else ""
        yield (
            e.quant, labels[e.width, e.quant], f"{e.kl:.3f}", f"{e.width_tok_per_s:.1f}", f"{e.depth_tok_per_s:.1f}{healed}",
            _percent(e.ratio), WHO[e.winner],
        )  # fmt: skip


def question(s: Study) -> str:
    ratios = ", ".join(f"{r:.0%}" for r in s.ratios)
    return (
        f"Of the blocks' parameters {ratios} removed, once as whole blocks and once as heads and feed-forward channels of every "
        f"block, until both have the same parameters within 1 %, or the same bytes on disk. Which answers faster, and why?"
    )


def verdicts(s: Study) -> Iterator[str]:
    """A sentence per kind of width: what was measured with nothing in the cache."""
    for column, name in (
        ("1", "an odd width, as published methods leave it"),
        ("32", "widths in 32s"),
        ("256", "widths in 256s"),
    ):
        mine = [p for p in s.pairs if p.what == "decode" and _column(s, p) == column]
        if mine:
            counts = {w: sum(p.winner == w for p in mine) for w in ("depth", "width", "equal", "open")}
            ends = min(p.measured.middle for p in mine), max(p.measured.middle for p in mine)
            told = ", ".join(f"{WHO[w]} {n}" for w, n in counts.items() if n)
            yield f"Against {name}, depth decodes at {_times(ends[0])} to {_times(ends[1])} the speed ({len(mine)} pairs: {told})."


def verdict_rows(s: Study) -> Iterator[tuple[str, ...]]:
    """This machine, measured, then each class of devices, foretold; the middle ratio."""
    ratio = _middle(s)
    states = dict.fromkeys((p.quant, p.context) for p in s.pairs if p.what == "decode" and p.ratio == ratio)
    for quant, context in states:
        mine = [
            p for p in s.pairs
            if (p.what, p.quant, p.context, p.ratio, p.threads) == ("decode", quant, context, ratio, s.threads[-1])
        ]  # fmt: skip
        cells = {_column(s, p): _cell(p.measured, p.winner) for p in mine}
        yield ("this machine", "measured", quant, str(context), *_columns(cells))
    for name in dict.fromkeys(p.device_class for p in s.projections):
        of_class = [p for p in s.projections if p.device_class == name and p.ratio == ratio]
        for quant, context in dict.fromkeys((p.quant, p.context) for p in of_class):
            first = of_class[0].device
            mine = [p for p in of_class if (p.quant, p.context, p.device) == (quant, context, first)]
            cells = {_column(s, p): _cell(p.predicted, p.winner) for p in mine}
            yield (
                f"{name}: {first}",
                f"foretold, {_basis(mine[0]).split(':')[0]}",
                quant,
                str(context),
                *_columns(cells),
            )


def lost(s: Study) -> Iterator[str]:
    labels = _labels(s)
    for p in s.pairs:
        if p.winner == "width":
            yield (
                f"{p.quant}, {_what(p)}, {p.ratio:.0%} removed: against {labels[p.width, p.quant]}, depth is "
                f"{_percent(p.measured)}."
            )


def pair_rows(s: Study) -> Iterator[tuple[str, ...]]:
    labels = _labels(s)
    for p in s.pairs:
        threads = f", {p.threads} threads" if len(s.threads) > 1 else ""
        foretold = f"{p.predicted - 1:+.0%}" if p.predicted else ""
        yield (
            f"{p.ratio:.0%}", p.quant, p.what + threads, str(p.context), f"{p.depth_tok_per_s:.1f}", labels[p.width, p.quant],
            f"{p.width_tok_per_s:.1f}", _percent(p.measured), foretold, WHO[p.winner],
        )  # fmt: skip


def model_columns(s: Study) -> tuple[str, ...]:
    speeds = (f"tokens/s at {c}" for c in s.contexts)
    return ("model", "parameters", "quantisation", "file, MB", "memory, MB", *speeds)


def model_rows(s: Study) -> Iterator[tuple[str, ...]]:
    speed = {(c.variant, c.quant, c.context): 1 / c.measured_s for c in s.cells if c.threads == s.threads[-1]}
    order = list(dict.fromkeys(m.quant for m in s.models))
    for m in sorted(s.models, key=lambda m: order.index(m.quant)):
        cells = (f"{speed[k]:.1f}" if (k := (m.variant, m.quant, c)) in speed else "not measured" for c in s.contexts)
        sizes = (f"{n / 1e6:.0f}" if n else "not measured" for n in (m.file_bytes, m.memory_bytes))
        yield (m.label, f"{m.params:,}", m.quant, *sizes, *cells)


def why_rows(s: Study) -> Iterator[tuple[str, ...]]:
    labels = _labels(s)
    for p, a, b in _explained(s):
        parts = (f"{1e3 * (b.parts[k] - a.parts[k]):+.2f}" for k in PARTS)
        whole = f"{1e3 * (b.measured_s - a.measured_s):+.2f}"
        yield (p.quant, str(p.context), labels[p.width, p.quant], *parts, whole)


def reasons(s: Study) -> Iterator[str]:
    """For each kind of width what most of the difference is."""
    names = {
        "bytes": "bytes of weights", "fallback": "larger types that the width forces", "blocks": "the fixed cost of blocks",
        "attention": "attention and its cache", "unexplained": "what the terms don't know: kernels at such widths, or noise",
    }  # fmt: skip
    for column, name in (
        ("1", "odd widths"),
        ("32", "widths in 32s"),
        ("256", "widths in 256s"),
        ("bytes", "equal bytes"),
    ):
        mine = [(a, b) for p, a, b in _explained(s) if _column(s, p) == column]
        if not mine:
            continue
        share = {k: statistics.fmean((b.parts[k] - a.parts[k]) / a.measured_s for a, b in mine) for k in PARTS}
        told = ", ".join(f"{names[k]} {share[k]:+.1%}" for k in sorted(share, key=lambda k: -abs(share[k])))
        yield (
            f"{name[0].upper()}{name[1:]}: a token takes {sum(share.values()):+.1%} of depth's time, on average over {len(mine)} "
            f"states. Of that {told}."
        )


def foresight(s: Study) -> str:
    if not s.cells:
        return "Nothing was measured."
    errors = sorted(abs(c.predicted_s / c.measured_s - 1) for c in s.cells)
    known = [p for p in s.pairs if p.predicted]
    right = sum(_side(p.predicted) == _side(p.measured.middle) for p in known)
    inside = sum(p.measured.low <= p.predicted <= p.measured.high for p in known)
    return (
        f"Each model's time was foretold by a fit of the others: {statistics.median(errors):.1%} off in the middle, {errors[-1]:.0%} "
        f"at worst, over {len(errors)} states. Of {len(known)} pairs it names the measured outcome (depth, width or equal within "
        f"{MARGIN - 1:.0%}) in {right}; in {inside} the ratio lies inside the measured interval."
    )


def crossings(s: Study) -> Iterator[str]:
    yield "All of this section is foretold from device profiles and fitted terms, not measured."
    for c in s.curves:
        if c.even_at is not None:
            unit = {
                "context": "tokens of context",
                "bandwidth": "times this machine's bandwidth",
                "model": "parameters",
            }[c.axis]
            side = "depth" if c.y[-1].middle > 1 else "width"
            where = c.device if c.axis != "bandwidth" else "memory made faster"
            yield f"{where}, {c.quant}, against {c.width}: even at about {c.even_at:,.3g} {unit}; beyond that {side} is ahead."


def projection_rows(s: Study) -> Iterator[tuple[str, ...]]:
    labels = _labels(s)
    for p in s.projections:
        yield (
            p.device, _basis(p), p.quant, str(p.context), labels[p.width, p.quant], f"{p.depth_tok_per_s:.1f}",
            _percent(p.predicted), WHO[p.winner],
        )  # fmt: skip


def quality_rows(s: Study) -> Iterator[tuple[str, ...]]:
    for q in s.qualities:
        kl = "not measured" if q.kl is None else f"{q.kl:.3f}" + (f" ± {q.kl_stderr:.3f}" if q.kl_stderr else "")
        yield (f"{q.variant} {q.quant or 'float32'}", q.method, "yes" if q.healed else "no", f"{q.perplexity:.2f}", kl)


def missing(s: Study) -> Iterator[str]:
    yield from s.left_out
    if s.speed_only:
        yield "Quality: the weights are random. Which removal hurts less is not said here, so neither is a verdict at equal quality."
    measured = {m.runtime for m in s.models}
    for runtime in ("llamacpp", "onnxruntime"):
        if runtime not in measured:
            yield f"{runtime}: no quantisation of it was asked for."
    yield "Other machines: every line that says foretold is a prediction."


def method(s: Study) -> str:
    return (
        f"Every model in a process of its own, {', '.join(map(str, s.threads))} threads, batch 1, random tokens. Models to be compared "
        f"are open at the same time and take turns, forwards and backwards, {s.repetitions} repetitions: a prompt of {s.n_prompt} tokens; "
        f"{s.n_gen} tokens one by one after each context, which is filled once and gone back to. A repetition counts as its median "
        "token. Ratios are of the same repetition. Raw samples are in samples.jsonl."
    )


def _explained(s: Study) -> Iterator[tuple[Pair, Cell, Cell]]:
    cells = {(c.variant, c.runtime, c.quant, c.threads, c.context): c for c in s.cells}
    for p in s.pairs:
        a, b = (cells.get((v, p.runtime, p.quant, p.threads, p.context)) for v in (p.depth, p.width))
        if p.what == "decode" and a and b:
            yield p, a, b


def _column(s: Study, p: Pair | Projection) -> str:
    if p.equal != "parameters":
        return "bytes"
    rounding = next(m.rounding for m in s.models if m.variant == p.width)
    most = max(m.heads for m in s.models)
    fewer = next(m.heads for m in s.models if m.variant == p.width) < most
    twin = any(
        m.ratio == p.ratio and m.rounding == rounding and m.equal == "parameters" and m.heads > _heads(s, p.width)
        for m in s.models
    )
    return f"{rounding}h" if fewer and twin else str(rounding)


def _heads(s: Study, variant: str) -> int:
    return next(m.heads for m in s.models if m.variant == variant)


def _columns(cells: dict[str, str]) -> Iterable[str]:
    """Where 32s and 256s or bytes are the same model, its other column says so."""
    yield cells.get("1", "none within 1 %")
    yield (
        " / ".join(x for x in (cells.get("32"), cells.get("32h") and f"{cells['32h']} with heads out") if x)
        or "as 256s"
    )
    yield cells.get("256", "none within 1 %")
    yield cells.get("bytes", "as width in 32s")


def _labels(s: Study) -> dict[tuple[str, str], str]:
    return {(m.variant, m.quant): m.label for m in s.models}


def _middle(s: Study) -> float:
    return s.ratios[(len(s.ratios) - 1) // 2] if s.ratios else 0.0


def _cell(x: Interval, winner: Winner) -> str:
    return f"{WHO[winner]}: {_percent(x)}"


def _percent(x: Interval) -> str:
    """Of a ratio of speeds."""
    high = f"{x.high - 1:+.0%}" if x.high < WIDE else "anything"
    return f"{x.middle - 1:+.0%} ({x.low - 1:+.0%} to {high})"


def _times(x: float) -> str:
    return f"{x:.2f}×"


def _side(x: float) -> str:
    return "depth" if x >= MARGIN else "width" if x <= 1 / MARGIN else "equal"


def _basis(p: Projection) -> str:
    return p.basis.split(";")[0]


def _what(p: Pair) -> str:
    return f"{p.what} at {p.context} tokens" if p.what == "decode" else f"a prompt of {p.context} tokens"
