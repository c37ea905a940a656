"""The healed folder: an ordinary pruned folder with other weights, and healing.json that says what was done."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeprune import cost, devices, families, model
from edgeprune.blocks import describe_removed, from_text, whole
from edgeprune.checkpoint import ZEROS, Checkpoint, TensorEntry, open_checkpoint, put_tensor, read_tensor
from edgeprune.errors import InputRejected, UsageError, WrongWeights
from edgeprune.files import check_sums, need_space, staging, write_sums
from edgeprune.healing import Healing
from edgeprune.model_card import model_card, width_card
from edgeprune.prune import (
    check_plan,
    kept_tensors,
    provenance,
    read_provenance,
    write_config,
    write_provenance,
    write_weights,
)
from edgeprune.torch_model import pruned_config, source_name
from edgeprune.types import Blocks, ModelSpec, Plan
from edgeprune.width_plan import Widths

REWRITTEN = ("*.safetensors*", "SHA256SUMS", "README.md")


class Job(NamedTuple):
    """A pruned folder to heal, and where to."""

    folder: Path
    base: Path  # the whole model's folder
    spec: ModelSpec  # of the model the plan is for: of the .gguf when `base` was made from one
    plan: Plan | Widths
    out: Path
    base_model: str  # how a card calls it
    command: str
    force: bool = False


def pruned_plan(folder: Path) -> Plan | Widths:
    """What `edgeprune prune` left of the whole model in this folder, which nobody changed since but `edgeprune heal`.

    Of a folder that was thinned after layers were removed, the block list is of the whole model. Raises InputRejected for
    any other folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputRejected(f"{folder} is not a folder; heal one that `edgeprune prune` wrote")
    name, kind = ("widths.json", Widths) if (folder / "widths.json").is_file() else ("plan.json", Plan)
    for needed in (name, "edgeprune.json", "SHA256SUMS"):
        if not (folder / needed).is_file():
            raise InputRejected(f"{folder} has no {needed}: heal a folder that `edgeprune prune` wrote")
    origin = read_provenance(folder)
    check_sums(folder)
    try:
        plan = kind.from_json((folder / name).read_text(encoding="utf-8"))
    except ValueError as e:
        raise InputRejected(f"{folder}/{name}: {e}; prune again") from None
    if origin.get(f"{name.removesuffix('.json')}_sha256") != plan.digest():
        raise InputRejected(f"{folder}: edgeprune.json is of another plan than {name}; prune again")
    return plan if isinstance(plan, Plan) else _of_the_whole(plan, origin)


def _of_the_whole(widths: Widths, origin: dict[str, Any]) -> Widths:
    """With the block list in the numbers of the model that all began with, and that one's fingerprint."""
    before = from_text(origin["kept"]) if "kept" in origin else whole(len(widths.blocks))
    blocks = (
        thin.model_copy(update={"attn": b.attn, "ffn": b.ffn}) for thin, b in zip(widths.blocks, before, strict=True)
    )
    return widths.model_copy(update={"blocks": tuple(blocks), "fingerprint": origin["base_fingerprint"]})


def check_whole(plan: Plan | Widths, spec: ModelSpec) -> None:
    """Raises WrongWeights when the folder was pruned from another model than `spec`'s."""
    if isinstance(plan, Plan):
        check_plan(plan, spec)
    elif plan.fingerprint != spec.fingerprint:
        raise WrongWeights(
            f"the folder was thinned from other weights ({plan.fingerprint[:12]}) than {spec.name}'s "
            f"({spec.fingerprint[:12]}); name its whole model with --base"
        )


def taken_out(plan: Plan | Widths) -> str:
    """For a person: "layers 11-13", "20.0% of the blocks' parameters (flap)"."""
    if isinstance(plan, Plan):
        return plan.removed or "nothing"
    return f"{plan.ratio:.1%} of the blocks' parameters ({plan.method})" if plan.ratio else "nothing"


def earlier(folder: Path) -> Healing | None:
    """What healed this folder already. Raises InputRejected when its healing.json is of another edgeprune."""
    path = Path(folder) / "healing.json"
    try:
        return Healing.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as e:
        raise InputRejected(f"{path}: {e}; heal again from the folder that `edgeprune prune` wrote") from None


