"""Export: a model to a runtime's format. Finished only when loaded there and compared with where it came from."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeprune import catalog, folders
from edgeprune.bench import physical_cores, runtime_for
from edgeprune.calibration import default_text
from edgeprune.checkpoint import open_checkpoint
from edgeprune.divergence import mean_kl
from edgeprune.errors import InputRejected, UsageError
from edgeprune.files import check_sums, refuse_existing, sha256_tree, staging, tree_bytes, write_sums
from edgeprune.gguf_file import file_type, read_header
from edgeprune.prune import read_provenance
from edgeprune.types import Artifact

if TYPE_CHECKING:
    import numpy as np

    from exporters import Options

CHECK_TOKENS = 128
MAX_LOGIT_ERROR = 1e-3  # for 32-bit exports
# Nats per token by least bits per weight. Far above what rounding does, far below what a wrong graph does (5 and more);
# below three bits rounding alone can do that.
MAX_KL = {32: 1e-4, 16: 0.02, 8: 0.2, 3: 3.0, 0: float("inf")}


class Check(NamedTuple):
    max_logit_error: float
    mean_kl: float


def exporter(fmt: str):
    """The exporter module of a format. Raises UsageError for an unknown one."""
    import exporters

    if getattr(exporters, "MARKER", None) != "edgeprune":
        raise UsageError(
            f"another package named 'exporters' is in the way at {exporters.__file__}; uninstall it or use a clean venv"
        )
    return catalog.load("exporters", fmt)


def quant_name(fmt: str, quant: str) -> str:
    """A quantisation as the exporter spells it. Raises UsageError naming those there are."""
    module = exporter(fmt)
    known = {q.lower(): q for q in module.QUANTS}
    known |= {alias.lower(): q for alias, q in getattr(module, "ALIASES", {}).items()}
    if quant.lower() not in known:
        near = catalog.did_you_mean(quant, sorted(known))
        raise UsageError(f"{fmt} has no quantisation {quant!r}.{near} Known: {', '.join(module.QUANTS)}.")
    return known[quant.lower()]


def formats() -> dict[str, str]:
    """Runtime -> the format it reads."""
    return {module.RUNTIME: fmt for fmt, module in catalog.load_all("exporters").items()}


def takes(source: Path, fmt: str) -> bool:
    """Whether the exporter reads `source` as it is: any folder, and a file of its own format."""
    suffix = exporter(fmt).SUFFIX
    return source.is_dir() or (bool(suffix) and source.suffix == suffix)


def notes(source: Path, fmt: str, quant: str) -> list[str]:
    """What a person should know before the work, such as of a source that is quantised already."""
    said = getattr(exporter(fmt), "notes", None) if takes(source, fmt) else None
    return said(source, quant_name(fmt, quant)) if said else []


def export(
    source: Path, fmt: str, quant: str, out: Path, *, options: Options | None = None, force: bool = False,
    verify: bool = True, progress: Callable[[str, float], None] = lambda what, fraction: None,
) -> Artifact:  # fmt: skip
    """Write `out` from a transformers folder or a .gguf file and return its record.

    Of a format that is a file, an `out` without its suffix becomes a folder: the file under gguf-py's name, card,
    licence, Modelfile. The result is compared with torch, or with the .gguf file it was made from in llama.cpp.
    Raises UsageError for an unknown format or quantisation, InputRejected when the source is damaged, can't be
    expressed, or when the result does not agree with it.
    """
    import exporters

    options = options or exporters.PLAIN
    module, quant = exporter(fmt), quant_name(fmt, quant)
    refuse_existing(out, force)
    if not takes(source, fmt):
        with folders.as_folder(source) as folder:
            return export(folder, fmt, quant, out, options=options, force=force, verify=verify, progress=progress)
    check_sums(source)
    n_blocks = _n_blocks(source)
    module.check(source, quant, options)
    provenance = {k: str(v) for k, v in read_provenance(source).items()} if source.is_dir() else {}
    furnished = bool(module.SUFFIX) and out.suffix != module.SUFFIX
    with staging(out, force) as partial:
        file = partial / f"model{module.SUFFIX}" if furnished else partial
        if furnished:
            partial.mkdir()
        module.export(source, file, quant, provenance, progress, options)
        check = None
        if verify:
            progress("comparing with the source", 0.0)
            check = compare_with_source(source, file, module.RUNTIME)
            progress("comparing with the source", 1.0)
            _judge(check, quant, out, source)
        if furnished:
            from edgeprune.gguf_folder import furnish

            furnish(source, file, check.mean_kl if check else None)
        if partial.is_dir():
            write_sums(partial)
        n_bytes, sha = tree_bytes(partial), sha256_tree(partial)
    return Artifact(
        path=str(out), format=fmt, quant=quant, bytes=n_bytes, sha256=sha, n_blocks=n_blocks,
        max_logit_error=check.max_logit_error if check else None, mean_kl=check.mean_kl if check else None,
    )  # fmt: skip


def compare_with_source(source: Path, artifact: Path, runtime: str) -> Check:
    """Largest logit difference and mean KL(source ‖ artifact) over a check prompt, in the runtimes' precise mode."""
    import numpy as np

    tokens, expected = _reference(source, sha256_tree(source))
    session = catalog.load("edgeprune.runtimes", runtime).open_session(artifact, **_precise())
    try:
        found = session.logits(tokens)
    finally:
        session.close()
    if found.shape != expected.shape:
        raise InputRejected(f"{artifact.name} gives logits of shape {list(found.shape)}, not {list(expected.shape)}")
    # The last position predicts nothing that is known, and is left out of KL as perplexity leaves it out.
    return Check(float(np.abs(found - expected).max()), mean_kl(expected[:-1], found[:-1]))


@functools.lru_cache(maxsize=1)
def _reference(source: Path, _sha256: str) -> tuple[list[int], np.ndarray]:
    """Check prompt and the source's logits (t, v) on it; kept, since a model is often exported several times in a row."""
    session = catalog.load("edgeprune.runtimes", runtime_for(source)).open_session(source, **_precise())
    try:
        tokens = session.tokenize(default_text("evaluation")[1][:4000])[: CHECK_TOKENS - 1]
        tokens = [tokens[0] if session.bos_token is None else session.bos_token, *tokens]
        return tokens, session.logits(tokens).copy()
    finally:
        session.close()


def _precise() -> dict[str, Any]:
    return {"n_ctx": CHECK_TOKENS, "n_threads": physical_cores(), "precise": True}


def _n_blocks(source: Path) -> int:
    if source.is_dir():
        return open_checkpoint(source).config["num_hidden_layers"]
    metadata = read_header(source).metadata
    return metadata[f"{metadata['general.architecture']}.block_count"]


def bits(quant: str) -> int:
    """Nominal bits per weight: the first number in the name."""
    return int(re.search(r"\d+", quant)[0])


def _judge(check: Check, quant: str, out: Path, source: Path) -> None:
    precision = bits(quant)
    if source.is_file() and file_type(read_header(source)) not in ("F32", "F16", "BF16"):
        precision = min(precision, 8)  # llama.cpp rounds activations too where weights are quantised
    limit = next(kl for least, kl in MAX_KL.items() if precision >= least)
    if not check.mean_kl <= limit or (precision == 32 and not check.max_logit_error <= MAX_LOGIT_ERROR):
        reference = "torch" if source.is_dir() else source.name
        raise InputRejected(
            f"{out.name} loads but does not agree with {reference}: KL {check.mean_kl:.4f} nats per token "
            f"(limit {limit}), largest logit difference {check.max_logit_error:.2g}; nothing was written. "
            "Please report this model"
        )
