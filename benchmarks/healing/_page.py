"""The README, from the results alone."""

from __future__ import annotations

import math
from typing import Any

import _trained

ASKED = (1 / 2, 1 / 3)  # of the damage won back in closed form, on the first text and on the others

HEAD = """# What healing wins back

```
python benchmarks/healing/run.py            # --help: other models, texts, amounts; --redraw: this page again
```

{model}, weights in {precision}. Judged on {texts}; healed by {kinds}. Nothing was fitted to the judging texts{seen}, and no
healing here costs anything at run time: same tensors, same shapes, same bytes.

*won back*: the part of the cut's damage in log perplexity that is gone, (loss of the cut − loss healed) / (loss of the cut −
loss of the whole model). 100 % is the whole model, 0 % nothing won.
"""

SEEN = """ themselves; of WikiText-2
the validation part heals and the test part judges, so that is a kind that was seen, and the others are not"""

AGAINST = """![won back against calibration tokens](curve.png)

Dashed: what healing in closed form is asked for, half of the damage on the first text and a third on the others.
"""

NOTES = """## How the numbers are made

- One walk through the model per row: solved on the calibration windows, judged on windows of {context} tokens from the start of
  each text. KL is KL(whole ‖ it), nats per token.
- What is shown is what `edgeprune heal` would keep: the scope with the least KL on calibration windows held aside that is worse on
  no kind of them, or else the cut as it is.
- ours is the stored path of `edgeprune score`, chosen by KL before healing; ours-after-heal chooses among the same search's best
  cuts by KL after a refit (`score --after-heal refit`, 24 windows of the installed texts and the model's own, every other one
  heals); cosine_span is LLM-Streamline's choice of neighbours.
- λ and μ are strengths of the refit's ridge, of each input's own scale and of the mean scale (edgeprune/healers/refit.py).
- Processor time is of the walk, all methods of the same tokens together, with its judging, on {machine}.
"""


def page(results: dict[str, Any], trained: dict[str, Any] | None) -> str:
    rows, names = results["rows"], [t["name"] for t in results["texts"]]
    most = max((len(r["kinds"]) for r in rows), default=0)
    kinds = next((r["kinds"] for r in rows if len(r["kinds"]) == most), [])
    seen = SEEN if any(k.startswith("wikitext2-valid") for k in kinds) else ""
    about = {"texts": _trained.told(results["texts"]), "kinds": ", ".join(kinds), "seen": seen}
    parts = [HEAD.format(model=results["model"], precision=results["precision"], **about)]
    parts.append(AGAINST if len({r["tokens"] for r in rows}) > 1 else "")
    most_text = _most_of_all(rows)
    parts.append(_verdict([r for r in rows if r["method"] == rows[0]["method"] and r["windows"] >= most_text]))
    for amount in sorted({r["blocks"] for r in rows}):
        here = [r for r in rows if r["blocks"] == amount]
        parts.append(f"## {amount} blocks out\n\n" + _table([r for r in here if r["windows"] == most_text], names))
        curve = sorted((r for r in here if r["method"] == rows[0]["method"]), key=lambda r: (r["paths"], r["tokens"]))
        if len({r["tokens"] for r in curve}) > 1:
            parts.append("Against calibration tokens:\n\n" + _table(curve, names))
    if trained:
        parts.append(_trained.section(trained["cuts"]))
    machine = results["machine"]["host"].get("cpu") or "a machine not named"
    parts.append(NOTES.format(context=results["context"], machine=machine))
    return "\n".join(parts)


def _most_of_all(rows: list[dict[str, Any]]) -> int:
    """The greatest amount of text, windows, that every cut was healed by."""
    cuts: dict[int, set[str]] = {}
    for r in rows:
        cuts.setdefault(r["windows"], set()).add(r["cut"])
    every = set().union(*cuts.values())
    return max((n for n, found in cuts.items() if found == every), default=0)


def _verdict(rows: list[dict[str, Any]]) -> str:
    """Of what was asked of a method, how much is there, by each amount of text."""
    met: dict[int, list[bool]] = {}
    for r in sorted(rows, key=lambda r: r["windows"]):
        met.setdefault(r["windows"], []).append(all(won_back(j) >= ASKED[t > 0] for t, j in enumerate(r["judged"])))
    told = ", ".join(
        f"with {windows} windows of text for {sum(each)} of {len(each)} cuts" for windows, each in met.items()
    )
    return f"Asked of {rows[0]['method']}: half of the damage on the first text, a third on the others. Met {told}.\n"


def _table(rows: list[dict[str, Any]], names: list[str]) -> str:
    lines = [
        "| removed | method | tokens | "
        + " | ".join(f"{n}: perplexity | won back | KL" for n in names)
        + " | processor s |"
    ]
    lines += ["|---|---|---|" + "---|---|---|" * len(names) + "---|"]
    for r in rows:
        cells = [f"{r['removed']} ({', '.join(r['paths'])})", _method(r), str(r["tokens"])]
        for j in r["judged"]:
            ppl = [math.exp(j[f"loss_{k}"]) for k in ("whole", "cut", "healed")]
            won = won_back(j)
            cells += [
                f"{ppl[0]:.1f} / {ppl[1]:.1f} → {ppl[2]:.1f}",
                f"{won:.0%}",
                f"{j['kl_cut']:.3f} → {j['kl_healed']:.3f}",
            ]
        lines.append("| " + " | ".join([*cells, f"{r['cpu_seconds']:.0f}"]) + " |")
    return "\n".join(lines) + "\n\nPerplexity: whole / cut → healed.\n"


def won_back(j: dict[str, Any]) -> float:
    """The part of the damage in log perplexity that is gone."""
    return float((j["loss_cut"] - j["loss_healed"]) / (j["loss_cut"] - j["loss_whole"]))


def _method(r: dict[str, Any]) -> str:
    return f"{r['method']}, {r['scope']}" if r["scope"] else f"{r['method']}: left alone"
