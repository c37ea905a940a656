"""The tables of the study's page."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from edgeprune.evaluation import telling
from edgeprune.report.doc import Table
from edgeprune.report.text import Cell as Box
from edgeprune.report.text import Kind, Num, figure, missing, num, percent
from edgeprune.study.explain import PARTS
from edgeprune.study.figures import main_quant, middle, name
from edgeprune.study.record import Cell, Interval, Model, Pair, Projection, Quality, Study, Winner
from edgeprune.study.verdict import MARGIN

Line = tuple[str, str, int, dict[tuple[str, str], Box]]  # where, quantisation, context, cell by kind and method
WIDE = 5.0  # a ratio beyond which an interval's end says nothing
WHO = {"depth": "depth", "width": "width", "equal": "equal", "open": "not settled"}
KINDS = {"layers": "width per layer", "1": "odd width", "32": "in 32s", "32h": "in 32s, heads out", "256": "in 256s"}
KINDS |= {"bytes": "equal bytes"}


def verdict(s: Study) -> Table:
    """This machine, measured, then each class of devices, foretold: the middle ratio."""
    rows = [*_measured(s), *_foretold(s)]
    order = [*KINDS]
    found = dict.fromkeys(k for *_, cells in rows for k in cells)
    shown = sorted(found, key=lambda k: (order.index(k[0]) if k[0] in order else len(order), k))
    return Table(
        ("where", *(KINDS.get(k, f"in {k}s") + (f" ({method})" if method else "") for k, method in shown)),
        tuple(
            (_where(where, f"{quant}, after {context:,}"), *(cells.get(k, Num("–", tone="mute")) for k in shown))
            for where, quant, context, cells in rows
        ),
        f"How much faster a token is with fewer blocks than with thinner ones, {percent(middle(s))} of the blocks' parameters removed; "
        "minus: slower. Below it who is ahead and the interval, 95 % of what was measured, 90 % of what is predicted. Equal: "
        f"within {100 * (MARGIN - 1):.0f} % either way. Not settled: the interval leaves it open. –: no such model within 1 % of the size.",
    )


def _where(where: str, what: str) -> Num:
    name, _, device = where.partition(": ")
    return Num(name, sub=f"{device}, {what}" if device else what)


def _measured(s: Study) -> Iterator[Line]:
    mine = [p for p in s.pairs if (p.what, p.ratio, p.threads) == ("decode", middle(s), s.threads[-1])]
    for quant, context in dict.fromkeys((p.quant, p.context) for p in mine):
        here = [p for p in mine if (p.quant, p.context) == (quant, context)]
        yield "this machine", quant, context, {_column(s, p): gain(p.measured, p.winner, "measured") for p in here}


def _foretold(s: Study) -> Iterator[Line]:
    """One device of every class, the quantisation that there is room for, the first and the last context."""
    mine = [p for p in s.projections if p.ratio == middle(s) and p.quant == main_quant(s)]
    for of_class in dict.fromkeys(p.device_class for p in mine):
        device = next(p.device for p in mine if p.device_class == of_class)
        for context in dict.fromkeys((min(s.contexts), max(s.contexts))):
            here = [p for p in mine if (p.device, p.context) == (device, context)]
            cells = {_column(s, p): gain(p.predicted, p.winner, basis(p)) for p in here}
            if here:
                yield f"{of_class}: {device}", main_quant(s), context, cells


def pairs(s: Study) -> Table:
    labels = _labels(s)
    rows = (
        (
            labels[p.width, p.quant], percent(p.ratio), p.quant, state(s, p), num(p.depth_tok_per_s, "measured"),
            num(p.width_tok_per_s, "measured"), gain(p.measured, p.winner, "measured"),
            Num(signed(p.predicted), "predicted") if p.predicted else Num("–", tone="mute"),
        )
        for p in s.pairs
    )  # fmt: skip
    return Table(
        ("against", "removed", "quantisation", "state", "depth, tokens/s", "width, tokens/s", "depth is", "predicted"),
        tuple(rows),
        "Repetitions side by side in the same minutes, with the 95 % interval of their mean ratio. Predicted: by a fit that saw "
        "neither model.",
    )


def models(s: Study) -> Table:
    speed = {(c.variant, c.quant, c.context): 1 / c.measured_s for c in s.cells if c.threads == s.threads[-1]}
    order = list(dict.fromkeys(m.quant for m in s.models))
    rows = (
        (
            m.label, m.quant, f"{m.params / 1e6:,.0f} M", _mb(m.file_bytes), _mb(m.memory_bytes),
            *(num(speed.get((m.variant, m.quant, c)), "measured") for c in s.contexts),
        )
        for m in sorted(s.models, key=lambda m: order.index(m.quant))
    )  # fmt: skip
    columns = ("model", "quantisation", "parameters", "file, MB", "memory, MB")
    return Table(
        (*columns, *(f"tokens/s after {c:,}" for c in s.contexts)),
        tuple(rows),
        "Files as they were measured; memory is what one adds to a process.",
    )


def stock(s: Study) -> Table | None:
    """llama-bench beside ours, with nothing in the context."""
    rates = {(x.variant, x.quant): x for x in s.llama_bench}
    if not rates:
        return None
    mine = {(c.variant, c.quant, c.context): 1 / c.measured_s for c in s.cells if c.threads == s.threads[-1]}
    rows = []
    for m in s.models:
        if found := rates.get((m.variant, m.quant)):
            of_depth = next((x for x in s.models if (x.kind, x.ratio, x.quant) == ("depth", m.ratio, m.quant)), None)
            deep = of_depth and rates.get((of_depth.variant, m.quant))
            ratio = deep.decode_tok_per_s / found.decode_tok_per_s if deep and m.kind == "width" else None
            rows.append(
                (
                    name(m), m.quant, num(mine.get((m.variant, m.quant, 0)), "measured"), num(found.decode_tok_per_s, "measured"),
                    num(found.prefill_tok_per_s, "measured"), signed(ratio) if ratio else "",
                )
            )  # fmt: skip
    return Table(
        (
            "model",
            "quantisation",
            "decode here, tokens/s",
            "llama-bench's",
            f"llama-bench's prompt of {s.n_prompt:,}",
            "depth is",
        ),
        tuple(rows),
        "The same files in a real llama-bench, one after another; ours took turns.",
        "Beside llama-bench",
    )


def why(s: Study) -> Table:
    labels = _labels(s)
    rows = (
        (
            labels[p.width, p.quant], p.quant, state(s, p),
            *(f"{1e3 * (b.parts[k] - a.parts[k]):+.2f}".replace("-", "−") for k in PARTS),
            Num(f"{1e3 * (b.measured_s - a.measured_s):+.2f}".replace("-", "−"), "measured"),
        )
        for p, a, b in explained(s)
    )  # fmt: skip
    return Table(
        (
            "against",
            "quantisation",
            "state",
            "weights",
            "larger types",
            "blocks",
            "attention",
            "not explained",
            "in all",
        ),
        tuple(rows),
        "Milliseconds per token that the thinner model takes more than the one with fewer blocks; minus: less. Larger types are "
        "those that the runtime stores a width in which its quantisation's blocks don't divide.",
    )


def projections(s: Study) -> Table:
    labels = _labels(s)
    rows = (
        (
            p.device, labels[p.width, p.quant], p.quant, f"{p.context:,}", num(p.depth_tok_per_s, basis(p)),
            gain(p.predicted, p.winner, basis(p)),
        )
        for p in s.projections
        if p.ratio == middle(s) and p.quant == main_quant(s)
    )  # fmt: skip
    return Table(
        ("device", "against", "quantisation", "context", "depth, tokens/s", "depth is"),
        tuple(rows),
        f"Nothing here was measured: {main_quant(s)}, {percent(middle(s))} removed, by the device's own calibration where its profile has "
        "one, else by its backend's prior. Every ratio and quantisation is in study.json.",
    )


def quality(s: Study) -> Table:
    rows, texts = [], sorted({q.text for q in s.qualities if q.text})
    on = f": {', '.join(texts)}" if texts else ""
    for q in s.qualities:
        kl = num(q.kl, "measured", sub=f"± {figure(q.kl_stderr)}" if q.kl_stderr else "")
        rows.append((_judged(s, q), _removed(s, q.variant), q.quant, num(q.perplexity, "measured"), kl))
    return Table(
        ("model", "removed", "quantisation", "perplexity", "KL, nats/token"),
        tuple(rows),
        f"On text that nothing was chosen by{on}. KL is from the whole, unquantised model; ± one standard error.",
    )


def zeroshot(s: Study) -> Table | None:
    """Each task's length-normalised accuracy where it has one, else its accuracy."""
    found = [(q, {(t.task, t.metric): t for t in q.tasks}) for q in s.qualities if q.tasks]
    if not found:
        return None
    shown = telling(k for _, scores in found for k in scores)
    rows = []
    for q, scores in found:
        cells = [
            num(t.value, "measured", sub=f"± {figure(t.stderr)}" if t.stderr else "") if (t := scores.get(k)) else missing()
            for k in shown
        ]  # fmt: skip
        known = [scores[k].value for k in shown if k in scores]
        mean = num(statistics.fmean(known), "measured") if len(known) == len(shown) else missing()
        rows.append((_judged(s, q), _removed(s, q.variant), q.quant, *cells, mean))
    documents = sorted({t.n_documents for _, scores in found for t in scores.values()} - {None})
    asked = f", {span([str(n) for n in documents])} documents each" if documents else ""
    return Table(
        ("model", "removed", "quantisation", *(f"{task}, {metric}" for task, metric in shown), "mean"),
        tuple(rows),
        f"lm-eval's tasks in each file's own runtime{asked}; ± one standard error.",
        "Zero-shot tasks",
    )


