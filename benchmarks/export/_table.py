"""The results as the table of the README, in Markdown."""

from __future__ import annotations

from typing import Any

from _parts import BUILDER

Row = tuple[str, str, str, str, str]


def table(r: dict[str, Any]) -> str:
    rows: list[Row] = [("comparison", "ours", "theirs", "ours / theirs", "asked")]
    if "gguf" in r:
        rows += _process(r["gguf"], "HF → GGUF F16", "edgeprune", "llama.cpp", "≤ 0.5", "≤ 0.25")
    if "big" in r:
        title = f"the same, {r['big']['bytes'] / 1e9:.0f} GB in shards"
        allowed = f"ours ≤ {r['big']['allowed_bytes'] / 1e6:.0f} MB"
        rows += _process(r["big"], title, "edgeprune", "llama.cpp", "", allowed)
    if "cut" in r:
        s, factor = r["cut"]["median_s"], r["cut"]["cut_over_cp"]
        rows.append(("GGUF → GGUF cut, `cp`", f"{s['cut']:.2f} s", f"{s['cp']:.2f} s", f"{factor:.2f}", "≤ 1.3"))
    if isinstance(r.get("onnx"), dict):
        o = r["onnx"]
        rows += _process(o, "HF → ONNX int4", "edgeprune int4", BUILDER, "< 1", "")
        for name, factor in o["decode_ratio"].items():
            ours, theirs = (f"{o['decode'][n]['median_tok_per_s']:.1f} tok/s" for n in (name, BUILDER))
            asked = "≥ 1" if name == "edgeprune int4" else ""
            rows.append((f"ONNX {name.removeprefix('edgeprune ')}, decode", ours, theirs, f"{factor:.2f}", asked))
            ours, theirs = (f"{g['bytes'] / 1e6:.1f} MB" for g in (o["graphs"][name], o["graphs"][BUILDER]))
            factor = o["graphs"][name]["bytes"] / o["graphs"][BUILDER]["bytes"]
            rows.append((f"ONNX {name.removeprefix('edgeprune ')}, file", ours, theirs, f"{factor:.2f}", ""))
    if isinstance(r.get("decode"), dict):
        d = r["decode"]
        ours, theirs = (f"{x['median_tok_per_s']:.1f} tok/s" for x in d["decode"].values())
        equal = "tensors byte-equal" if d["tensors_equal"] else "tensors differ"
        rows.append((f"GGUF Q4_K_M, decode ({equal})", ours, theirs, f"{d['decode_ratio']:.2f}", "1"))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * 5 + "|", *lines[1:]]) + "\n"


def _process(part: dict[str, Any], title: str, ours: str, theirs: str, time_asked: str, peak_asked: str) -> list[Row]:
    """Time and peak memory of two processes; theirs may be missing."""
    a, b = part["runs"][ours], part["runs"].get(theirs)

    def row(what: str, key: str, unit: float, suffix: str, factor: str, asked: str) -> Row:
        left, right = (f"{x[key] / unit:.4g} {suffix}" if x else "not measured" for x in (a, b))
        return f"{title}, {what}", left, right, f"{part[factor]:.2f}" if b else "", asked

    return [
        row("time", "median_s", 1, "s", "time_ratio", time_asked),
        row("peak memory", "peak_rss_bytes", 1e6, "MB", "peak_ratio", peak_asked),
    ]
