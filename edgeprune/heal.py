"""Heal: win back what a cut lost, at no cost at run time. The result is an ordinary pruned folder with other weights."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import __version__, catalog, families, model
from edgeprune.calibration import Windows, read_texts, text_sha256
from edgeprune.checkpoint import Checkpoint, TensorEntry, open_checkpoint, read_tensor
from edgeprune.closed_form import Attempt, Attempts, Change, Kind, attempt, refuse, room
from edgeprune.errors import InputRejected, UsageError
from edgeprune.files import check_sums, need_space, refuse_existing, staging, write_sums
from edgeprune.folders import public_name
from edgeprune.healing import Healed, Healing, Trial, Won
from edgeprune.model_card import model_card
from edgeprune.prune import check_plan, read_provenance, write_weights
from edgeprune.score import check_finite, package_versions, read_windows
from edgeprune.torch_model import fast_dtype, load, tokenizer
from edgeprune.types import Blocks, ModelSpec, Plan

WINDOWS = 48  # of text, unless asked for otherwise
ASIDE = 8  # one window in so many of each kind of text is held aside, at least one
PARTS = 3  # a single text is cut into so many, which stand for kinds


def heal(
    folder: Path, base: Path, spec: ModelSpec, out: Path, *, method: str, files: Sequence[Path] = (),
    avoid: Sequence[Path] = (), n_windows: int, context_tokens: int, precision: str = "auto",
    max_bytes: int | None = None, base_model: str, command: str, force: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Healing:  # fmt: skip
    """Write to `out` the folder that `edgeprune prune` made, healed. `base` is the whole model's folder, `spec` the model
    the plan must be for (of the .gguf when `base` was made from one).

    Raises UsageError for an unknown method or unusable text; InputRejected for a folder that prune did not write, that is
    healed already, or of a family that the method can't heal; WrongWeights when `base` is another model.
    """
    started = time.monotonic()
    refuse_existing(out, force)
    healer = catalog.load("edgeprune.healers", method)
    plan = pruned_plan(folder)
    check_plan(plan, spec)
    refuse(open_checkpoint(base), healer, method)
    text, kinds = read_kinds(tokenizer(base), spec, files, avoid, n_windows, context_tokens)
    whole = load(base, dtype=(fast_dtype() if precision == "auto" else precision), max_bytes=max_bytes)
    check_finite(whole, spec)
    room(whole, kinds, len(healer.SCOPES), max_bytes)
    found = attempt(whole, plan.blocks, healer, kinds, lambda done, n: progress(f"healing by {method}", done, n))
    best = choose(found)
    made = Healing(
        method=method, source=healer.SOURCE, scope=best.scope if best else None, text=text.text,
        fit_windows=sum(len(kind.fit) for kind in kinds), precision=str(whole.dtype).removeprefix("torch."),
        trials=tuple(Trial(scope=a.scope, kl=_round(a.kl)) for a in found.healed),
        kinds=won(kinds, found, best or found.cut), changed=tuple(map(_healed, best.changes if best else ())),
        seconds=round(time.monotonic() - started, 1), versions={"edgeprune": __version__} | package_versions(),
    )  # fmt: skip
    write(folder, base, spec, plan, made, best.changes if best else (), out, base_model, command, force)
    return made


def pruned_plan(folder: Path) -> Plan:
    """The plan of a folder that `edgeprune prune` wrote and nobody changed since. Raises InputRejected for any other."""
    folder = Path(folder)
    for name in ("plan.json", "edgeprune.json", "SHA256SUMS"):
        if not (folder / name).is_file():
            raise InputRejected(f"{folder} has no {name}: heal a folder that `edgeprune prune` wrote")
    origin = read_provenance(folder)
    if "healed" in origin:
        raise InputRejected(f"{folder} is healed already; heal the folder that `edgeprune prune` wrote")
    check_sums(folder)
    try:
        plan = Plan.from_json((folder / "plan.json").read_text(encoding="utf-8"))
    except ValueError as e:
        raise InputRejected(f"{folder}/plan.json: {e}; prune again") from None
    if origin.get("plan_sha256") != plan.digest():
        raise InputRejected(f"{folder}: edgeprune.json is of another plan than plan.json; prune again")
    return plan


def find_base(folder: Path, named: str | None) -> tuple[Path, str]:
    """Where the whole model of a pruned folder is, and what a card may call it: as `named`, else as edgeprune.json says.

    Raises InputRejected when it isn't there.
    """
    name = str(read_provenance(folder).get("base_model", ""))
    try:
        return model.resolve(named or name), name or public_name(named or "")
    except InputRejected as e:
        hint = "" if named else f"; {folder} was made from {name!r}: say where that is with --base"
        raise InputRejected(f"{e}{hint}") from None


def read_kinds(
    tok: Any, spec: ModelSpec, files: Sequence[Path], avoid: Sequence[Path], n_windows: int, context_tokens: int
) -> tuple[Windows, list[Kind]]:
    """Calibration text by kind: every text is one, and a single text's thirds stand for three.

    Raises UsageError when a kind is too short to hold a window aside, or when one of the texts is in `avoid`.
    """
    judging = {text_sha256(text) for _, text in (read_texts(avoid, "evaluation") if avoid else [])}
    named = read_texts(files, "calibration")
    for name, text in named:
        if text_sha256(text) in judging:
            raise UsageError(f"{name} is to judge the result, it can't also heal it; name another --calibration")
    read = read_windows(tok, spec, files, n_windows, context_tokens)
    by_text: list[tuple[str, list[list[int]]]] = [
        (name, [w for w, k in zip(read.windows, read.kinds, strict=True) if k == i])
        for i, (name, _) in enumerate(named)
    ]
    if len(by_text) == 1:
        ((name, found),) = by_text
        ends = [round(part * len(found) / PARTS) for part in range(PARTS + 1)]
        by_text = [(f"{name}, part {i + 1}", found[ends[i] : ends[i + 1]]) for i in range(PARTS)]
    return read, [_kind(name, found, context_tokens) for name, found in by_text]


def _kind(name: str, found: list[list[int]], context_tokens: int) -> Kind:
    n = max(1, len(found) // ASIDE)
    aside = {(2 * i + 1) * len(found) // (2 * n) for i in range(n)}
    fit = [w for i, w in enumerate(found) if i not in aside]
    if not fit:
        raise UsageError(
            f"{name} gives {len(found)} windows of {context_tokens} tokens, healing needs two of each kind of text; "
            "give more text, more --windows or a smaller --window"
        )
    return Kind(name, fit, [found[i] for i in sorted(aside)])


def choose(found: Attempts) -> Attempt | None:
    """Of the attempts that are no worse than the cut on any kind of text, the one with the least KL; None of none."""
    able = [
        a for a in found.healed if a.changes and all(x <= y for x, y in zip(a.kl, found.cut.kl, strict=True))
    ]  # fmt: skip
    return min(able, key=lambda a: sum(a.kl), default=None)


def won(kinds: Sequence[Kind], found: Attempts, healed: Attempt) -> tuple[Won, ...]:
    return tuple(
        Won(
            text=kind.name, windows=len(kind.aside), perplexity_whole=_perplexity(found.loss_whole[k]),
            perplexity_cut=_perplexity(found.cut.loss[k]), perplexity_healed=_perplexity(healed.loss[k]),
            kl_cut=_round(found.cut.kl)[k], kl_healed=_round(healed.kl)[k],
        )
        for k, kind in enumerate(kinds)
    )  # fmt: skip


def write(
    folder: Path, base: Path, spec: ModelSpec, plan: Plan, made: Healing, changes: Sequence[Change], out: Path,
    base_model: str, command: str, force: bool,
) -> None:  # fmt: skip
    """The pruned folder with changed weights, in the type they were stored in; all others stay bit-identical."""
    ck = open_checkpoint(folder)
    need_space(out, 2 * sum(entry.end - entry.start for entry in ck.tensors.values()))
    with staging(out, force) as partial:
        shutil.copytree(folder, partial, ignore=shutil.ignore_patterns("*.safetensors*", "SHA256SUMS", "README.md"))
        news = partial / "changed.bin"
        tensors = _changed(ck, plan.blocks, changes, news)
        write_weights(tensors, partial, lambda done, total: None)
        news.unlink()
        (partial / "healing.json").write_text(made.to_json(), encoding="utf-8")
        origin = read_provenance(folder) | provenance(made)
        (partial / "edgeprune.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(model_card(base, spec, plan, base_model, command, made), encoding="utf-8")
        open_checkpoint(partial)
        write_sums(partial)


def provenance(made: Healing) -> dict[str, Any]:
    """What healing adds to edgeprune.json and to exported files; all of it is in healing.json."""
    return {
        "healed": made.method if made.changed else f"{made.method}: it helped nothing, nothing was changed",
        "healed_text_sha256": made.text.sha256,
        "healed_tokens": made.fit_windows * made.text.context_tokens,
        "healed_strengths": " ".join(f"{c.sublayer}:{c.strength:g}" for c in made.changed if c.strength is not None),
        "healed_seconds": made.seconds,
    }


def _changed(ck: Checkpoint, blocks: Blocks, changes: Sequence[Change], news: Path) -> dict[str, TensorEntry]:
    """The folder's tensors, with entries in the file `news` for those that changed."""
    family = families.for_model_type(ck.config["model_type"])
    outputs = dict(zip("AF", family.OUTPUTS, strict=True))
    tensors = dict(ck.tensors)
    with news.open("wb") as f:
        for change in changes:
            kind, layer = change.half
            at = next(n for n, b in enumerate(blocks) if layer == (b.attn if kind == "A" else b.ffn))
            name = f"{family.LAYER.format(i=at)}{outputs[kind]}.weight"
            old = read_tensor(ck, name)
            values = (old.astype(np.float64) + change.delta.double().numpy().T).astype(old.dtype)
            if not np.isfinite(values.astype(np.float32)).all():
                raise InputRejected(f"{name} overflows {old.dtype} once healed; heal a folder of wider weights")
            start = f.tell()
            f.write(values.tobytes())
            tensors[name] = ck.tensors[name]._replace(file=news, start=start, end=f.tell())
    return tensors


def _healed(change: Change) -> Healed:
    return Healed(
        sublayer="".join(map(str, change.half)), strength=change.strength,
        left_out=None if change.left_out is None else round(change.left_out, 4),
    )  # fmt: skip


def _perplexity(loss: float) -> float:
    return float(f"{math.exp(loss):.6g}")


def _round(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{v:.6g}") for v in values)