def _judged(s: Study, q: Quality) -> str:
    return name(model(s, q.variant)) + (", healed" if q.healed else "")


def _removed(s: Study, variant: str) -> str:
    ratio = model(s, variant).ratio
    return percent(ratio) if ratio else "nothing"


def equal_quality(s: Study) -> Table:
    labels = _labels(s)
    rows = (
        (
            labels[e.width, e.quant], _removed(s, e.width), e.quant, "both" if e.healed else "neither", num(e.kl, "measured"),
            num(e.width_tok_per_s, "measured"), num(e.depth_tok_per_s, ""), gain(e.ratio, e.winner, ""),
        )
        for e in s.equal_quality
    )  # fmt: skip
    return Table(
        (
            "thinner model",
            "removed",
            "quantisation",
            "healed",
            "KL",
            "its tokens/s",
            "depth at that KL, tokens/s",
            "depth is",
        ),
        tuple(rows),
        "At equal damage instead of equal size: depth's speed is read off between the models that were measured, on the line "
        "through the whole model and those with fewer blocks. The interval is of the KL's standard error. A thinner model with "
        "more or less damage than any depth model is left out. Ratios of removal whose files are too large to be open together were "
        "timed minutes apart: then a drift of the machine is in these figures, unlike in those side by side.",
    )


