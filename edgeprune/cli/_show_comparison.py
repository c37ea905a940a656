"""Methods side by side, as text for a person."""

from __future__ import annotations

from pathlib import Path

from edgeprune.cli._show import number
from edgeprune.cli._terminal import say, table
from edgeprune.comparison import Comparison, difference, ranked


def comparison(c: Comparison, path: Path | None) -> None:
    t = c.calibration
    say(f"{c.model}: chosen on {t.tokens} tokens of {t.name}, measured in {c.precision}")
    rows = []
    for contender in c.contenders:
        times = f"{contender.seconds:.1f}", f"{contender.cpu_seconds:.1f}"
        for k, cut in enumerate(contender.cuts):
            head = ["", "", ""] if k else [contender.metric, *times]
            removed = f"{cut.params_removed / 1e6:.3f}"
            rows.append([*head, str(cut.asked_blocks), removed, cut.removed or "nothing"])
    columns = ["method", "time, s", "CPU, s", "blocks' worth", "M parameters", "removes"]
    table(None, columns, rows, right=(1, 2, 3, 4))
    for i, text in enumerate(c.texts):
        windows = text.tokens // text.context_tokens
        say("")
        say(
            f"{text.name}: {windows} windows of {text.context_tokens} tokens; the whole model's perplexity is"
            f" {number(c.whole_perplexity[i], 4)}"
        )
        for a in range(len(c.contenders[0].cuts)):
            _one(c, a, i)
    if path:
        say(f"wrote {path}")


def _one(c: Comparison, a: int, i: int) -> None:
    """One amount on one text, the least damaging first."""
    order = ranked(c, a, i)
    rows = []
    for contender in order:
        cut = contender.cuts[a]
        d = cut.damage[i]
        more = "" if d.more is None else _more(d.more.mean, d.more.high - d.more.mean)
        kl = f"{d.kl:.4f}" + ("" if d.kl_stderr is None else f" ± {d.kl_stderr:.4f}")
        gap = f"{d.kl - cut.on_calibration.kl:+.4f}"
        rows.append([contender.metric, kl, number(d.perplexity, 4), more, gap])
    than = next((x.cuts[a].damage[i].more.than for x in order if x.cuts[a].damage[i].more), order[0].metric)
    columns = ["method", "KL, nats/token", "perplexity", f"more than {than} (95 %)", "more than on calibration"]
    amount = order[0].cuts[a].asked_blocks
    table(f"{amount} blocks' worth" if amount > 1 else "one block's worth", columns, rows, right=(1, 2, 3, 4))
    say(verdict(c, a, i))


def _more(mean: float, half: float) -> str:
    return "same" if mean == half == 0 else f"{mean:+.4f} ± {half:.4f}"


def verdict(c: Comparison, a: int, i: int) -> str:
    """Who wins, only where chance does not explain it. a, i: position of the amount and of the text."""
    order = ranked(c, a, i)
    same = [x.metric for x in order if x.cuts[a].blocks == order[0].cuts[a].blocks]
    first = same[0] if len(same) == 1 else f"{same[0]} and {len(same) - 1} that remove the same"
    others = [x for x in order if x.metric not in same]
    if not others:
        return f"all {len(same)} remove the same"
    best, after = order[0].cuts[a].damage[i], others[0].cuts[a].damage[i]
    d = difference(after.window_kl, same[0], best.window_kl)
    if d is None:
        return f"least: {first}; a single window says nothing of chance"
    more = f"{d.mean:.4f} nats per token (95 %: {d.low:.4f} to {d.high:.4f})"
    if d.low > 0:
        return f"wins: {first}; {others[0].metric}, the next, does {more} more damage"
    return f"no winner: {first} does least damage, {others[0].metric} {more} more, which may be chance"
