"""Heal: win back what a cut lost, of layers or of their width. The result is an ordinary pruned folder with other weights.

In closed form (edgeprune.closed_form) or by training (edgeprune.training), as the healer's module says.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgeprune import catalog, families, model
from edgeprune.checkpoint import open_checkpoint, read_tensor
from edgeprune.closed_form import Attempt, Attempts, Change, Kind, attempt, choose, refuse, room
from edgeprune.errors import InputRejected, UsageError
from edgeprune.files import refuse_existing
from edgeprune.folders import public_name
from edgeprune.heal_text import read_kinds
from edgeprune.healed_folder import Job, check_whole, pruned_plan, write
from edgeprune.healers._trainee import place_of
from edgeprune.healing import Healing, Trial, Won, won
from edgeprune.prune import read_provenance
from edgeprune.score import check_finite, package_versions
from edgeprune.torch_model import dtype_of, load, load_thinner, tokenizer
from edgeprune.training.pace import Budget
from edgeprune.training.retrain import retrain
from edgeprune.types import ModelSpec, six
from edgeprune.width_plan import Widths

# Of text to solve by, unless asked for otherwise: half as many win back two to three points less of a hundred (benchmarks/healing).
WINDOWS = 192


def heal(
    folder: Path, base: Path, spec: ModelSpec, out: Path, *, method: str, files: Sequence[Path] = (),
    avoid: Sequence[Path] = (), n_windows: int | None = None, context_tokens: int, budget: Budget | None = None,
    options: Mapping[str, str] | None = None, precision: str = "auto", max_bytes: int | None = None, base_model: str,
    command: str, force: bool = False, say: Callable[[str], None] = lambda _: None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Healing:  # fmt: skip
    """Write to `out` the folder that `edgeprune prune` made, healed. `base` is the whole model's folder, `spec` the model
    the plan must be for (of the .gguf when `base` was made from one).

    `n_windows` of text are solved by; `budget` and `options` are for what is trained, which may start from a folder that
    is healed already. Raises UsageError for an unknown method or unusable text; InputRejected for a folder that prune did
    not write, or that the method can't heal; WrongWeights when `base` is another model.
    """
    refuse_existing(out, force)
    check(base, method)
    healer = catalog.load("edgeprune.healers", method)
    job = Job(Path(folder), base, spec, pruned_plan(folder), Path(out), base_model, command, force)
    check_whole(job.plan, spec)
    if isinstance(job.plan, Widths):
        _refuse_thinner(job.plan, healer, method)
    if not is_trained(healer):
        if budget or options:
            raise UsageError(f"{method} is solved in closed form: --tokens, --minutes and --set are for training")
        return solve(
            job, healer, method, files, avoid, n_windows or WINDOWS, context_tokens, precision, max_bytes, progress
        )
    if n_windows:
        raise UsageError(f"{method} trains: say how long by --tokens or --minutes, not by --windows")
    return retrain(
        job, healer, method, files=files, avoid=avoid, context_tokens=context_tokens, budget=budget or Budget(),
        options=options or {}, precision=precision, max_bytes=max_bytes, say=say, progress=progress,
    )  # fmt: skip


def is_trained(healer: ModuleType) -> bool:
    return hasattr(healer, "prepare")


def check(base: Path, method: str) -> None:
    """Raises, before any work, UsageError for a method that is unknown or lacks a package, InputRejected for a model it
    can't heal."""
    healer = catalog.load("edgeprune.healers", method)
    needs = getattr(healer, "REQUIRES", None)
    if needs and importlib.util.find_spec(needs) is None:
        raise UsageError(f"healing by {method} needs {needs}; pip install 'edgeprune[heal]'")
    if not is_trained(healer):
        refuse(open_checkpoint(base), healer, method)


def _refuse_thinner(widths: Widths, healer: ModuleType, method: str) -> None:
    """Raises InputRejected where a model of thinner layers can't be healed so, with the reason."""
    if not getattr(healer, "THINNER", False):
        able = [name for name, h in catalog.load_all("edgeprune.healers").items() if getattr(h, "THINNER", False)]
        raise InputRejected(
            f"{method} heals models from which sub-layers were removed, and this one's are thinner; heal it by {' or '.join(able)}"
        )
    if widths.hidden is not None:
        raise InputRejected(
            f"{widths.method} left this model's stream in another basis, {widths.hidden} wide, where nothing can be compared "
            "with the whole model's; leave it as it is, or thin by flap, taylor or wanda_sp"
        )


def _thinner(job: Job, whole: Any, max_bytes: int | None) -> Any:
    """The thinner model beside the whole one, in the memory that is left."""
    left = None if max_bytes is None else max(1, max_bytes - sum(p.nbytes for p in whole.parameters()))
    return load_thinner(job.folder, str(whole.dtype).removeprefix("torch."), left)


def solve(
    job: Job, healer: ModuleType, method: str, files: Sequence[Path], avoid: Sequence[Path], n_windows: int,
    context_tokens: int, precision: str, max_bytes: int | None, progress: Callable[[str, int, int], None],
) -> Healing:  # fmt: skip
    """In closed form: of all scopes the one that helps most and harms no kind of text is written."""
    started = time.monotonic()
    if "healed" in read_provenance(job.folder):  # maybe before it was thinned
        raise InputRejected(
            f"{job.folder} is healed already, and {method} solves from the whole model's weights; heal the folder that "
            "`edgeprune prune` made of the whole model"
        )
    text, kinds = read_kinds(tokenizer(job.base), job.spec, files, avoid, n_windows, context_tokens)
    whole = load(job.base, dtype=dtype_of(precision), max_bytes=max_bytes)
    check_finite(whole, job.spec)
    thinner = _thinner(job, whole, max_bytes) if isinstance(job.plan, Widths) else None
    room(whole, kinds, len(healer.SCOPES), max_bytes, thinner)
    found = attempt(
        whole, job.plan.blocks, [healer], kinds, lambda done, n: progress(f"healing by {method}", done, n), thinner
    )
    best = choose(found)
    changes = best.changes if best else ()
    made = Healing(
        method=method, source=healer.SOURCE, scope=best.scope if best else None, text=text.text,
        fit_windows=sum(len(kind.fit) for kind in kinds), precision=str(whole.dtype).removeprefix("torch."),
        trials=tuple(Trial(scope=a.scope, kl=tuple(map(six, a.kl))) for a in found.healed),
        kinds=_won(kinds, found, best or found.cut), changed=tuple(f"{kind}{i}" for (kind, i), _ in changes),
        seconds=round(time.monotonic() - started, 1), versions=package_versions(),
    )  # fmt: skip
    write(job, made, _solved(job, changes))
    return made


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


def _won(kinds: Sequence[Kind], found: Attempts, healed: Attempt) -> tuple[Won, ...]:
    loss, kl = (found.loss_whole, found.cut.loss, healed.loss), (found.cut.kl, healed.kl)
    return tuple(
        won(kind.name, len(kind.aside), [x[k] for x in loss], [x[k] for x in kl]) for k, kind in enumerate(kinds)
    )


def _solved(job: Job, changes: Sequence[Change]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, new values) of every output projection that was solved anew."""
    ck = open_checkpoint(job.folder)
    family = families.for_model_type(ck.config["model_type"])
    outputs = dict(zip("AF", family.OUTPUTS, strict=True))
    for change in changes:
        name = f"{family.LAYER.format(i=place_of(change.half, job.plan.blocks))}{outputs[change.half[0]]}.weight"
        yield name, read_tensor(ck, name).astype(np.float64) + change.delta.double().numpy().T
