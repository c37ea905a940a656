"""Records as text for a person, on stdout. Facts only; every estimate says what it rests on."""

from __future__ import annotations

import statistics
from pathlib import Path

from edgeprune.cli._terminal import say, table
from edgeprune.types import (
    Artifact,
    Measurement,
    ModelSpec,
    Plan,
    Quality,
    Scores,
)
from edgeprune.units import show_bytes


def number(x: float | None, digits: int = 3) -> str:
    return "not measured" if x is None else f"{x:.{digits}g}" if abs(x) < 1000 else f"{x:.0f}"


def model(s: ModelSpec) -> None:
    from edgeprune.width_plan import sizes

    kv, w = s.kv_elements_per_token, sizes(s)
    rows = [
        ["family", f"{s.family} ({s.model_type}, {s.format})"],
        [
            "blocks",
            f"{s.n_blocks}, each {s.blocks[0].attn.params / 1e6:.2f} M attention"
            f" + {s.blocks[0].ffn.params / 1e6:.2f} M feed-forward parameters",
        ],  # noqa: E501
        [
            "width",
            f"{w['stream']}, feed-forward {w['feed-forward']}, {w['heads']} heads of {s.head_dim}, {w['groups']} for keys and values",
        ],  # noqa: E501
        ["parameters", f"{s.params / 1e6:.1f} M"],
        ["vocabulary", f"{s.vocab_size}, embeddings {'tied' if s.tied_embeddings else 'separate'}"],
        ["context", f"{s.context_length_tokens} tokens"],
        ["windows", _windows(s)],
        [
            "stored as",
            ", ".join(f"{k} {v / 1e6:.1f} M" for k, v in s.dtypes.items()) + f"; {show_bytes(s.weight_bytes)}",
        ],
        ["KV cache", f"{kv} numbers per token: {show_bytes(2 * kv)} at F16, {show_bytes(4 * kv)} at F32"],
        ["fingerprint", s.fingerprint],
    ]
    table(s.name, ["", ""], rows)


def _windows(s: ModelSpec) -> str:
    found = {b.sliding_window_tokens for b in s.blocks}
    if found == {None}:
        return "none"
    n = sum(b.sliding_window_tokens is not None for b in s.blocks)
    return f"{n} of {s.n_blocks} blocks see {max(w for w in found if w)} tokens"


def scores(s: Scores, path: Path) -> None:
    say(f"{s.model}: {s.metric} on {s.text.tokens} tokens of {s.text.name}")
    rows = [
        [str(k), str(len(step.blocks)), _gone(s, k), number(step.kl), number(step.perplexity, 4)]
        for k, step in enumerate(s.path)
    ]
    table(None, ["step", "blocks", "removed", "KL, nats/token", "perplexity"], rows, right=(0, 1, 3, 4))
    say(f"wrote {path}")


def _gone(s: Scores, k: int) -> str:
    from edgeprune.blocks import removed_sublayers

    before = set(removed_sublayers(s.path[k - 1].blocks, s.n_blocks)) if k else set()
    new = [g for g in removed_sublayers(s.path[k].blocks, s.n_blocks) if g not in before]
    return " ".join(f"{kind}{i}" for kind, i in new)


def pruned(out: Path, before: ModelSpec, after: ModelSpec, p: Plan) -> None:
    say(
        f"removed {p.removed or 'nothing'}: {before.params / 1e6:.1f} M →"
        f" {after.params / 1e6:.1f} M parameters, {show_bytes(after.weight_bytes)}"
    )  # noqa: E501
    say(f"wrote {out}")


def thinner(out: Path, before: ModelSpec, after: ModelSpec) -> None:
    from edgeprune.width_plan import sizes

    old, new = sizes(before), sizes(after)
    changed = [f"{what} {old[what]} → {new[what]}" for what in old if old[what] != new[what]]
    say(
        f"{', '.join(changed) or 'nothing removed'}: {before.params / 1e6:.1f} M → {after.params / 1e6:.1f} M parameters, "
        f"{show_bytes(after.weight_bytes)}"
    )
    say(f"wrote {out}")


def artifact(a: Artifact) -> None:
    say(f"{a.format} {a.quant}: {a.n_blocks} blocks, {show_bytes(a.bytes)}, sha256 {a.sha256}")
    if a.mean_kl is not None:
        say(
            f"loaded and compared with its source: KL {a.mean_kl:.2g} nats per token, largest logit difference {number(a.max_logit_error)}"
        )
    say(f"wrote {a.path}")


def measurements(found: list[Measurement], theirs: list[dict]) -> None:
    rows = []
    for m in found:
        rates = [_rate(m.workload.n_prompt, m.prefill_samples_ns), _rate(m.workload.n_gen, m.decode_samples_ns)]
        rows.append([m.artifact, f"{m.runtime} {m.backend}", str(m.n_threads), *rates, show_bytes(m.memory_bytes)])
    for r in theirs:
        kind = f"{r['avg_ts']:.1f} ± {r['stddev_ts']:.1f}"
        rows.append(["", "llama-bench", str(r["n_threads"]), *((kind, "") if r["n_prompt"] else ("", kind)), ""])
    w = found[0].workload
    columns = ["artifact", "runtime", "threads", f"pp{w.n_prompt} tok/s", f"tg{w.n_gen} tok/s", "memory"]
    table(None, columns, rows, right=(2, 3, 4))
    say("tok/s: mean ± sample standard deviation; memory: peak RSS less the interpreter's own before loading.")


def _rate(n: int, samples: tuple[int, ...]) -> str:
    if not samples:
        return "not measured"
    rates = [n * 1e9 / s for s in samples]
    return f"{statistics.fmean(rates):.1f} ± {statistics.stdev(rates) if len(rates) > 1 else 0:.1f}"


def qualities(found: list[Quality]) -> None:
    rows = [
        [
            q.subject,
            q.runtime,
            number(q.perplexity, 4),
            "" if q.kl is None else f"{q.kl:.4f}" + ("" if q.kl_stderr is None else f" ± {q.kl_stderr:.4f}"),
            "" if q.top1_agreement is None else f"{q.top1_agreement:.1%}",
        ]  # noqa: E501
        for q in found
    ]
    table(None, ["subject", "runtime", "perplexity", "KL, nats/token", "same top token"], rows, right=(2, 3, 4))
    t = found[0].text
    say(
        f"{t.tokens} tokens of {t.name}, windows of {t.context_tokens}, stride {t.stride_tokens}, sha256 {t.sha256[:16]}"
    )