def explained(s: Study) -> Iterator[tuple[Pair, Cell, Cell]]:
    cells = {(c.variant, c.runtime, c.quant, c.threads, c.context): c for c in s.cells}
    for p in s.pairs:
        a, b = (cells.get((v, p.runtime, p.quant, p.threads, p.context)) for v in (p.depth, p.width))
        if p.what == "decode" and a and b:
            yield p, a, b


def kind(s: Study, p: Pair | Projection) -> str:
    """Which of KINDS a pair's width is of."""
    if p.equal != "parameters":
        return "bytes"
    mine = model(s, p.width)
    alike = (m for m in s.models if (m.ratio, m.rounding, m.equal) == (p.ratio, mine.rounding, "parameters"))
    fewer = any(m.kind == "width" and m.method == mine.method and m.heads > mine.heads for m in alike)
    return "layers" if mine.rounding == 0 else f"{mine.rounding}h" if fewer else str(mine.rounding)


def model(s: Study, variant: str) -> Model:
    return next(m for m in s.models if m.variant == variant)


def gain(x: Interval, winner: Winner, how: Kind) -> Num:
    """Of a ratio of speeds."""
    high = signed(x.high) if x.high < WIDE else "anything"
    return Num(signed(x.middle), how, f"{WHO[winner]}, {signed(x.low).removesuffix(' %')} to {high}")


def signed(x: float) -> str:
    """1.31 -> "+31 %"."""
    return f"{100 * (x - 1):+.0f} %".replace("-", "−").replace("+0 %", "0 %").replace("−0 %", "0 %")


def basis(p: Projection) -> Kind:
    return "prior" if p.basis.startswith("prior") else "predicted"


def span(ends: Sequence[str]) -> str:
    """The first and the last, as one where they read alike."""
    return " to ".join(dict.fromkeys((ends[0], ends[-1])))


def state(s: Study, p: Pair) -> str:
    threads = f", {p.threads} thread{'' if p.threads == 1 else 's'}" if len(s.threads) > 1 else ""
    return (f"decode after {p.context:,}" if p.what == "decode" else f"prompt of {p.context:,}") + threads


def _column(s: Study, p: Pair | Projection) -> tuple[str, str]:
    """A pair's kind of width, and its method where there are several."""
    methods = {m.method for m in s.models if m.kind == "width"}
    return kind(s, p), model(s, p.width).method if len(methods) > 1 else ""


def _mb(n: int | None) -> Num:
    return Num(f"{n / 1e6:,.0f}", "measured") if n else missing()


def _labels(s: Study) -> dict[tuple[str, str], str]:
    return {(m.variant, m.quant): name(m) for m in s.models}
