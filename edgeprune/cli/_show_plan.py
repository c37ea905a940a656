"""Plans and what-ifs as text for a person, on stdout. Every estimate says what it rests on."""

from __future__ import annotations

from edgeprune._kv_types import native
from edgeprune._quant_kl import assumes_matrix
from edgeprune.cli._show import number
from edgeprune.cli._terminal import say, table
from edgeprune.fit_table import Cell, FitTable
from edgeprune.types import Alternative, Budget, DeviceProfile, Plan, Prediction
from edgeprune.units import show_bytes
from edgeprune.what_if import Need, WhatIf

FRONT_ROWS = 8


def plan(p: Plan, d: DeviceProfile) -> None:
    say(f"{p.model} on {_where(d, p.mode)}")
    what = (
        f"remove {p.removed}; {len(p.blocks)} of {p.n_blocks_whole} blocks stay"
        if p.removed
        else f"remove nothing: all {p.n_blocks_whole} blocks stay"
    )
    say(f"plan: {p.quant} in {p.runtime} on {p.backend}{_cache(p)}, {what}")
    if p.removed and p.metric is None:
        say("damage: not measured; named by hand, and no scores given know it")
    elif p.removed:
        say(
            f"damage: KL {number(p.damage_kl)} nats per token, perplexity {number(p.whole_perplexity, 4)} →"
            f" {number(p.damage_perplexity, 4)} (measured by `edgeprune score`, {p.metric}; nothing healed)"
        )
    if p.quant_kl is not None:
        given = "prior, with an importance matrix; more without" if assumes_matrix(p.runtime, p.quant) else "prior"
        say(f"quantisation: KL about {number(p.quant_kl)} nats per token ({given})")
    if p.kv_kl:
        say(
            f"KV cache: KL about {number(p.kv_kl)} nats per token (prior); llama.cpp: -ctk {p.kv_type} -ctv {p.kv_type}"
        )
    if p.expected_ppl_ratio is not None and p.expected_kl is not None:
        say(f"expected in all: KL {number(p.expected_kl)} nats per token, perplexity × {p.expected_ppl_ratio:.3f}")
    if p.memory_limit_bytes is not None:
        say(f"memory limit: {show_bytes(p.memory_limit_bytes)}, set by {p.memory_limit_from}")
    whole, cut = p.prediction_whole, p.prediction
    rows = [[label, show(whole), show(cut)] for label, show in _PREDICTED]
    table(f"predicted at context {p.budget.context_tokens} ({cut.basis})", ["", "whole", "plan"], rows)
    if p.alternatives:
        table("also looked at", [*_COLUMNS, "why not"], [_row(a) for a in p.alternatives], right=(3,))
    if len(p.front) > 1:
        shown = _spread(p.front)
        left_out = "" if len(shown) == len(p.front) else f"; {len(shown)} of {len(p.front)}, all with --json"
        title = f"the front: none is beaten in damage, memory and speed at once{left_out}"
        table(title, [*_COLUMNS, "against the plan"], [_row(a) for a in shown], right=(3,))


_COLUMNS = ["runtime", "quant", "KV", "blocks", "memory", "tok/s"]


def _row(a: Alternative) -> list[str]:
    memory = show_bytes(a.prediction.memory_bytes)
    return [a.runtime, a.quant, a.kv_type, str(a.n_blocks), memory, _speed(a.prediction), a.reason]


def _spread(front: tuple[Alternative, ...]) -> list[Alternative]:
    """Evenly over the front, both ends and the plan included."""
    last = len(front) - 1
    at = {round(i * last / (FRONT_ROWS - 1)) for i in range(FRONT_ROWS)}
    at |= {i for i, a in enumerate(front) if a.reason == "the plan"}
    return [a for i, a in enumerate(front) if i in at or last < FRONT_ROWS]


def _where(d: DeviceProfile, mode: str | None) -> str:
    return f"{d.name} ({d.id}{', ' + mode if mode else ''})"


def _cache(p: Plan) -> str:
    return "" if p.kv_type == native(p.runtime, p.quant) else f" with a {p.kv_type} KV cache"


def _speed(p: Prediction) -> str:
    if p.decode_tok_per_s is None:
        return "not known"
    low, high = p.decode_low_tok_per_s, p.decode_high_tok_per_s
    return number(p.decode_tok_per_s) + (
        f" ({number(low)} to {number(high)})" if low is not None and high is not None else ""
    )


_PREDICTED = (
    ("file", lambda p: show_bytes(p.file_bytes)),
    ("weights in memory", lambda p: show_bytes(p.weights_bytes)),
    ("KV cache", lambda p: show_bytes(p.kv_bytes)),
    ("compute buffers", lambda p: show_bytes(p.compute_bytes)),
    ("runtime", lambda p: show_bytes(p.runtime_bytes)),
    ("memory in all", lambda p: show_bytes(p.memory_bytes)),
    ("decode, tokens/s", _speed),
    ("time to first token, s", lambda p: "not known" if p.ttft_s is None else number(p.ttft_s)),
)


