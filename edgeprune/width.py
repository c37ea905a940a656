"""Width: rate what can be taken out of every block, choose, and write the thinner model. Matrices really shrink."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgeprune import __version__, catalog, families, model
from edgeprune._width_tensors import Means, biases, rotated, sliced_config, thin_config, thinner
from edgeprune.blocks import whole
from edgeprune.calibration import Windows
from edgeprune.checkpoint import Checkpoint, TensorEntry, halves, open_checkpoint, put_tensor, read_tensor
from edgeprune.errors import InputRejected, OutOfResources, WrongWeights
from edgeprune.files import need_space, refuse_existing, staging, write_sums
from edgeprune.model_card import width_card
from edgeprune.prune import carry, kept_tensors, read_provenance, write_config, write_provenance, write_weights
from edgeprune.score import check_finite, package_versions, read_windows
from edgeprune.torch_model import free_bytes, load, refuse_uneven, tokenizer
from edgeprune.types import ModelSpec
from edgeprune.width_plan import Widths, make_plan

if TYPE_CHECKING:
    from edgeprune.widths._ratings import Ratings

Progress = Callable[[str, int, int], None]  # what, done, total
WINDOWS = 32  # of calibration text, unless asked for otherwise


class Rated(NamedTuple):
    """What a method found on calibration text: ratings, or a rotation (d, d); enough for any number of plans."""

    method: str
    text: Windows
    ratings: Ratings | None
    rotation: np.ndarray | None


def rate(
    folder: Path, spec: ModelSpec, method: str, *, files: Sequence[Path] = (), n_windows: int = WINDOWS,
    context_tokens: int = 512, max_bytes: int | None = None, progress: Progress = lambda *_: None,
) -> Rated:  # fmt: skip
    """Load a transformers folder and rate it by a method of edgeprune.widths.

    Raises UsageError for an unknown method, InputRejected for a model that it can't thin, OutOfResources for one that is too
    large for memory.
    """
    module = catalog.load("edgeprune.widths", method)
    ck = open_checkpoint(folder)
    refuse(ck, module, method)
    text = read_windows(tokenizer(folder), spec, files, n_windows, context_tokens)
    whole_model = load(folder, max_bytes=max_bytes)
    _room(whole_model, method, max_bytes)
    check_finite(whole_model, spec)

    def tick(done: int, total: int) -> None:
        progress(f"rating by {method}", done, total)

    if hasattr(module, "rotation"):
        return Rated(method, text, None, module.rotation(whole_model, text.windows, tick).numpy())
    return Rated(method, text, module.rate(whole_model, text.windows, tick), None)


def plan(spec: ModelSpec, rated: Rated, ratio: float, rounding: int = 32, uniform: bool = True) -> Widths:
    """`width_plan.make_plan` of what was rated, saying on which text."""
    text = rated.text.text
    return make_plan(spec, rated.method, rated.ratings, ratio, rounding, uniform, text, package_versions())


def _room(whole_model: Any, method: str, max_bytes: int | None) -> None:
    """Raises OutOfResources where weights, and for Taylor their gradients, don't stay in memory together."""
    weights = [*whole_model.parameters()]
    gradients = 4 * sum(p.numel() for p in weights) if method == "taylor" else 0
    loaded = 0 if max_bytes is None else sum(p.nbytes for p in weights)  # what is free leaves them out already
    if any(p.is_meta for p in weights) or loaded + gradients > (max_bytes or free_bytes()):
        more = ", and as many gradients" if gradients else ""
        raise OutOfResources(
            f"{method} keeps all weights in memory{more}; raise --max-memory, or use a machine with more"
        )


def refuse(ck: Checkpoint, module: ModuleType, method: str) -> None:
    """Raises InputRejected, saying what else there is, for a model that a method can't thin."""
    refuse_uneven(ck.config)
    model_type = ck.config["model_type"]
    family = families.for_model_type(model_type)
    d = family.decoder(ck.config)
    if not all(a and f for a, f in halves(ck)):
        raise InputRejected(f"{ck.folder} lacks halves of blocks; thin a model of whole ones, or of a portable plan's")
    if d.qk_norm_whole:  # and norms after its sub-layers, which rule the rotation out
        raise InputRejected(
            f"{model_type} norms queries and keys over all heads together: without one head the others change; "
            "remove layers instead (edgeprune plan)"
        )
    if hasattr(module, "rotation") and families.norms_after(family):
        raise InputRejected(
            f"{model_type} has norms after its sub-layers, which no rotation passes; use wanda_sp or taylor, or remove layers"
        )
    if getattr(module, "COMPENSATES", False) and not hasattr(family, "OUTPUT_BIASES"):
        able = [n for n, m in catalog.load_all("edgeprune.families").items() if hasattr(m, "OUTPUT_BIASES")]
        raise InputRejected(
            f"{method} puts biases on the output projections, for which {model_type} has no place ({', '.join(able)} have); "
            "use wanda_sp or taylor"
        )


