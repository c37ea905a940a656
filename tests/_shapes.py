"""Model shapes for tests of sizes and plans, made by hand: no weights needed."""

from __future__ import annotations

from edgeprune.blocks import removed_sublayers, whole
from edgeprune.types import (
    Blocks,
    BlockSpec,
    Budget,
    ModelSpec,
    PathStep,
    Plan,
    Prediction,
    Scores,
    SubLayerSpec,
    Text,
)


def make_spec(
    n_blocks: int = 30,
    d: int = 576,
    ff: int = 1536,
    heads: int = 9,
    kv: int = 3,
    head_dim: int = 64,
    vocab: int = 49152,
    tied: bool = True,
    context: int = 8192,
    window: int | None = None,
    bias: bool = False,
    name: str = "smollm2-135m",
) -> ModelSpec:
    """A llama-shaped model; the defaults are SmolLM2-135M."""
    q, k = heads * head_dim, kv * head_dim
    attn = {"attn_norm.weight": (d,), "attn_q.weight": (q, d), "attn_k.weight": (k, d), "attn_v.weight": (k, d)}
    attn["attn_output.weight"] = (d, q)
    if bias:
        attn |= {"attn_q.bias": (q,), "attn_k.bias": (k,), "attn_v.bias": (k,)}
    ffn = {"ffn_norm.weight": (d,), "ffn_gate.weight": (ff, d), "ffn_up.weight": (ff, d), "ffn_down.weight": (d, ff)}
    block = BlockSpec(
        attn=SubLayerSpec(tensors=attn),
        ffn=SubLayerSpec(tensors=ffn),
        sliding_window_tokens=window,
        kv_elements_per_token=2 * k,
    )
    whole_model = {"token_embd.weight": (vocab, d), "output_norm.weight": (d,)}
    if not tied:
        whole_model["output.weight"] = (vocab, d)
    spec = ModelSpec(
        name=name,
        format="safetensors",
        family="llama",
        model_type="llama",
        n_blocks=n_blocks,
        hidden_size=d,
        intermediate_size=ff,
        n_heads=heads,
        n_kv_heads=kv,
        head_dim=head_dim,
        vocab_size=vocab,
        context_length_tokens=context,
        tied_embeddings=tied,
        blocks=(block,) * n_blocks,
        globals=whole_model,
        dtypes={},
        weight_bytes=0,
        fingerprint="f" * 64,
    )
    return spec.model_copy(update={"dtypes": {"F32": spec.params}, "weight_bytes": 4 * spec.params})


def make_scores(spec: ModelSpec, order: list[int], kl_step: float = 0.1, fingerprint: str | None = None) -> Scores:
    """A path that drops whole blocks in `order`; damage grows by `kl_step`, 2·kl_step, …"""
    blocks, kl = whole(spec.n_blocks), 0.0
    path = [PathStep(blocks=blocks, kl=0.0, perplexity=10.0)]
    for i, gone in enumerate(order, 1):
        blocks = tuple(b for b in blocks if b.attn != gone)
        kl += kl_step * i
        path.append(PathStep(blocks=blocks, kl=kl, perplexity=10.0 * (1 + kl)))
    return Scores(
        model=spec.name,
        fingerprint=fingerprint or spec.fingerprint,
        n_blocks=spec.n_blocks,
        metric="block_influence",
        source="test",
        block_damage=None,
        path=tuple(path),
        text=Text(name="t", sha256="0" * 64, tokens=1, context_tokens=1, stride_tokens=1),
        seed=0,
        versions={},
    )


def plan_for(spec: ModelSpec, blocks: Blocks) -> Plan:
    """A plan of these blocks that says nothing else."""
    zero = Prediction(
        file_bytes=0, weights_bytes=0, kv_bytes=0, compute_bytes=0, runtime_bytes=0, memory_bytes=0, streamed_bytes=0,
        decode_tok_per_s=None, decode_low_tok_per_s=None, decode_high_tok_per_s=None, ttft_s=None, basis="test",
    )  # fmt: skip
    return Plan(
        model=spec.name, family=spec.family, fingerprint=spec.fingerprint, n_blocks_whole=spec.n_blocks, device="test",
        mode=None, runtime="llamacpp", backend="cpu", quant="F32", budget=Budget(), memory_limit_bytes=None,
        memory_limit_from="device", blocks=blocks, removed=str(removed_sublayers(blocks, spec.n_blocks)), damage_kl=None,
        damage_perplexity=None, whole_perplexity=None, quant_kl=None, prediction=zero, prediction_whole=zero,
        alternatives=(), scores_sha256=None, metric=None,
    )  # fmt: skip