# --- what-if ------------------------------------------------------------------------------------


def what_if(w: WhatIf, d: DeviceProfile) -> None:
    shape = f"shape of {w.source}, " if w.source else ""
    say(f"{w.model} ({shape}{w.params / 1e9:.3g} B parameters, {w.n_blocks} blocks) on {_where(d, w.mode)}")
    say(f"memory limit: {show_bytes(w.memory_limit_bytes)}, set by {w.memory_limit_from}; {_asked(w.budget)}")
    rows = [_need(n, w, i == w.best) for i, n in enumerate(w.needs)]
    columns = ["", "runtime", "quant", "KV", "blocks to\nremove", "memory then", "tok/s then", "whole takes"]
    columns += ["perplexity ×\n(removal, prior)", "KL in all,\nnats (prior)"]
    table("to meet the budget", columns, rows, right=(4, 8, 9))
    if w.best is not None:
        n = w.needs[w.best]
        say(f"→ least expected loss: {n.quant} in {n.runtime}, {_removal(n, w)}")
    elif any(n.blocks_to_remove for n in w.needs):
        say("nothing was published on removing so many blocks: expect none of these to be of use")
    say(
        f"losses are priors, not of this model. Removal: {w.basis}. Quantisation: published for Llama 3 8B, scaled by size."
    )
    for text in w.instead:
        say(f"instead: {text}")
    say("for a plan: edgeprune score MODEL -o scores.json, then edgeprune plan MODEL --scores scores.json …")


def _asked(b: Budget) -> str:
    """The limits beside memory."""
    parts = [f"context {b.context_tokens} tokens"]
    parts += [f"file at most {show_bytes(b.max_file_bytes)}"] if b.max_file_bytes is not None else []
    parts += [f"at least {b.min_decode_tok_per_s:g} tok/s"] if b.min_decode_tok_per_s is not None else []
    parts += [f"first token of {b.prompt_tokens} within {b.max_ttft_s:g} s"] if b.max_ttft_s is not None else []
    parts += [f"expected KL at most {b.max_kl:g} nats"] if b.max_kl is not None else []
    parts += [f"expected perplexity at most × {b.max_ppl_ratio:g}"] if b.max_ppl_ratio is not None else []
    return ", ".join(parts)


def _need(n: Need, w: WhatIf, best: bool) -> list[str]:
    p, none = n.prediction, n.blocks_to_remove is None
    ratio = "" if n.blocks_to_remove == 0 or none else "not published"
    if n.blocks_to_remove and n.removal_ratio is not None:
        ratio = f"{n.removal_ratio:.2f} ({n.removal_ratio_low:.2f} to {n.removal_ratio_high:.1f})"
    return [
        "→" if best else "",
        n.runtime,
        n.quant,
        n.kv_type,
        "no number" if none else f"{n.blocks_to_remove} of {w.n_blocks}",
        "" if none else show_bytes(p.memory_bytes),
        "" if none else _speed(p),
        show_bytes(n.whole_memory_bytes),
        ratio,
        "" if n.expected_kl is None else f"{n.expected_kl:.2g}" + (", too much" if n.meets_quality is False else ""),
    ]


def _removal(n: Need, w: WhatIf) -> str:
    if not n.blocks_to_remove:
        return "all blocks stay"
    return f"{n.blocks_to_remove} of {w.n_blocks} blocks go ({n.blocks_to_remove / w.n_blocks:.0%})"


# --- fit ----------------------------------------------------------------------------------------


def fit(t: FitTable) -> None:
    shape = f", shape of {t.source}" if t.source else ""
    say(f"{t.model}: {t.n_blocks} blocks, {t.params / 1e9:.3g} B parameters{shape}; {_asked(t.budget)}")
    rows = [[r.device, f"{r.memory_limit_bytes / 1e9:.3g}", *(_mark(c, t) for c in r.cells)] for r in t.rows]
    names = [
        f"{c.runtime}\n{c.quant}" if i == _first(t, c.runtime) else f"\n{c.quant}" for i, c in enumerate(t.columns)
    ]
    table("blocks to remove", ["\ndevice", "memory,\nGB", *names], rows, right=tuple(range(1, len(names) + 2)))
    say(
        f"whole: nothing has to go. 3!: more than {t.most_published:.0%} of the blocks, beyond what was ever published. "
        "no: not even one block fits. -: no such runtime."
    )


def _first(t: FitTable, runtime: str) -> int:
    return next(i for i, c in enumerate(t.columns) if c.runtime == runtime)


def _mark(c: Cell | None, t: FitTable) -> str:
    if c is None:
        return "-"
    if not c.blocks_to_remove:
        return "no" if c.blocks_to_remove is None else "whole"
    return f"{c.blocks_to_remove}{'!' if c.blocks_to_remove > t.most_published * t.n_blocks else ' '}"
