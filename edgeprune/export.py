"""Export: a transformers folder to a runtime's format. Finished only when loaded there and compared with torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeprune import catalog
from edgeprune.bench import physical_cores
from edgeprune.calibration import default_text
from edgeprune.checkpoint import open_checkpoint
from edgeprune.errors import InputRejected, UsageError
from edgeprune.files import check_sums, refuse_existing, sha256_tree, staging, tree_bytes, write_sums
from edgeprune.prune import read_provenance
from edgeprune.types import Artifact

if TYPE_CHECKING:
    import torch

CHECK_TOKENS = 128
MAX_LOGIT_ERROR = 1e-3  # for 32-bit exports
# Nats per token against torch. Far above what rounding does, far below what a wrong graph does (5 and more).
MAX_KL = {32: 1e-4, 16: 0.02, 8: 0.2, 4: 3.0}


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


def export(
    folder: Path, fmt: str, quant: str, out: Path, *, force: bool = False, verify: bool = True,
    progress: Callable[[str, float], None] = lambda what, fraction: None,
) -> Artifact:  # fmt: skip
    """Write `out` from a transformers folder and return its record.

    Raises UsageError for an unknown format or quantisation, InputRejected when the folder is damaged, can't be
    expressed, or when the result does not agree with torch.
    """
    module = exporter(fmt)
    known = {q.lower(): q for q in module.QUANTS}
    if quant.lower() not in known:
        raise UsageError(
            f"{fmt} has no quantisation {quant!r}.{catalog.did_you_mean(quant, sorted(known))} Known: {', '.join(module.QUANTS)}."
        )
    quant = known[quant.lower()]
    if module.SUFFIX and out.suffix != module.SUFFIX:
        raise UsageError(f"a {fmt} artifact is a {module.SUFFIX} file; name the output {out.name}{module.SUFFIX}")
    refuse_existing(out, force)
    ck = open_checkpoint(folder)
    check_sums(folder)
    module.check(folder, quant)
    notes = {k: str(v) for k, v in read_provenance(folder).items()}
    with staging(out, force) as partial:
        module.export(folder, partial, quant, notes, progress)
        if partial.is_dir():
            write_sums(partial)
        check = None
        if verify:
            progress("comparing with torch", 0.0)
            check = compare_with_torch(folder, partial, module.RUNTIME)
            progress("comparing with torch", 1.0)
            _judge(check, quant, out)
        n_bytes, sha = tree_bytes(partial), sha256_tree(partial)
    return Artifact(
        path=str(out),
        format=fmt,
        quant=quant,
        bytes=n_bytes,
        sha256=sha,
        n_blocks=ck.config["num_hidden_layers"],
        max_logit_error=check.max_logit_error if check else None,
        mean_kl=check.mean_kl if check else None,
    )


def compare_with_torch(folder: Path, artifact: Path, runtime: str) -> Check:
    """Largest logit difference and mean KL(torch ‖ artifact) over a check prompt, in the runtime's precise mode."""
    import torch

    from edgeprune.divergence import compare

    tokens, expected = _reference(folder, sha256_tree(folder))
    session = catalog.load("edgeprune.runtimes", runtime).open_session(artifact, **_precise())
    try:
        found = torch.from_numpy(session.logits(tokens).copy())
    finally:
        session.close()
    if found.shape != expected.shape:
        raise InputRejected(f"{artifact.name} gives logits of shape {list(found.shape)}, torch {list(expected.shape)}")
    d = compare(expected.log_softmax(-1), found, torch.tensor(tokens))
    return Check((found - expected).abs().max().item(), d.kl / d.tokens)


@functools.lru_cache(maxsize=1)
def _reference(folder: Path, _sha256: str) -> tuple[list[int], torch.Tensor]:
    """Check prompt and torch's logits (t, v) on it; kept, since a folder is often exported several times in a row."""
    import torch

    session = catalog.load("edgeprune.runtimes", "transformers").open_session(folder, **_precise())
    try:
        tokens = session.tokenize(default_text("evaluation")[1][:4000])[: CHECK_TOKENS - 1]
        tokens = [tokens[0] if session.bos_token is None else session.bos_token, *tokens]
        return tokens, torch.from_numpy(session.logits(tokens).copy())
    finally:
        session.close()


def _precise() -> dict[str, Any]:
    return {"n_ctx": CHECK_TOKENS, "n_threads": physical_cores(), "precise": True}


def bits(quant: str) -> int:
    """Nominal bits per weight: 32, 16, 8 or (anything smaller) 4."""
    q = quant.lower()
    return 32 if "32" in q else 16 if "16" in q else 8 if "8" in q else 4


def _judge(check: Check, quant: str, out: Path) -> None:
    limit = MAX_KL[bits(quant)]
    if not check.mean_kl <= limit or (bits(quant) == 32 and not check.max_logit_error <= MAX_LOGIT_ERROR):
        raise InputRejected(
            f"{out.name} loads but does not agree with torch: KL {check.mean_kl:.4f} nats per token (limit {limit}), largest "
            f"logit difference {check.max_logit_error:.2g}; nothing was written. Please report this model"
        )
