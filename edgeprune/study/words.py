"""The sentences of the study's page."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from edgeprune.report.text import percent, runtime_name
from edgeprune.study.explain import PARTS
from edgeprune.study.figures import name
from edgeprune.study.record import Pair, Study
from edgeprune.study.tables import WHO, explained, gain, kind, model, signed, span, state
from edgeprune.study.verdict import MARGIN

AGAINST = {
    "layers": "widths of each layer's own, as published", "1": "an odd width", "32": "widths in 32s",
    "32h": "widths in 32s with heads out", "256": "widths in 256s", "bytes": "widths of equal bytes",
}  # fmt: skip
REASONS = {
    "bytes": "bytes of weights", "fallback": "larger types that the width forces", "blocks": "the fixed cost of blocks",
    "attention": "attention and its cache", "unexplained": "what the terms don't know (kernels at such widths, or noise)",
}  # fmt: skip


def headline(s: Study) -> str:
    """Who is ahead of what in most states of decode that were measured, and between which ends."""
    told: dict[tuple[str, bool], list[str]] = {}
    for key, mine in _by_kind(s).items():
        side = next((w for w in ("depth", "width") if 2 * sum(p.winner == w for p in mine) > len(mine)), "")
        ends = sorted(p.measured.middle for p in mine)
        mixed = side != "" and ends[0] < 1 < ends[-1]  # the other side is ahead somewhere
        told.setdefault((side, mixed), []).append(f"{_against(key)} ({span([signed(e) for e in ends])})")
    said = {
        ("depth", False): "faster than {}", ("depth", True): "mostly faster than {}", ("width", False): "slower than {}",
        ("width", True): "mostly slower than {}", ("", False): "without a clear lead over {}",
    }  # fmt: skip
    text = "; ".join(said[side].format(_list(told[side])) for side in said if side in told)
    return f"Fewer blocks decode {text}." if text else "Nothing was measured."


def tone(s: Study) -> str:
    mine = [p for p in s.pairs if p.what == "decode"]
    lost = any(p.winner == "width" for p in mine)
    return "" if not mine else "warn" if lost or any(p.winner in ("equal", "open") for p in mine) else "good"


def question(s: Study) -> str:
    ratios = _list([percent(r) for r in s.ratios])
    only = "Speed only: random weights of this model's true shape; nothing here says what removal does to its answers. "
    return (
        f"{only if s.speed_only else ''}Of the blocks' parameters {ratios} removed, once as whole blocks (depth) and once as heads "
        "and feed-forward channels of every block (width), until both have the same parameters within 1 %, or the same bytes on "
        "disk. Which answers faster, and why?"
    )


def verdicts(s: Study) -> Iterator[str]:
    """A sentence per kind of width, over all decode."""
    for key, mine in _by_kind(s).items():
        counts = {w: sum(p.winner == w for p in mine) for w in WHO}
        ends = sorted(p.measured.middle for p in mine)
        said = {
            "depth": "depth is ahead in {}",
            "width": "width in {}",
            "equal": "equal in {}",
            "open": "not settled in {}",
        }
        told = ", ".join(said[w].format(n) for w, n in counts.items() if n)
        yield f"Against {_against(key)}, depth decodes at {_times(ends)} times the speed; of {len(mine)}, {told}."
    yield from _damages(s)


def _damages(s: Study) -> Iterator[str]:
    """Of a real model, for each kind of width: how much more damage depth does at equal size, neither or both healed."""
    kl = {(q.variant, q.quant, q.healed): q.kl for q in s.qualities}
    judged = f"KL on {texts}" if (texts := _texts(s)) else "KL"
    for key, mine in _by_kind(s).items():
        found: dict[bool, str] = {}
        for healed in (False, True):
            both = {tuple(kl.get((v, p.quant, healed)) for v in (p.depth, p.width)) for p in mine}
            if ratios := sorted(a / b for a, b in both if a and b):
                found[healed] = f"{_times(ratios)} times"
        if False in found:
            more = f"; once both are healed {found[True]}" if True in found else ""
            yield f"At equal size depth leaves {found[False]} the damage of {_against(key)}{more} ({judged})."


def _texts(s: Study) -> str:
    return _list(list(dict.fromkeys(q.text for q in s.qualities if q.text)))


def _times(ends: Sequence[float]) -> str:
    return span([f"{e:.2f}" for e in ends])


def lost(s: Study) -> Iterator[str]:
    """Where width is faster at equal size, and at equal damage."""
    for p in s.pairs:
        if p.winner == "width":
            found = gain(p.measured, p.winner, "")
            yield (
                f"{p.quant}, {state(s, p)} tokens, {percent(p.ratio)} removed, against {name(model(s, p.width))}: {found.text} "
                f"({found.sub.split(', ', 1)[1]})."
            )
    for e in s.equal_quality:
        if e.winner == "width":
            healed = "both healed" if e.healed else "neither healed"
            m, found = model(s, e.width), gain(e.ratio, e.winner, "").text
            yield f"{e.quant}, {percent(m.ratio)} removed, at the damage of {name(m)}, {healed}: {found}."


def reasons(s: Study) -> Iterator[str]:
    """For each kind of width what most of the difference is."""
    states = [(kind(s, p), a, b) for p, a, b in explained(s)]
    for key in _by_kind(s):
        mine = [(a, b) for k, a, b in states if k == key]
        if not mine:
            continue
        share = {k: statistics.fmean((b.parts[k] - a.parts[k]) / a.measured_s for a, b in mine) for k in PARTS}
        shown = (k for k in sorted(share, key=lambda k: -abs(share[k])) if abs(share[k]) >= 0.001)
        told = ", ".join(f"{REASONS[k]} {100 * share[k]:+.1f} %".replace("-", "−") for k in shown)
        against = _against(key)
        whole = f"{100 * sum(share.values()):+.1f} %".replace("-", "−")
        over = f", the mean of {len(mine)} states" if len(mine) > 1 else ""
        yield f"{against[0].upper()}{against[1:]}: a token takes {whole} against depth's{over}: {told}."


def foresight(s: Study) -> str:
    if not s.cells:
        return "Nothing was measured."
    errors = sorted(abs(c.predicted_s / c.measured_s - 1) for c in s.cells)
    known = [p for p in s.pairs if p.predicted]
    right = sum(_side(p.predicted) == _side(p.measured.middle) for p in known)
    inside = sum(p.measured.low <= p.predicted <= p.measured.high for p in known)
    return (
        f"Each model's time was predicted by a fit of the others: {percent(statistics.median(errors))} off in the middle, "
        f"{percent(errors[-1])} at worst, over {len(errors)} states. Of {len(known)} pairs it names the measured outcome (depth, width or "
        f"equal within {100 * (MARGIN - 1):.0f} %) in {right}; in {inside} the ratio lies inside the measured interval."
    )


def crossings(s: Study) -> Iterator[str]:
    units = {"context": "tokens of context", "bandwidth": "times this machine's bandwidth", "model": "parameters"}
    for c in s.curves:
        if c.even_at is not None and c.axis in units:
            ahead = "depth" if c.y[-1].middle > 1 else "width"
            where = c.device if c.axis != "bandwidth" else "memory made faster"
            yield f"{where}, {c.quant}, against {c.width}: even at about {c.even_at:,.3g} {units[c.axis]}; beyond, {ahead} is ahead."


def missing(s: Study) -> Iterator[str]:
    yield from s.left_out
    if s.speed_only:
        yield "Quality: the weights are random. Which removal hurts less is not said here, so neither is a verdict at equal quality."
    elif not any(q.tasks for q in s.qualities):
        yield "Zero-shot tasks: not asked for (--tasks)."
    if texts := _texts(s):
        yield f"Damage on other texts than {texts} (--text): they may rank models otherwise; widths do best on what they were fitted to."
    measured = {m.runtime for m in s.models}
    for runtime in ("llamacpp", "onnxruntime"):
        if runtime not in measured:
            yield f"{runtime_name(runtime)}: no quantisation of it was asked for."
    if "llamacpp" in measured and not s.llama_bench:
        yield "llama-bench on the same files: not asked for (--llama-bench)."
    if len(s.threads) == 1:
        yield f"Other numbers of threads than {s.threads[0]}: not asked for (--threads)."
    yield "Other machines: what is marked predicted or prior was not measured there."


def method(s: Study) -> str:
    threads = _list([str(n) for n in s.threads])
    return (
        f"Every model in a process of its own, {threads} thread{'' if s.threads == (1,) else 's'}, batch 1, random tokens. Models to "
        f"be compared are open at the same time and take turns, forwards and backwards, {s.repetitions} repetitions: a prompt of "
        f"{s.n_prompt} tokens; {s.n_gen} tokens one by one after each context, which is filled once and gone back to. A repetition "
        "counts as its median token. Ratios are of the same repetition. Raw samples are in samples.jsonl."
    )


def _by_kind(s: Study) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {key: [] for key in AGAINST}
    for p in s.pairs:
        if p.what == "decode":
            found.setdefault(kind(s, p), []).append(p)
    return {key: mine for key, mine in found.items() if mine}


def _against(key: str) -> str:
    return AGAINST.get(key, f"widths in {key}s")


def _side(x: float) -> str:
    return "depth" if x >= MARGIN else "width" if x <= 1 / MARGIN else "equal"


def _list(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
