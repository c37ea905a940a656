"""What a config.json means, in numbers: all that planning and exporting need to know besides the weights.

Every family's block is a case of one form, with attention and feed-forward alike:

    x ← x + residual_scale · post_norm(f(pre_norm(x)))

where either norm may be absent (the family's tensor names say which there are), norm(x) = x/rms(x) · (w + norm_offset),
and attention scores are softcap(attention_scale · q·k).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from edgeprune.errors import InputRejected

WIDTH_FIELDS = {
    "ffn": "intermediate_size", "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads",
}  # fmt: skip
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


class Width(NamedTuple):
    """What one block has of what width pruning takes out. Called as the fields of Decoder that they are the most of."""

    ffn: int
    n_heads: int
    n_kv_heads: int


class Decoder(NamedTuple):
    """A model's shape and arithmetic. Per-layer values are tuples with one entry per block, and travel with attention.

    `ffn`, `n_heads` and `n_kv_heads` are the widest block's; each block's own are in `widths`.
    """

    model_type: str
    n_blocks: int
    hidden: int
    ffn: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    context_tokens: int
    norm_eps: float
    tied: bool | None  # None: config.json does not say
    windows: tuple[int | None, ...]  # positions a token attends to, itself included; None = all
    ropes: tuple[dict[str, Any] | None, ...]  # rope_type, rope_theta, …; None = no rotation
    attention_scale: float  # of q·k
    widths: tuple[Width, ...] = ()
    activation: str = "silu"  # or "gelu_tanh"
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    attention_softcap: float | None = None  # c·tanh(scores / c)
    logit_softcap: float | None = None
    qk_norm_whole: bool = False  # query and key norms over all heads together, not each

    def layer(self, i: int) -> Decoder:
        """The decoder as block i sees it: with its own widths."""
        return self._replace(**self.widths[i]._asdict())

    @property
    def alike(self) -> bool:
        """Whether all blocks are equally wide."""
        return len(set(self.widths)) == 1


def common(
    config: dict[str, Any], defaults: dict[str, Any], rope_per_type: bool = False
) -> tuple[Decoder, dict[str, Any]]:
    """What all families share, and the config with `defaults` (transformers' own) where it is silent.

    `rope_per_type`: the family fills in the rotations itself.

    Raises InputRejected naming the config.json field.
    """
    c = {**defaults, **config}
    where = "config.json"
    if c.get("quantization_config"):
        raise InputRejected(f"{where}: the weights are quantised already; name the unquantised model")
    if c.get("use_bidirectional_attention"):
        raise InputRejected(
            f"{where}: attention looks both ways (use_bidirectional_attention); this is no generator of text"
        )
    n_blocks, hidden, n_heads = (count(c, k) for k in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    head_dim = count({"head_dim": c.get("head_dim") or hidden // n_heads}, "head_dim")
    act = c.get("hidden_activation") or c.get("hidden_act") or "silu"
    if act not in ACTIVATIONS:
        raise InputRejected(f"{where}: hidden_act {act!r} is not known; known: {', '.join(sorted(ACTIVATIONS))}")
    eps = c.get("rms_norm_eps", 1e-6)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < 1:
        raise InputRejected(f"{where}: rms_norm_eps is {eps!r}, not a small positive number")
    n_kv_heads = count({"num_key_value_heads": c.get("num_key_value_heads") or n_heads}, "num_key_value_heads")
    most = Width(count(c, "intermediate_size"), n_heads, n_kv_heads)
    made = Decoder(
        model_type=c["model_type"],
        n_blocks=n_blocks,
        hidden=hidden,
        **most._asdict(),
        widths=_widths(c.get("per_layer_config"), n_blocks, most),
        head_dim=head_dim,
        vocab=count(c, "vocab_size"),
        context_tokens=count(c, "max_position_embeddings"),
        norm_eps=float(eps),
        tied=c.get("tie_word_embeddings"),
        windows=(None,) * n_blocks,
        ropes=(None if rope_per_type else rope_of(c),) * n_blocks,
        attention_scale=head_dim**-0.5,
        activation=ACTIVATIONS[act],
    )
    return made, c


def _widths(own: Any, n_blocks: int, most: Width) -> tuple[Width, ...]:
    """transformers' `per_layer_config`, {layer: {field: value}}: what a layer has that differs from the fields beside it."""
    out = [most] * n_blocks
    for layer, said in own.items() if isinstance(own, dict) else []:
        fields = said if isinstance(said, dict) else {}
        if not fields or not {*fields} <= {*WIDTH_FIELDS.values()} or not layer.isdecimal() or int(layer) >= n_blocks:
            raise InputRejected(
                f"config.json: per_layer_config has {layer!r}: {said!r}; known are {', '.join(WIDTH_FIELDS.values())} of a layer"
            )
        width = most._replace(**{k: count(fields, name) for k, name in WIDTH_FIELDS.items() if name in fields})
        if any(mine > widest for mine, widest in zip(width, most, strict=True)):
            raise InputRejected(
                f"config.json: per_layer_config makes layer {layer} wider than the fields beside it say"
            )
        out[int(layer)] = width
    return tuple(out)


def count(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise InputRejected(f"config.json: {key} should be a positive whole number and is {value!r}")
    return value


def number(config: dict[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InputRejected(f"config.json: {key} should be a positive number and is {value!r}")
    return float(value)


def softcap(config: dict[str, Any], key: str) -> float | None:
    return None if config.get(key) is None else number(config, key)


def rope_of(config: dict[str, Any], layer_type: str | None = None, theta: str = "rope_theta") -> dict[str, Any]:
    """One layer's rotation as transformers' `rope_parameters` say it, from new and old configs alike.

    `layer_type`: for families that rotate windowed layers otherwise; old configs scale only the full ones.
    `theta`: the field where old configs keep the base.
    """
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise InputRejected(f"config.json: rope_parameters should be a table and is {found!r}")
    if any(isinstance(v, dict) for v in found.values()):
        if layer_type is None:
            raise InputRejected("config.json: rope differs by layer type, which is not known of this family")
        out = dict(found.get(layer_type) or {})
    else:
        out = {} if layer_type == "sliding_attention" else dict(found)
    old_name = out.pop("type", None)
    out["rope_type"] = str(out.get("rope_type") or old_name or "default")
    out["rope_theta"] = number({"rope_theta": out.get("rope_theta") or config.get(theta) or 10000.0}, "rope_theta")
    out["partial_rotary_factor"] = float(out.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
    if out["rope_type"] in ("llama3", "yarn", "longrope"):
        original = config.get("original_max_position_embeddings") or out.get("original_max_position_embeddings")
        out["original_max_position_embeddings"] = original or config["max_position_embeddings"]
    return out


def layer_types(config: dict[str, Any], default: list[str]) -> list[str]:
    """ "full_attention" or "sliding_attention" per layer: as the config says, else `default`."""
    types = config.get("layer_types") or default
    if not isinstance(types, list) or len(types) != config["num_hidden_layers"]:
        raise InputRejected("config.json: layer_types does not have one entry per layer; re-slice it")
    unknown = sorted({str(t) for t in types} - {"full_attention", "sliding_attention"})
    if unknown:
        raise InputRejected(f"config.json: layer type {unknown[0]!r} is not known")
    return types


def windows_of(config: dict[str, Any], types: list[str]) -> tuple[int | None, ...]:
    """Window per layer, for layers said to slide."""
    sliding = {"sliding_attention"} & set(types)
    size = count(config, "sliding_window") if sliding else None
    return tuple(size if t == "sliding_attention" else None for t in types)


def tensor_shapes(d: Decoder, roles: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Shape (out, in) of every weight named in `roles` (values of a family's ATTN, FFN and GLOBALS)."""
    q, kv = d.n_heads * d.head_dim, d.n_kv_heads * d.head_dim
    whole_width = d.qk_norm_whole
    fused_up = "ffn_gate" not in roles.values()
    shapes = {
        "token_embd": (d.vocab, d.hidden), "output": (d.vocab, d.hidden), "output_norm": (d.hidden,),
        "attn_norm": (d.hidden,), "attn_q": (q, d.hidden), "attn_k": (kv, d.hidden), "attn_v": (kv, d.hidden),
        "attn_qkv": (q + 2 * kv, d.hidden), "attn_output": (d.hidden, q), "post_attention_norm": (d.hidden,),
        "attn_q_norm": (q if whole_width else d.head_dim,), "attn_k_norm": (kv if whole_width else d.head_dim,),
        "ffn_norm": (d.hidden,), "ffn_gate": (d.ffn, d.hidden), "ffn_up": ((2 if fused_up else 1) * d.ffn, d.hidden),
        "ffn_down": (d.hidden, d.ffn), "post_ffw_norm": (d.hidden,),
    }  # fmt: skip
    return {role: shapes[role] for role in roles.values()}
