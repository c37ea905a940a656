"""What healing did, on stdout."""

from __future__ import annotations

from pathlib import Path

from edgeprune.cli._terminal import say, table
from edgeprune.healing import Healing, Trained


def healed(h: Healing, out: Path) -> None:
    if h.trained:
        say(_training(h.trained))
    if not h.changed:
        tried = h.trials or h.trained
        say("nothing was changed: no attempt helped on every kind of text" if tried else "nothing was changed")
    elif not h.trained:
        say(f"solved anew, {h.scope}: {', '.join(h.changed)}")
    rows = [
        [k.text, *(f"{x:.2f}" for x in (k.perplexity_whole, k.perplexity_cut, k.perplexity_healed)),
         f"{k.kl_cut:.3f}", f"{k.kl_healed:.3f}"]
        for k in h.kinds
    ]  # fmt: skip
    columns = ["text held aside", "whole", "before" if h.former else "cut", "healed"]
    columns += [f"KL {columns[2]}", "KL healed"]
    table(
        f"perplexity, and KL in nats per token, of {sum(k.windows for k in h.kinds)} windows",
        columns,
        rows,
        (1, 2, 3, 4, 5),
    )
    tokens = h.trained.tokens if h.trained else h.fit_windows * h.text.context_tokens
    say(f"{tokens} tokens, {h.seconds:.0f} s")
    say(f"wrote {out}")


def _training(t: Trained) -> str:
    steps = f"{t.steps} steps" if t.steps == t.planned_steps else f"{t.steps} of {t.planned_steps} steps"
    added = f", {' '.join(t.added)} given back" if t.added else ""
    kept = "" if t.kept is None else f"; kept those of look {t.kept + 1} of {len(t.looks)} at the text held aside"
    if t.part < 1:
        kept = f"; kept {t.part:g} of the way to them, since all of it is worse on some text held aside"
    return f"trained {t.parameters} weights in {steps} of {t.sequences_per_step} sequences{added}{kept}"
