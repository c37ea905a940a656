"""The tensors and the config of a thinner model: rows and columns taken out, or the stream rotated and cut. No torch.

Every function answers for one tensor at a time and gives None where it stays as it is, so that it is copied byte by byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from edgeprune import families
from edgeprune.checkpoint import Checkpoint, read_tensor
from edgeprune.families import Decoder
from edgeprune.width_plan import Widths, ranges

Change = Callable[[families.Place, np.ndarray], "np.ndarray | None"]


class Means(NamedTuple):
    """What went into the output projections on average, (k) for each layer."""

    attn: Sequence[Sequence[float]]
    ffn: Sequence[Sequence[float]]


class Axes(NamedTuple):
    """What is kept of a block, by the role of a matrix: rows of the input projections, columns of the output ones."""

    rows: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]


def axes(d: Decoder, plan: Widths, i: int, fused_ffn: bool) -> Axes:
    block = plan.blocks[i]
    groups, channels = (np.array(ranges(*of)) for of in ((block.groups, d.n_kv_heads), (block.channels, d.ffn)))
    n_q, n_kv = d.n_heads * d.head_dim, d.n_kv_heads * d.head_dim
    q, kv = (_each(groups, n // d.n_kv_heads) for n in (n_q, n_kv))
    both = np.concatenate([channels, d.ffn + channels])  # the gate's rows first
    rows = {"attn_q": q, "attn_k": kv, "attn_v": kv, "attn_qkv": np.concatenate([q, n_q + kv, n_q + n_kv + kv])}
    rows |= {"ffn_gate": channels, "ffn_up": both if fused_ffn else channels}
    return Axes(rows, {"attn_output": q, "ffn_down": channels})


def _each(groups: np.ndarray, size: int) -> np.ndarray:
    return (groups[:, None] * size + np.arange(size)).ravel()


def thinner(family: ModuleType, d: Decoder, plan: Widths) -> Change:
    """Rows and columns taken out."""
    fused = "ffn_gate" not in family.FFN.values()
    kept = [axes(d, plan, i, fused) for i in range(d.n_blocks)]

    def change(place: families.Place, values: np.ndarray) -> np.ndarray | None:
        if place.layer is None:
            return None
        rows = kept[place.layer].rows.get(place.role)
        columns = kept[place.layer].columns.get(place.role) if place.kind == "weight" else None
        if rows is not None and len(rows) < len(values):
            return values[rows]
        if columns is not None and len(columns) < values.shape[1]:
            return values[:, columns]
        return None

    return change


def biases(ck: Checkpoint, family: ModuleType, d: Decoder, plan: Widths, means: Means) -> dict[str, np.ndarray]:
    """b + W (x̄ ⊙ removed) for every output projection, and zeros for the others that a config then has biases of."""
    fused = "ffn_gate" not in family.FFN.values()
    outputs = dict(zip(family.OUTPUTS, means, strict=True))
    paths = {path: role for path, role in {**family.ATTN, **family.FFN}.items() if not role.endswith("norm")}
    out = {}
    for i in range(d.n_blocks):
        kept = axes(d, plan, i, fused)
        for path, role in paths.items():
            name = f"{family.LAYER.format(i=i)}{path}"
            weight = read_tensor(ck, f"{name}.weight")
            if path in outputs:
                gone = np.ones(weight.shape[1])
                gone[kept.columns[role]] = 0
                bias = weight.astype(np.float64) @ (np.asarray(outputs[path][i]) * gone)
                if f"{name}.bias" in ck.tensors:
                    bias += read_tensor(ck, f"{name}.bias").astype(np.float64)
                out[f"{name}.bias"] = bias.astype(weight.dtype)
            elif f"{name}.bias" not in ck.tensors:
                out[f"{name}.bias"] = np.zeros(len(kept.rows[role]), weight.dtype)
    return out


def rotated(ck: Checkpoint, family: ModuleType, d: Decoder, basis: np.ndarray) -> Change:
    """The stream in another basis (d, kept): x ← x Q. Gains move into the matrices behind their norms.

    A norm of fewer numbers divides by another mean: √(d / kept) makes up for it, and in the config eps d / kept.
    """
    gain_of = {"attn_q": "attn_norm", "attn_k": "attn_norm", "attn_v": "attn_norm", "attn_qkv": "attn_norm"}
    gain_of |= {"ffn_gate": "ffn_norm", "ffn_up": "ffn_norm", "output": "output_norm"}
    path_of = {role: path for path, role in {**family.ATTN, **family.FFN, **family.GLOBALS}.items()}
    back = (d.hidden / basis.shape[1]) ** 0.5

    def change(place: families.Place, values: np.ndarray) -> np.ndarray | None:
        wide = values.astype(np.float64)
        if place.role in ("attn_norm", "ffn_norm", "output_norm"):
            new = np.full(basis.shape[1], back)
        elif place.role in ("attn_output", "ffn_down"):
            new = basis.T @ wide  # a bias likewise
        elif place.role == "token_embd":
            new = wide @ basis
        elif place.role in gain_of and place.kind == "weight":
            layer = "" if place.layer is None else family.LAYER.format(i=place.layer)
            new = (wide * read_tensor(ck, f"{layer}{path_of[gain_of[place.role]]}.weight").astype(np.float64)) @ basis
        else:
            return None
        return new.astype(values.dtype)

    return change


def thin_config(config: dict[str, Any], family: ModuleType, d: Decoder, plan: Widths, biased: bool) -> dict[str, Any]:
    """config.json of the thinner model: plain fields where all layers are alike, else transformers' `per_layer_config`."""
    per_group = d.n_heads // d.n_kv_heads
    sizes = [(len(ranges(b.groups, d.n_kv_heads)), len(ranges(b.channels, d.ffn))) for b in plan.blocks]
    fields = [
        dict(zip(families.WIDTH_FIELDS.values(), (channels, groups * per_group, groups), strict=True))
        for groups, channels in sizes
    ]
    whole = dict(zip(families.WIDTH_FIELDS.values(), d.widths[0], strict=True))
    if all(f == whole for f in fields):
        return config
    out = {**config, "head_dim": d.head_dim}
    if biased:
        out |= dict.fromkeys(family.OUTPUT_BIASES, True)
    if all(f == fields[0] for f in fields):
        return accepted(out | fields[0], family)
    own = {str(i): {k: v for k, v in f.items() if v != whole[k]} for i, f in enumerate(fields)}
    return out | whole | {"per_layer_config": {i: f for i, f in own.items() if f}}


def sliced_config(config: dict[str, Any], family: ModuleType, d: Decoder, hidden: int) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "head_dim": d.head_dim, "rms_norm_eps": d.norm_eps * d.hidden / hidden}
    return accepted({**config, **sizes, "tie_word_embeddings": False}, family)


def accepted(config: dict[str, Any], family: ModuleType) -> dict[str, Any]:
    """As a model type of the same arithmetic where transformers refuses the family's own; see UNDIVIDED."""
    if config["hidden_size"] % config["num_attention_heads"] == 0 or not hasattr(family, "UNDIVIDED"):
        return config
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    other = family.UNDIVIDED
    return {
        **config, "model_type": other, "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[other]], "sliding_window": None,
    }  # fmt: skip