def with_more(plan: Plan, spec: ModelSpec, blocks: Blocks) -> Plan:
    """The plan of a folder to which removed sub-layers were given back. What was measured or expected of the cut is not
    known of it; memory and speed are foretold anew where the device is known here, and not by what this host is."""
    unknown = dict.fromkeys(("damage_kl", "damage_perplexity", "expected_kl", "expected_ppl_ratio"))
    said = {"blocks": blocks, "removed": describe_removed(blocks, plan.n_blocks_whole)}
    if plan.device != devices.HOST:
        with contextlib.suppress(UsageError):
            said["prediction"] = cost.predict(
                spec, blocks, devices.load(plan.device), plan.runtime, plan.backend, plan.quant,
                plan.budget.context_tokens, plan.budget.prompt_tokens, plan.mode, plan.kv_type,
            )  # fmt: skip
    return plan.model_copy(update=unknown | said)


def give_back(job: Job, more: Plan, out: Path) -> None:
    """Write to `out` a folder with the blocks of `more`: what the job's folder has is its, the rest the whole model's."""
    ck, whole = open_checkpoint(job.folder), open_checkpoint(job.base)
    family = families.for_model_type(ck.config["model_type"])
    here = {source_name(family, name, job.plan.blocks): entry for name, entry in ck.tensors.items()}
    tensors = {
        name: here.get(source_name(family, name, more.blocks), entry) if entry.file != ZEROS else entry
        for name, entry in kept_tensors(whole, more.blocks).items()
    }
    need_space(out, sum(entry.end - entry.start for entry in tensors.values()))
    shutil.copytree(job.folder, out, ignore=shutil.ignore_patterns(*REWRITTEN))
    write_weights(tensors, out, lambda done, total: None)
    config = pruned_config(whole.config, more.blocks)
    write_config(out, config)
    (out / "plan.json").write_text(more.to_json(), encoding="utf-8")
    origin = read_provenance(job.folder)
    write_provenance(out, origin | provenance(more, origin["base_model"]))
    open_checkpoint(out)


def write(job: Job, made: Healing, changed: Iterable[tuple[str, np.ndarray]]) -> None:
    """The job's folder with the changed tensors, in the type they were stored in; all others stay bit-identical."""
    ck = open_checkpoint(job.folder)
    need_space(job.out, 2 * sum(entry.end - entry.start for entry in ck.tensors.values()))
    with staging(job.out, job.force) as partial:
        shutil.copytree(job.folder, partial, ignore=shutil.ignore_patterns(*REWRITTEN))
        news = partial / "changed.bin"
        write_weights(_with(ck, changed, news), partial, lambda done, total: None)
        news.unlink()
        (partial / "healing.json").write_text(made.to_json(), encoding="utf-8")
        write_provenance(partial, read_provenance(job.folder) | said_of(made))
        (partial / "README.md").write_text(_card(job, partial, made), encoding="utf-8")
        open_checkpoint(partial)
        write_sums(partial)


def _card(job: Job, healed: Path, made: Healing) -> str:
    told = job.base_model, job.command, made
    if isinstance(job.plan, Plan):
        return model_card(job.base, job.spec, job.plan, *told)
    return width_card(job.base, job.spec, model.inspect(healed, job.spec.name), job.plan, *told)


def said_of(made: Healing) -> dict[str, Any]:
    """What healing adds to edgeprune.json and to exported files; all of it is in healing.json."""
    return {
        "healed": ", then ".join(_said(step) for step in made.steps()),
        "healed_text_sha256": made.text.sha256,
        "healed_tokens": made.trained.tokens if made.trained else made.fit_windows * made.text.context_tokens,
        "healed_scope": made.scope or "",
        "healed_seconds": made.seconds,
    }


def _said(made: Healing) -> str:
    return made.method if made.changed else f"{made.method}: it helped nothing, nothing was changed"


def _with(ck: Checkpoint, changed: Iterable[tuple[str, np.ndarray]], news: Path) -> dict[str, TensorEntry]:
    """The folder's tensors, with entries in the file `news` for those that changed."""
    tensors = dict(ck.tensors)
    with news.open("wb") as f:
        for name, new in changed:
            values = new.astype(read_tensor(ck, name).dtype)
            overflow = f"{name} overflows {values.dtype} once healed; heal a folder of wider weights"
            tensors[name] = put_tensor(f, values, ck.tensors[name].dtype, overflow)
    return tensors
