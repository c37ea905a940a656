"""A checkpoint's tensors against what its config says: the one check that reading and exporting share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

from edgeprune.errors import InputRejected
from edgeprune.families._decoder import Decoder, tensor_shapes


class Place(NamedTuple):
    layer: int | None  # None: not of a block
    role: str  # "attn_q", as in GGUF
    kind: str  # "weight" or "bias"


def is_tied(d: Decoder, names: Mapping[str, object]) -> bool:
    """Whether the embedding is also the output matrix; where config.json is silent, the tensors tell."""
    return d.tied if d.tied is not None else "lm_head.weight" not in names


def place(family: ModuleType, d: Decoder, shapes: Mapping[str, tuple[int, ...]], where: object) -> dict[str, Place]:
    """Tensor name -> its place, in the order of the model; buffers and a tied output matrix are left out.

    Raises InputRejected for a tensor that is missing, of another shape, or not part of the family.
    """
    halves = {**family.ATTN, **family.FFN}
    roles = {**family.GLOBALS, **halves}
    of_width = {width: tensor_shapes(d._replace(**width._asdict()), roles) for width in {*d.widths}}
    tied = is_tied(d, shapes)
    found: dict[str, Place] = {}
    prefixes = [(None, family.GLOBALS, "")]
    prefixes += [(i, halves, family.LAYER.format(i=i)) for i in range(d.n_blocks)]
    for layer, roles, prefix in prefixes:
        want = of_width[d.widths[layer or 0]]
        for path, role in roles.items():
            if role == "output" and tied:
                continue
            for kind in ("weight", "bias"):
                name = f"{prefix}{path}.{kind}"
                expected = want[role] if kind == "weight" else want[role][:1]
                if name not in shapes:
                    if kind == "weight":
                        raise InputRejected(
                            f"{where}: tensor {name} is missing; the checkpoint is incomplete, or config.json of another model"
                        )
                    continue
                if tuple(shapes[name]) != expected:
                    said = f"{name} is {list(shapes[name])}, config.json says {list(expected)}"
                    raise InputRejected(f"{where}: {said}; is config.json of another model?")
                found[name] = Place(layer, role, kind)
    for name in shapes:
        if name not in found and not name.endswith(family.IGNORED) and not (tied and name.startswith("lm_head.")):
            raise InputRejected(f"{where}: tensor {name} {_stranger(family, d, name)}")
    return found


def _stranger(family: ModuleType, d: Decoder, name: str) -> str:
    layer = re.match(re.escape(family.LAYER).replace(r"\{i\}", r"(\d+)"), name)
    if layer and int(layer[1]) >= d.n_blocks:
        return f"belongs to layer {layer[1]}, config.json says {d.n_blocks} layers"
    return f"is not part of a {family.__name__.rsplit('.', 1)[-1]} model; refusing to guess"
