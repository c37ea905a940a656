"""What llama.cpp makes of a block from where it stands, per architecture, and which half of a block a tensor belongs to.

Cutting a GGUF moves blocks to other positions. That is safe where the model file alone says what a block is, and where
its src/models/*.cpp takes nothing else from a block's index or from the number of blocks. ARCHITECTURES lists those
whose source was read for this (llama.cpp as vendored by llama-cpp-python 0.3.36); any other is inspected, not cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from edgeprune.blocks import is_portable
from edgeprune.errors import InputRejected
from edgeprune.types import Blocks


class Architecture(NamedTuple):
    """Defaults are a plain decoder: x + attention, then x + feed-forward, every block alike or described by arrays."""

    sequential: bool = True  # False: both halves read one norm or one input, so only whole blocks can go
    window_every: int | None = None  # all but each n-th block slide, unless sliding_window_pattern says otherwise
    window: int | None = None  # tokens, where the file may leave sliding_window out
    rope_skips: int | None = None  # each n-th block does not rotate, by position
    by_count: Callable[[int], bool] | None = None  # a number of blocks that changes what every block computes
    ffn_roles: tuple[str, ...] = ()  # feed-forward tensors whose names say attention
    needs: tuple[str, ...] = ()  # keys without which a value is derived from the number of blocks
    dense_lead: bool = False  # leading_dense_block_count: the first feed-forwards have no experts


_DENSE = Architecture()
_PARALLEL = Architecture(sequential=False)
_NORM_OF_FFN = Architecture(ffn_roles=("post_attention_norm",))

ARCHITECTURES: dict[str, Architecture] = {
    # pre-norm blocks from tensors and scalars alone
    **dict.fromkeys(
        (
            "llama", "mistral3", "qwen", "qwen2", "qwen3", "gemma", "phi3", "olmo", "granite", "starcoder", "starcoder2",
            "internlm2", "exaone", "orion", "xverse", "nemotron", "chatglm", "arcee", "ernie4_5", "codeshell", "refact",
            "bloom", "mpt", "gpt2", "bitnet", "maincoder", "glm4",
        ),
        _DENSE,
    ),
    # the same with routed experts in every block
    **dict.fromkeys(("qwen2moe", "qwen3moe", "olmoe", "phimoe", "granitemoe"), _DENSE),
    # heads and widths per block, from arrays; apertus: the activation's four numbers
    **dict.fromkeys(("deci", "openelm", "apertus"), _DENSE),
    # attention and feed-forward side by side
    **dict.fromkeys(("phi2", "falcon", "stablelm", "gptneox"), _PARALLEL),
    "command-r": Architecture(sequential=False, by_count=lambda n: n >= 64),  # from 64 on with query and key norms
    "cohere2": Architecture(sequential=False, window_every=4),  # full blocks do not rotate either
    # windows by position; gemma's 27B models are told by their block count and scale attention otherwise
    "gemma2": Architecture(window_every=2, window=4096, by_count=lambda n: n == 46),
    "gemma3": Architecture(window_every=6, by_count=lambda n: n == 62),
    "olmo2": Architecture(window_every=4),
    "gpt-oss": Architecture(window_every=2, ffn_roles=("post_attention_norm",)),
    "seed_oss": _NORM_OF_FFN,
    "dbrx": Architecture(ffn_roles=("attn_output_norm",)),
    "smollm3": Architecture(rope_skips=4),
    "minicpm": Architecture(needs=("residual_scale",)),
    "deepseek": Architecture(dense_lead=True),
}  # fmt: skip

IRREGULAR = ("llama", "deci")  # which deci holds without one half of a block
DECI_FIRST = "llama.cpp's deci needs attention in the first block (it reads the head size there); plan again"

# Arrays with one entry per block, and the half they belong to. Keys are below "<architecture>.".
PER_BLOCK = {
    "attention.head_count": "attn",
    "attention.head_count_kv": "attn",
    "attention.sliding_window_pattern": "attn",
    "feed_forward_length": "ffn",
    "expert_feed_forward_length": "ffn",
    "expert_used_count": "ffn",
}
PER_BLOCK_PLAIN = {f"xielu.{k}": "ffn" for k in ("alpha_n", "alpha_p", "beta", "eps")}  # apertus; not below its name
NOT_PER_BLOCK = ("rope.dimension_sections", "classifier.output_labels")
# Numbers that describe blocks by their position. None of the architectures above reads them (but see dense_lead).
POSITIONAL = (
    "leading_dense_block_count", "nextn_predict_layers", "interleave_moe_layer_step", "moe_every_n_layers",
    "attention.shared_kv_layers", "full_attention_interval", "n_deepstack_layers", "hash_layer_count",
    "decoder_block_count", "rescale_every_n_layers", "attn_res.block_size", "num_loops", "hrm.layers_per_stack",
)  # fmt: skip

# Tensor names of a block as llama.cpp has them (LLM_TENSOR_NAMES of src/llama-arch.cpp).
_ATTN = ("attn_", "ssm_", "shortconv.", "time_mix_", "indexer.")  # whatever mixes tokens
_ATTN_NAMES = ("post_attention_norm",)
_FFN = ("ffn_", "channel_mix_", "post_ffw_norm", "pre_ffw_norm")
_FFN_NAMES = ("exp_probs_b", "layer_output_norm")  # layer_output_norm: after the feed-forward, where there is one


def half(arch: str, role: str) -> str | None:
    """ "attn" or "ffn" for "attn_q.weight" and the like; None for a tensor of neither."""
    name = role.rsplit(".", 1)[0]
    if name in _architecture(arch).ffn_roles or name in _FFN_NAMES or name.startswith(_FFN):
        return "ffn"
    return "attn" if name in _ATTN_NAMES or name.startswith(_ATTN) else None


def windows(arch: str, values: dict[str, Any], n_blocks: int) -> list[int | None]:
    """Tokens each block's attention sees, None = all, as llama.cpp's load_swa_pattern derives it.

    `values`: metadata without the architecture's prefix. Raises InputRejected for a pattern of another length.
    """
    a = _architecture(arch)
    size = values.get("attention.sliding_window", a.window)
    pattern = values.get("attention.sliding_window_pattern")
    if isinstance(pattern, tuple) and len(pattern) != n_blocks:
        raise InputRejected(f"sliding_window_pattern has {len(pattern)} entries for {n_blocks} blocks")
    if type(size) is not int or size < 1 or a.window_every is None:
        return [None] * n_blocks
    if not isinstance(pattern, tuple):
        every = a.window_every if pattern is None else pattern
        pattern = [every == 0 or i % every != every - 1 for i in range(n_blocks)]
    return [size if slides else None for slides in pattern]


def rotates(arch: str, n_blocks: int) -> list[bool]:
    """Whether each block's attention has a rotary embedding, by llama.cpp's count of positions."""
    skips = _architecture(arch).rope_skips
    return [skips is None or (i + 1) % skips != 0 for i in range(n_blocks)]


def refusal(arch: str, n_blocks: int, blocks: Blocks) -> str | None:
    """Why these blocks of a GGUF with `n_blocks` can't be a GGUF, and which cuts could; None when they can."""
    if arch not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        return f"what {arch} takes from a block's position in llama.cpp is not known; GGUF is cut of {known}"
    a = ARCHITECTURES[arch]
    if not is_portable(blocks):
        if arch not in IRREGULAR:
            return (
                f"a {arch} block in GGUF needs both halves; allowed are whole layers and cuts from one half-layer to the same "
                "half of another, or prune and export the transformers folder"
            )
        if blocks[0].attn is None:
            return DECI_FIRST
    if not a.sequential and any(b.attn != b.ffn for b in blocks):
        return f"{arch} runs attention and feed-forward of a block side by side; allowed are cuts of whole layers"
    if a.by_count and a.by_count(n_blocks) != a.by_count(len(blocks)):
        return (
            f"llama.cpp computes {arch} with {n_blocks} blocks otherwise than with {len(blocks)}; prune and export the "
            "transformers folder"
        )
    before, after = rotates(arch, n_blocks), rotates(arch, len(blocks))
    wrong = [new for new, b in enumerate(blocks) if b.attn is not None and before[b.attn] != after[new]]
    if wrong:
        return (
            f"llama.cpp leaves every {a.rope_skips}th block of {arch} without rotation, and block {wrong[0]} would get it "
            f"wrong; allowed are cuts of {a.rope_skips} neighbouring layers, and of any number at the end"
        )
    return None


def _architecture(arch: str) -> Architecture:
    return ARCHITECTURES.get(arch, _DENSE)
