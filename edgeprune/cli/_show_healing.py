"""What healing did, on stdout."""

from __future__ import annotations

from pathlib import Path

from edgeprune.cli._terminal import say, table
from edgeprune.healing import Healing


def healed(h: Healing, out: Path) -> None:
    if h.changed:
        strengths = ", ".join(f"{c.sublayer} (λ {c.strength:g})" if c.strength else c.sublayer for c in h.changed)
        say(f"solved anew, {h.scope}: {strengths}")
    else:
        say("nothing was changed: no attempt helped on every kind of text" if h.trials else "nothing was changed")
    rows = [
        [k.text, *(f"{x:.2f}" for x in (k.perplexity_whole, k.perplexity_cut, k.perplexity_healed)),
         f"{k.kl_cut:.3f}", f"{k.kl_healed:.3f}"]
        for k in h.kinds
    ]  # fmt: skip
    columns = ["text held aside", "whole", "cut", "healed", "KL cut", "KL healed"]
    table(
        f"perplexity, and KL in nats per token, of {sum(k.windows for k in h.kinds)} windows",
        columns,
        rows,
        (1, 2, 3, 4, 5),
    )
    say(f"{h.fit_windows * h.text.context_tokens} tokens, {h.seconds:.0f} s")
    say(f"wrote {out}")