def prune(
    folder: Path, spec: ModelSpec, rated: Rated, widths: Widths, out: Path, *, base_model: str, command: str,
    force: bool = False, progress: Progress = lambda *_: None,
) -> None:  # fmt: skip
    """Write the transformers folder that `widths` leave of `folder`: safetensors, config, tokenizer, card, SHA256SUMS.

    What is kept of a matrix keeps its bits (but for a rotation), a matrix that is kept whole is copied. Raises WrongWeights
    where `widths` are of another model or not of `rated`.
    """
    refuse_existing(out, force)
    if (widths.fingerprint, widths.method) != (spec.fingerprint, rated.method):
        raise WrongWeights(f"these widths are {widths.method}'s for {widths.model}; plan them again for {spec.name}")
    ck = open_checkpoint(folder)
    family = families.for_model_type(ck.config["model_type"])
    d = family.decoder(ck.config)
    tensors = kept_tensors(ck, whole(d.n_blocks))
    need_space(out, 2 * sum(entry.end - entry.start for entry in tensors.values()))
    added: dict[str, np.ndarray] = {}
    if rated.rotation is not None:
        change = rotated(ck, family, d, rated.rotation[:, : widths.hidden])
        config = sliced_config(ck.config, family, d, widths.hidden)
    else:
        thin = any(b.groups or b.channels for b in widths.blocks)
        means = Means(rated.ratings.attn_means, rated.ratings.ffn_means) if rated.ratings.attn_means and thin else None
        change, config = thinner(family, d, widths), thin_config(ck.config, family, d, widths, means is not None)
        added = biases(ck, family, d, widths, means) if means else {}
    with staging(out, force) as partial:
        partial.mkdir()
        news = partial / "changed.bin"
        tensors = _changed(ck, family, d, tensors, change, added, rated.rotation is not None, news, progress)
        write_weights(tensors, partial, lambda *_: None)
        news.unlink()
        write_config(partial, config)
        carry(ck.folder, partial)
        (partial / "widths.json").write_text(widths.to_json(), encoding="utf-8")
        write_provenance(partial, provenance(folder, spec, widths, base_model))
        after = model.inspect(partial, spec.name)
        card = width_card(ck.folder, spec, after, widths, base_model, command)
        (partial / "README.md").write_text(card, encoding="utf-8")
        write_sums(partial)


def provenance(folder: Path, spec: ModelSpec, widths: Widths, base_model: str) -> dict[str, Any]:
    """What edgeprune.json says, beside what it says of layers removed before; the base is what all began with."""
    mine = {
        "edgeprune": __version__, "base_model": base_model, "base_fingerprint": spec.fingerprint, "width": widths.method,
        "width_ratio": widths.ratio, "width_rounding": widths.rounding, "widths_sha256": widths.digest(),
    }  # fmt: skip
    earlier = {k: v for k, v in read_provenance(folder).items() if k not in mine or k.startswith("base_")}
    return mine | earlier


def _changed(
    ck: Checkpoint, family: ModuleType, d: families.Decoder, tensors: dict[str, TensorEntry], change: Any,
    added: dict[str, np.ndarray], untie: bool, news: Path, progress: Progress,
) -> dict[str, TensorEntry]:  # fmt: skip
    """Where every tensor of the new folder is: in the old one, or in the file `news`, written here."""
    places = families.place(family, d, {n: e.shape for n, e in ck.tensors.items()}, ck.folder)
    out = {name: entry for name, entry in tensors.items() if name in places}
    at = {role: f"{path}.weight" for path, role in family.GLOBALS.items()}
    with news.open("wb") as f:

        def put(name: str, values: np.ndarray, dtype: str) -> None:
            overflow = f"{name} overflows {dtype} once changed; start from a folder of wider weights"
            out[name] = put_tensor(f, values, dtype, overflow)

        for done, name in enumerate([*out], 1):
            values = change(places[name], read_tensor(ck, name))
            if values is not None:
                put(name, values, out[name].dtype)
            progress("writing", done, len(out))
        embedding = at["token_embd"]
        if untie and at["output"] not in out:
            head = change(families.Place(None, "output", "weight"), read_tensor(ck, embedding))
            put(at["output"], head, ck.tensors[embedding].dtype)
        for name, values in added.items():
            put(name, values, ck.tensors[name.replace(".bias", ".weight")].dtype)
    return out
