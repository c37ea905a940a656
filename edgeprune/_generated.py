"""Small models with true shapes and random weights, for runs whose speed and memory are wanted and whose words are not."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune._gguf_mix import BLOCKS, NEED_IMATRIX, Facts, global_type, repacked, tensor_type, type_bytes
from edgeprune._sizes import Matrices, Sizes
from edgeprune.catalog import load
from edgeprune.checkpoint import write_float32
from edgeprune.families._decoder import tensor_shapes
from edgeprune.gguf_file import GGML_TYPES
from edgeprune.types import BlockSpec, ModelSpec, SubLayerSpec

_DRAWN = 1 << 20  # random numbers drawn; larger matrices repeat them
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


class Geometry(NamedTuple):
    """A llama's widths."""

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    n_blocks: int
    vocab: int = 16384
    head_dim: int = 64
    tied: bool = True
    context: int = 8192

    @property
    def name(self) -> str:
        return f"llama-{self.hidden}x{self.ffn}-{self.n_blocks}b"


def make_folder(g: Geometry, out: Path) -> None:
    """A transformers folder, float32: config.json, model.safetensors, a byte-level BPE of `vocab` tokens."""
    import numpy as np

    out.mkdir(parents=True)
    config = _config(g)
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (out / "tokenizer.json").write_text(json.dumps(_tokenizer(g.vocab)), encoding="utf-8")
    settings = {"bos_token": _SPECIAL[1], "eos_token": _SPECIAL[2], "tokenizer_class": "PreTrainedTokenizerFast"}
    (out / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    drawn = np.random.default_rng(0).standard_normal(_DRAWN, dtype=np.float32)

    def produce(name: str) -> Any:
        shape = shapes[name]
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        # rolled, because onnxruntime keeps equal matrices once
        return np.resize(np.roll(drawn, 977 * order[name]) * shape[-1] ** -0.5, shape)

    shapes = _shapes(config, g)
    order = {name: i for i, name in enumerate(shapes)}
    write_float32(out / "model.safetensors", shapes, produce)


def make_gguf(g: Geometry, quant: str, out: Path, *, mixed: bool = False) -> None:
    """A .gguf of the same shape, its vocabulary a byte-level BPE: all matrices of one ggml type, or, `mixed`, each of
    the type that llama.cpp's quantiser gives it in a file of this quantisation.

    A tile is quantised by ggml and repeated from another row in each matrix, which saves the time of quantising all and
    runs as fast: with equal heads and equal projections, scores of attention would rise over the cache, and each new
    maximum costs llama.cpp a scaling of what it has summed up.
    """
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(out), "llama")
    _metadata(writer, g)
    named = getattr(gguf.LlamaFileType, f"MOSTLY_{quant}", None)  # a pure Q4_K has no name as a file
    if named is not None:
        writer.add_file_type(named)
    tensors: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (g.vocab, g.hidden))]
    tensors += [] if g.tied else [("output.weight", (g.vocab, g.hidden))]
    for i in range(g.n_blocks):
        tensors += [(f"blk.{i}.{role}", shape) for role, shape in block_shapes(g).items()]
    # Last, as converters write it: llama.cpp unmaps what comes after the last tensor that it did not copy for the processor.
    tensors.append(("output_norm.weight", (g.hidden,)))
    tiles: dict[tuple[str, int], Any] = {}
    for n, (name, shape) in enumerate(tensors):
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
            continue
        kind = _mixed(g, quant, name, shape) if mixed else quant
        if (kind, shape[1]) not in tiles:
            tiles[kind, shape[1]] = _quantised(kind, shape[1])
        tile = np.roll(tiles[kind, shape[1]], 29 * n, axis=0)
        data = np.resize(tile, (shape[0], tile.shape[1]))
        writer.add_tensor(name, data, raw_dtype=getattr(gguf.GGMLQuantizationType, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def spec(g: Geometry) -> ModelSpec:
    """What inspecting the files would tell, without them."""
    shapes = block_shapes(g)
    halves = [{k: v for k, v in shapes.items() if k.startswith(part)} for part in ("attn", "ffn")]
    attn, ffn = (SubLayerSpec(tensors=half) for half in halves)
    block = BlockSpec(attn=attn, ffn=ffn, kv_elements_per_token=2 * g.kv_heads * g.head_dim)
    whole = {"token_embd.weight": (g.vocab, g.hidden), "output_norm.weight": (g.hidden,)}
    whole |= {} if g.tied else {"output.weight": (g.vocab, g.hidden)}
    params = sum(math.prod(s) for s in whole.values()) + g.n_blocks * (attn.params + ffn.params)
    return ModelSpec(
        name=g.name, format="gguf", family="llama", model_type="llama", n_blocks=g.n_blocks, hidden_size=g.hidden,
        intermediate_size=g.ffn, n_heads=g.heads, n_kv_heads=g.kv_heads, head_dim=g.head_dim, vocab_size=g.vocab,
        context_length_tokens=g.context, tied_embeddings=g.tied, blocks=(block,) * g.n_blocks, globals=whole,
        dtypes={"F32": params}, weight_bytes=4 * params, fingerprint=f"generated:{g}",
    )  # fmt: skip


def pure_size(g: Geometry, kind: str, isa: frozenset[str]) -> Sizes:
    """Of `make_gguf`'s model, without the file around the tensors; `isa` as edgeprune._sizes takes it."""
    matrices, head = [s for s in block_shapes(g).values() if len(s) == 2], (g.vocab, g.hidden)
    n_bytes = g.n_blocks * sum(type_bytes(kind, s) for s in matrices)
    params = g.n_blocks * sum(math.prod(s) for s in matrices)
    only = Matrices(kind, n_bytes, params, type_bytes(kind, head), g.n_blocks * sum(map(sum, matrices)))
    total = n_bytes + only.head_bytes * (1 if g.tied else 2) + 4 * g.hidden * (2 * g.n_blocks + 1)
    packed = g.n_blocks * sum(type_bytes(kind, s) for s in matrices if repacked(kind, s, isa))
    packed += only.head_bytes if repacked(kind, head, isa) else 0
    return Sizes(total, total, total, packed, (only,))


def block_shapes(g: Geometry) -> dict[str, tuple[int, ...]]:
    d, ff, q, kv = g.hidden, g.ffn, g.heads * g.head_dim, g.kv_heads * g.head_dim
    return {
        "attn_norm.weight": (d,), "attn_q.weight": (q, d), "attn_k.weight": (kv, d), "attn_v.weight": (kv, d),
        "attn_output.weight": (d, q), "ffn_norm.weight": (d,), "ffn_gate.weight": (ff, d), "ffn_up.weight": (ff, d),
        "ffn_down.weight": (d, ff),
    }  # fmt: skip


def _mixed(g: Geometry, quant: str, name: str, shape: tuple[int, ...]) -> str:
    """The type of a tensor in a file of this quantisation."""
    if not name.startswith("blk."):
        return global_type(name, shape, quant, tied=g.tied)
    _, block, role = name.split(".", 2)
    facts = Facts(g.heads // g.kv_heads, g.tied, False, quant in NEED_IMATRIX)
    return tensor_type(role, shape, quant, int(block), g.n_blocks, facts)


def _quantised(kind: str, row: int) -> Any:
    """(rows, bytes) uint8: random rows as ggml stores them (ggml_quantize_chunk of ggml.h)."""
    import ctypes

    import numpy as np
    from llama_cpp import _ggml

    rows = 193  # prime, so that no two heads begin with the same row
    values = np.random.default_rng(0).standard_normal((rows, row), dtype=np.float32) * row**-0.5
    size, n_bytes = BLOCKS[kind]
    out = np.zeros((rows, row // size * n_bytes), np.uint8)
    if kind == "F32":
        return values.view(np.uint8)
    quantise = _ggml.libggml.ggml_quantize_chunk
    quantise.restype = ctypes.c_size_t
    quantise.argtypes = [ctypes.c_int, *(ctypes.c_void_p,) * 2, *(ctypes.c_int64,) * 3, ctypes.c_void_p]
    even = np.ones(row, np.float32)  # an importance matrix, which types under three bits ask for
    number = next(n for n, (name, _, _) in GGML_TYPES.items() if name == kind)
    quantise(number, values.ctypes.data, out.ctypes.data, 0, rows, row, even.ctypes.data)
    return out


def _metadata(writer: Any, g: Geometry) -> None:
    writer.add_context_length(g.context)
    writer.add_embedding_length(g.hidden)
    writer.add_block_count(g.n_blocks)
    writer.add_feed_forward_length(g.ffn)
    writer.add_head_count(g.heads)
    writer.add_head_count_kv(g.kv_heads)
    writer.add_key_length(g.head_dim)
    writer.add_value_length(g.head_dim)
    writer.add_rope_dimension_count(g.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(g.vocab)
    model = _tokenizer(g.vocab)["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(model["vocab"]))
    writer.add_token_types([3] * len(_SPECIAL) + [1] * (g.vocab - len(_SPECIAL)))  # control, normal
    writer.add_token_merges([" ".join(m) for m in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _config(g: Geometry) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "dtype": "float32",
        "hidden_size": g.hidden, "intermediate_size": g.ffn, "num_hidden_layers": g.n_blocks,
        "num_attention_heads": g.heads, "num_key_value_heads": g.kv_heads, "head_dim": g.head_dim,
        "vocab_size": g.vocab, "max_position_embeddings": g.context, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": g.tied, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "bos_token_id": 1, "eos_token_id": 2, "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip


def _shapes(config: dict[str, Any], g: Geometry) -> dict[str, tuple[int, ...]]:
    family = load("edgeprune.families", "llama")
    halves = {**family.ATTN, **family.FFN}
    want = tensor_shapes(family.decoder(config), {**family.GLOBALS, **halves})
    out = {f"{path}.weight": want[role] for path, role in family.GLOBALS.items() if not (g.tied and role == "output")}
    for i in range(g.n_blocks):
        out |= {f"{family.LAYER.format(i=i)}{path}.weight": want[role] for path, role in halves.items()}
    return out


def _tokenizer(vocab: int) -> dict[str, Any]:
    """Bytes, then pairs of them, then triples, each merged from what comes before."""
    letters = _byte_letters()
    merged = itertools.chain(itertools.product(letters, letters), _triples(letters))
    pairs = list(itertools.islice(merged, max(0, vocab - len(letters) - len(_SPECIAL))))
    tokens = [*_SPECIAL, *letters, *(a + b for a, b in pairs)]
    added = [{"id": i, "content": t, "special": True} | _PLAIN for i, t in enumerate(_SPECIAL)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": [list(p) for p in pairs]}
    return {"version": "1.0", "added_tokens": added, "pre_tokenizer": level, "decoder": level, "model": model}


_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _triples(letters: list[str]) -> Any:
    return ((a + b, c) for a in letters for b in letters for c in letters)


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-ins of the 256 bytes (encoder.py, bytes_to_unicode)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]
