"""Evaluate: perplexity, and KL against the whole model, of folders and artifacts alike, on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgeprune import catalog
from edgeprune.bench import physical_cores, runtime_for
from edgeprune.calibration import windows
from edgeprune.comparison import stderr
from edgeprune.divergence import Divergence, compare, nll
from edgeprune.errors import InputRejected
from edgeprune.evaluation import Evaluation
from edgeprune.files import sha256_tree
from edgeprune.runtimes import cache_option
from edgeprune.types import Text

Progress = Callable[[str, int, int], None]


def evaluate(
    subjects: dict[str, Path],
    *,
    whole: Path | None,
    files: Sequence[Path] = (),
    n_windows: int = 8,
    context_tokens: int = 512,
    n_threads: int | None = None,
    avoid: Text | None = None,
    kv_type: str | None = None,
    progress: Progress,
) -> list[Evaluation]:
    """One Evaluation per subject (name -> path), in one pass over the windows; every model is open at once.

    `kv_type`: of the subjects' KV cache, in runtimes that have several.

    Perplexity is over every token of a window but its first. KL(whole ‖ subject) and top-1 agreement need `whole`;
    its windows' standard error is over window means. Raises InputRejected when the vocabularies differ.
    """
    import torch

    with ExitStack() as stack:

        def open_one(path: Path) -> tuple[str, Any]:
            runtime = runtime_for(path)
            module = catalog.load("edgeprune.runtimes", runtime)
            cache = {} if path == whole else cache_option(module, kv_type)
            threads = n_threads or physical_cores()
            session = module.open_session(path, n_ctx=context_tokens, n_threads=threads, **cache)
            stack.callback(session.close)
            return runtime, session

        opened = {name: open_one(path) for name, path in subjects.items()}
        same = next((name for name, path in subjects.items() if whole and path == whole), None)
        reference = opened[same][1] if same else open_one(whole)[1] if whole else None
        first = reference or next(iter(opened.values()))[1]
        for name, (_, session) in opened.items():
            if session.n_vocab != first.n_vocab:
                raise InputRejected(
                    f"{name} has {session.n_vocab} tokens, the whole model {first.n_vocab}; not the same model"
                )
        text = windows(
            first.tokenize, files, split="evaluation", n_windows=n_windows, context_tokens=context_tokens,
            bos_token=first.bos_token, avoid=avoid,
        )  # fmt: skip
        results: dict[str, list[Divergence]] = {name: [] for name in opened}
        total = len(text.windows) * (len(opened) + (reference is not None))
        done = 0
        for window in text.windows:
            tokens = torch.tensor(window)
            whole_logits = logp = None
            if reference is not None:
                whole_logits = torch.from_numpy(reference.logits(window))
                logp = whole_logits.log_softmax(-1)
                done += 1
            for name, (_, session) in opened.items():
                logits = whole_logits if name == same else torch.from_numpy(session.logits(window))
                if not torch.isfinite(logits).all():
                    raise InputRejected(f"{name} gives logits that are not finite on {text.text.name}; export it again")
                if logp is None:
                    results[name].append(Divergence(nll(logits, tokens), 0.0, 0.0, 0, len(window) - 1))
                else:
                    results[name].append(compare(logp, logits, tokens))
                done += 1
                progress("evaluating", done, total)
        return [
            _quality(name, path, opened[name][0], text.text, results[name], reference is not None)
            for name, path in subjects.items()
        ]


def _quality(name: str, path: Path, runtime: str, text: Any, parts: list[Divergence], compared: bool) -> Evaluation:
    n = sum(d.tokens for d in parts)
    per_window = [d.kl / d.tokens for d in parts]
    return Evaluation(
        subject=name,
        sha256=sha256_tree(path),
        runtime=runtime,
        text=text,
        windows=len(parts),
        perplexity=math.exp(sum(d.nll for d in parts) / n),
        perplexity_whole=math.exp(sum(d.nll_whole for d in parts) / n) if compared else None,
        kl=sum(d.kl for d in parts) / n if compared else None,
        kl_stderr=stderr(per_window) if compared else None,
        top1_agreement=sum(d.agree for d in parts) / n if compared else None,
    )
