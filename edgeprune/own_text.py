"""Text that the model writes itself, to calibrate by: prose, code, lists and talk in the parts it was trained on, of which
the texts installed here lack most. After Williams et al. 2024 (arXiv:2410.17170), who calibrate quantisation and pruning so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from edgeprune.errors import InputRejected
from edgeprune.score import check_finite
from edgeprune.torch_model import dtype_of, load, tokenizer
from edgeprune.types import ModelSpec
from edgeprune.work import Work

TOGETHER = 16  # texts that are written side by side


class Own(NamedTuple):
    text: str
    texts: int
    tokens: int


def write(
    folder: Path, spec: ModelSpec, *, n_texts: int, context_tokens: int, temperature: float = 1.0, seed: int = 0,
    precision: str = "auto", work: Work,
) -> Own:  # fmt: skip
    """`n_texts` texts of at most `context_tokens` tokens, or of the model's context where that is shorter, drawn token by token
    from the model's own distribution after the token that begins a text; one that the model ends is shorter. The same for the
    same seed, on the same kind of machine.

    Raises InputRejected for a model with no token to begin by, or whose weights are not finite.
    """
    context_tokens = min(context_tokens, spec.context_length_tokens)
    tok = tokenizer(folder)
    start = tok.bos_token_id if tok.bos_token_id is not None else tok.eos_token_id
    if start is None:
        raise InputRejected(
            f"{spec.name} has no token that begins or ends a text; name files with --calibration instead"
        )
    model = load(folder, dtype=dtype_of(precision), max_bytes=work.max_bytes)
    check_finite(model, spec)
    at_once = [min(TOGETHER, n_texts - i) for i in range(0, n_texts, TOGETHER)]
    written: list[list[int]] = []
    for group in work.each(
        list(enumerate(at_once)),
        lambda piece: _drawn(model, start, piece[1], context_tokens, temperature, seed * len(at_once) + piece[0]),
        lambda done: work.progress(done, len(at_once)),
    ):
        written += group
    texts = [text for text in (tok.decode(ids, skip_special_tokens=True) for ids in written) if text.strip()]
    return Own("\n\n".join(texts) + "\n", len(texts), sum(map(len, written)))


def _drawn(model: Any, start: int, n: int, context_tokens: int, temperature: float, seed: int) -> list[list[int]]:
    """n lists of token ids, without the first one and without what ends them."""
    import torch
    from transformers import GenerationConfig

    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    how = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=0, top_p=1.0, repetition_penalty=1.0,
        max_new_tokens=context_tokens - 1, eos_token_id=ends or None, pad_token_id=ends[0] if ends else start,
    )  # fmt: skip
    first = torch.full((n, 1), start, device=model.device)
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        found = model.generate(first, attention_mask=torch.ones_like(first), generation_config=how)
    return [_up_to(ids[1:].tolist(), ends) for ids in found]


def _up_to(ids: list[int], ends: list[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
