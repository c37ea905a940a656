"""Prune: copy a transformers folder, keeping the blocks of a plan. Kept tensors stay bit-identical; no torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeprune import __version__, families
from edgeprune.blocks import check_blocks, to_text
from edgeprune.checkpoint import CARRIED, ZEROS, Checkpoint, TensorEntry, copy_tensors, open_checkpoint
from edgeprune.errors import InputRejected, WrongWeights
from edgeprune.files import need_space, staging, write_sums
from edgeprune.model_card import model_card
from edgeprune.torch_model import pruned_config, source_name
from edgeprune.types import Blocks, ModelSpec, Plan

SHARD_BYTES = 5 * 10**9  # transformers' default
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def check_plan(plan: Plan, spec: ModelSpec) -> None:
    """Raises WrongWeights when the plan was made for another model, InputRejected when its block list is unusable."""
    if plan.n_blocks_whole != spec.n_blocks:
        raise WrongWeights(
            f"the plan is for {plan.model} with {plan.n_blocks_whole} blocks, {spec.name} has {spec.n_blocks}; plan again"
        )
    if plan.fingerprint != spec.fingerprint:
        raise WrongWeights(
            f"the plan is for {plan.model} ({plan.fingerprint[:12]}), {spec.name} has other weights ({spec.fingerprint[:12]}); "
            "plan again for this model"
        )
    try:
        check_blocks(plan.blocks, spec.n_blocks)
    except ValueError as e:
        raise InputRejected(f"the plan's block list is unusable: {e}; plan again") from None


def prune(
    folder: Path, spec: ModelSpec, plan: Plan, out: Path, *, base_model: str, command: str, force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:  # fmt: skip
    """Write the transformers folder that `plan` leaves of `folder`: safetensors, config, tokenizer, card, SHA256SUMS.

    `spec` is the model the plan must be for (of the .gguf when `folder` was made from one).
    """
    check_plan(plan, spec)
    ck = open_checkpoint(folder)
    config = pruned_config(ck.config, plan.blocks)
    tensors = kept_tensors(ck, plan.blocks)
    total = sum(entry.end - entry.start for entry in tensors.values())
    need_space(out, total)
    with staging(out, force) as partial:
        partial.mkdir()
        write_weights(tensors, partial, progress)
        write_config(partial, config)
        carry(ck.folder, partial)
        (partial / "plan.json").write_text(plan.to_json(), encoding="utf-8")
        write_provenance(partial, provenance(plan, base_model))
        (partial / "README.md").write_text(model_card(ck.folder, spec, plan, base_model, command), encoding="utf-8")
        open_checkpoint(partial)
        write_sums(partial)


def kept_tensors(ck: Checkpoint, blocks: Blocks) -> dict[str, TensorEntry]:
    """New tensor name -> where it is in the whole model, in the order they are written.

    A missing half is written as zeros: transformers has no block without one, and zeros add nothing.
    """
    family = families.for_model_type(ck.config["model_type"])
    halves = {**family.ATTN, **family.FFN}
    prefix = family.LAYER.split("{i}")[0]
    out = {n: ck.tensors[n] for n in sorted(ck.tensors) if not n.startswith(prefix)}
    for new in range(len(blocks)):
        for path in halves:
            for kind in ("weight", "bias"):
                name = family.LAYER.format(i=new) + f"{path}.{kind}"
                source = source_name(family, name, blocks)
                if source in ck.tensors:
                    out[name] = ck.tensors[source]
                elif source is None and (like := family.LAYER.format(i=0) + f"{path}.{kind}") in ck.tensors:
                    entry = ck.tensors[like]
                    out[name] = entry._replace(file=ZEROS, start=0, end=entry.end - entry.start)
    return out


def provenance(plan: Plan, base_model: str) -> dict[str, Any]:
    """What edgeprune.json and the exported files say of where a model comes from; nothing of time or host."""
    return {
        "edgeprune": __version__,
        "base_model": base_model,
        "base_fingerprint": plan.fingerprint,
        "blocks_whole": plan.n_blocks_whole,
        "blocks": len(plan.blocks),
        "kept": to_text(plan.blocks),
        "removed": plan.removed,
        "plan_sha256": plan.digest(),
    }


def read_provenance(folder: Path) -> dict[str, Any]:
    """edgeprune.json of a folder, or {} for a folder not made by edgeprune."""
    path = Path(folder) / "edgeprune.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        raise InputRejected(f"{path} is not JSON; prune again") from None


def write_provenance(folder: Path, origin: dict[str, Any]) -> None:
    (folder / "edgeprune.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")


def write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(tensors: dict[str, TensorEntry], out: Path, progress: Callable[[int, int], None]) -> None:
    """Safetensors of at most SHARD_BYTES each, in the order given, with an index where there are several."""
    shards: list[list[tuple[str, TensorEntry]]] = [[]]
    size = 0
    for name, entry in tensors.items():
        n = entry.end - entry.start
        if shards[-1] and size + n > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, entry))
        size += n
    weight_map = {}
    for k, items in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{k:05d}-of-{len(shards):05d}.safetensors"
        copy_tensors(out / file, items)
        weight_map |= {name: file for name, _ in items}
        progress(k, len(shards))
    if len(shards) > 1:
        total = sum(e.end - e.start for items in shards for _, e in items)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def carry(folder: Path, out: Path) -> None:
    """Tokenizer, chat template, generation config and licences, as they are."""
    for name in CARRIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    for pattern in LICENCES:
        for path in folder.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, out / path.name)
