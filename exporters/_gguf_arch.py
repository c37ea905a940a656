"""What llama.cpp computes for an architecture and what it reads from the file: src/models/<name>.cpp there.

Its graphs are fixed: what a file can't say must already be as the graph assumes, or be folded into the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

from edgeprune.errors import InputRejected
from edgeprune.families import Decoder, Half

_QKV = frozenset({"attn_q", "attn_k", "attn_v"})
_ALL = _QKV | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"}


class Arch(NamedTuple):
    name: str
    biases: frozenset[str] = frozenset()  # roles whose bias is loaded
    activation: str = "silu"
    interleaved: bool = False  # rotary pairs are neighbours (llama_model_rope_type: NORM)
    windows: bool = False  # read, and for each block
    local_rope: bool = False  # windowed blocks have a rotary base of their own
    freq_factors: bool = False  # reads rope_freqs.weight
    longrope: bool = False  # reads rope_factors_long.weight and rope_factors_short.weight
    partial_rope: bool = False
    multipliers: bool = False  # of embeddings, scores, residuals and logits
    softcaps: frozenset[str] = frozenset()  # Decoder fields
    always_capped: bool = False
    embeds_by_sqrt: bool = False  # multiplies embeddings by sqrt(hidden)
    wide_scale_at: int | None = None  # number of blocks at which scores are scaled by (hidden / n_heads)^-1/2
    scale_into: str | None = None  # role that takes up another scale of the scores
    square: bool = False  # hidden must be n_heads · head_dim
    ties: bool | None = None  # None: output.weight is optional; else whether it is left out
    says: frozenset[str] = frozenset({"head_dim"})  # what its converter class writes though llama.cpp could derive it

    @property
    def optional_biases(self) -> bool:
        """Whether it computes without those that are left out: graphs that take one of every projection ask for none."""
        return self.biases == _ALL


_LLAMA_SAYS = frozenset({"vocab_size", "rope_dim"})  # conversion/llama.py
ARCHS = {a.name: a for a in (
    Arch("llama", _ALL, interleaved=True, freq_factors=True, says=_LLAMA_SAYS | {"head_dim"}),
    Arch("qwen2", _QKV, square=True, says=frozenset()),
    Arch("qwen3", _QKV),
    Arch("gemma2", _QKV, "gelu_tanh", windows=True, softcaps=frozenset({"attention_softcap", "logit_softcap"}),
         always_capped=True, embeds_by_sqrt=True, wide_scale_at=46, scale_into="attn_q", ties=True),
    Arch("gemma3", _QKV, "gelu_tanh", windows=True, local_rope=True, softcaps=frozenset({"logit_softcap"}),
         embeds_by_sqrt=True, wide_scale_at=62, scale_into="attn_q_norm"),
    Arch("phi3", longrope=True, partial_rope=True, square=True, says=frozenset({"rope_dim"})),
    Arch("smollm3", _QKV, interleaved=True, says=_LLAMA_SAYS),
    Arch("olmo2", _QKV, square=True, ties=False, says=frozenset()),
    Arch("granite", _ALL, interleaved=True, freq_factors=True, multipliers=True, says=_LLAMA_SAYS),
    Arch("deci", _ALL, interleaved=True, freq_factors=True, says=_LLAMA_SAYS | {"head_dim"}),
    Arch("openelm", ties=True, says=_LLAMA_SAYS | {"head_dim"}),
)}  # fmt: skip
DUMMY_FFN = 256  # width of a feed-forward of zeros: the least that K-quants take without falling back


def arch_of(family: ModuleType, d: Decoder, halves: Sequence[Half]) -> Arch:
    """The family's own, or, for what that has no place for, the one that keeps its sizes by the block."""
    own, other = ARCHS[family.GGUF_ARCH], getattr(family, "GGUF_ARCH_IRREGULAR", None)
    narrow = own.square and d.hidden != d.n_heads * d.head_dim and other is not None
    return own if d.alike and not narrow and all(a and f for a, f in halves) else ARCHS[other]


def score_factor(arch: Arch, d: Decoder) -> float:
    """What the queries must be multiplied by, so that llama.cpp's scale of the scores becomes the model's."""
    if arch.multipliers:
        return 1.0
    width = d.hidden // d.n_heads if d.n_blocks == arch.wide_scale_at else d.head_dim
    factor = d.attention_scale * math.sqrt(width)
    return 1.0 if math.isclose(factor, 1.0, rel_tol=1e-6) else factor


def check_fit(arch: Arch, d: Decoder, tied: bool) -> None:
    """Raises InputRejected, naming the config.json field, where the graph computes something else."""
    fixed = [
        ("hidden_act", d.activation, arch.activation),
        ("embedding_multiplier", d.embedding_scale, d.hidden**0.5 if arch.embeds_by_sqrt else 1.0),
        ("residual_multiplier", d.residual_scale, 1.0),
        ("logits_scaling", d.logit_scale, 1.0),
    ]
    for field, found, computed in fixed[: 1 if arch.multipliers else None]:
        if found != computed:
            _refuse(arch, f"{field} ({found})", f"only {computed}")
    for field in ("attention_softcap", "logit_softcap"):
        there, name = getattr(d, field) is not None, f"a cap on {field.partition('_')[0]} scores (softcapping)"
        if there and field not in arch.softcaps:
            _refuse(arch, name, "none")
        if not there and arch.always_capped:
            _refuse(arch, f"no {name[2:]}", "one; its value is null here")
    if score_factor(arch, d) != 1.0 and not arch.scale_into:
        _refuse(arch, f"scores scaled by {d.attention_scale:g}", f"{d.head_dim**-0.5:g}, from the head size")
    if arch.square and d.hidden != d.n_heads * d.head_dim:
        _refuse(arch, f"{d.n_heads} heads of {d.head_dim}", f"heads that make up hidden_size ({d.hidden})")
    if arch.ties and not tied:
        _refuse(arch, "an output matrix of its own (tie_word_embeddings false)", "a tied one")


def _refuse(arch: Arch, found: str, computed: str) -> None:
    raise InputRejected(f"config.json: llama.cpp's {arch.name!r} graph has no {found}: {computed}; export to ONNX")
