"""The residual stream of a GGUF as llama.cpp computes it, and the model without any of its sub-layers, without torch.

llama.cpp's evaluation callback (cb_eval) is asked about every node of a graph before it runs and shown those it wanted
after. That is enough to run any part of a model: to leave a sub-layer out, the node that holds the stream after it is
overwritten with the stream before it, and to begin in the middle, the node there is overwritten with a stream kept from
before. On a CPU, nodes that only serve what is left out are also taken out of the work, by ggml's own flag for that.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import EdgepruneError, InputRejected, UsageError
from edgeprune.gguf_file import read_header
from edgeprune.runtimes import _ggml, _llama_log, llamacpp
from edgeprune.runtimes._llama_graph import Graph, Half, HalfOf, Recorder, find
from edgeprune.runtimes._llama_text import LlamaText

STEP_TOKENS, STEP_LOGITS_BYTES = 512, 64 << 20  # of one llama_decode
_BLOCK_ROWS = 16  # logits looked at together, so that they stay in the processor's cache
Use = Callable[[int, np.ndarray], None]  # first row, logits (rows, v): a view, gone afterwards


def open_streams(path: Path, half_of: HalfOf, *, n_ctx: int, n_threads: int) -> LlamaStreams:
    """`half_of`: which half of which block a tensor of the file belongs to. Raises InputRejected with llama.cpp's reason
    when the file does not load, and for a model that is no stack of blocks on one stream."""
    return LlamaStreams(read_header(path).paths[0], half_of, n_ctx, n_threads)


class LlamaStreams(LlamaText):
    """An open GGUF, F32 cache, flash attention off: the arithmetic closest to torch. Not thread-safe.

    A `kept` list names the halves to run in ascending order, [("A", 0), ("F", 0), …], as `blocks.kept_sublayers` does.
    """

    def __init__(self, path: Path, half_of: HalfOf, n_ctx: int, n_threads: int):
        self._context = self._batch = None
        lib = _llama_log.library()
        _ggml.library()
        super().__init__(lib, llamacpp._load(lib, path))
        try:
            self._refuse_other_kinds(path)
            self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)
            self.n_blocks: int = lib.llama_model_n_layer(self._model)
            self._step = max(2, min(STEP_TOKENS, STEP_LOGITS_BYTES // (4 * self.n_vocab), n_ctx))
            params = llamacpp.context_params(lib, n_ctx, n_threads, precise=True)
            params.n_batch = params.n_ubatch = self._step
            params.cb_eval = self._callback = lib.ggml_backend_sched_eval_callback(self._on_node)
            self._context = lib.llama_init_from_model(self._model, params)
            if not self._context:
                raise llamacpp._failure(f"llama.cpp cannot run {path} with a context of {n_ctx}")
            self._batch = lib.llama_batch_init(self._step, 0, 1)
            self._half_of = half_of
            self._can_idle = llamacpp._backend(lib) == "cpu"
            self._graphs: dict[int, Graph] = {}  # by tokens in a step
            self.n_ctx: int = lib.llama_n_ctx(self._context)
            self.sublayers = [(s.kind, s.block) for s in self._graph([0, 0]).sublayers]
        except BaseException:
            self.close()
            raise

    @property
    def has_halves(self) -> bool:
        """Whether there is a stream between the attention and the feed-forward of every block."""
        return all(kind != "B" for kind, _ in self.sublayers)

    def streams(self, tokens: Sequence[int]) -> list[np.ndarray]:
        """The stream (t, d) before each of `sublayers`, and after the last one, before the final norm.

        Raises InputRejected naming the block when one is not finite.
        """
        count = len(self.sublayers)
        found = self._run(self._fits(tokens), frozenset(), keep=range(count + 1))
        for k in range(count + 1):
            if not np.isfinite(found[k]).all():
                where = f"block {self.sublayers[k - 1][1]}" if k else "the embedding"
                raise InputRejected(f"{where} gives values that are not finite: its weights are not finite or overflow")
        return [found[k] for k in range(count + 1)]

    def logits(self, tokens: Sequence[int], kept: Sequence[Half] | None = None) -> np.ndarray:
        """Logits (t, v) of the model with only these halves; None: with all."""
        tokens = self._fits(tokens)
        out = np.empty((len(tokens), self.n_vocab), np.float32)

        def use(first: int, logits: np.ndarray) -> None:
            out[first : first + len(logits)] = logits

        self._run(tokens, self._removed(kept), use=use)
        return out

    def damage(self, lists: Sequence[Sequence[Half]], tokens: Sequence[int], kind: str, n_segments: int) -> np.ndarray:
        """(len(lists), n_segments), nats: what each kept list costs, summed over the predicted tokens of each of
        `n_segments` consecutive segments (numpy.array_split of the t − 1 predicted tokens).

        `kind`: "kl" is KL(whole ‖ pruned), "loss" the negative log-likelihood of the tokens. inf where a list's logits
        are not finite; InputRejected naming the block when the whole model's are not.
        """
        (rows,) = self.per_token(lists, tokens, (kind,))
        sums = [part.sum(-1) for part in np.array_split(rows, n_segments, axis=-1)]
        sums = np.stack(sums, axis=-1)
        return np.maximum(sums, 0.0) if kind == "kl" else sums  # rounding below zero

    def per_token(self, lists: Sequence[Sequence[Half]], tokens: Sequence[int], kinds: Sequence[str]) -> np.ndarray:
        """(len(kinds), len(lists), t − 1) float64: `damage` of every predicted token. "kl" holds the whole model's
        probabilities, 4·t·v bytes.

        A list costs only what comes after the first sub-layer in which it differs from the list before, in an order in
        which that is least: of those that are alike so far, the one that leaves the next sub-layer out goes first, and
        the next list begins from the stream it kept there.
        """
        tokens, n = self._fits(tokens), len(tokens) - 1
        out = np.empty((len(kinds), len(lists), n))
        whole = _Whole(n, self.n_vocab) if "kl" in kinds else None
        if whole:
            self._run(tokens, frozenset(), use=whole.add)
            if not np.isfinite(whole.constant).all():
                self.streams(tokens)  # names the block
                raise InputRejected("the model's logits are not finite: its output weights are not finite or overflow")
        positions = range(len(self.sublayers) + 1)
        runs = sorted(((self._removed(kept), c) for c, kept in enumerate(lists)), key=lambda r: _order(r[0], positions))
        shared = [_shared(a, b, positions) for (a, _), (b, _) in zip(runs, runs[1:], strict=False)] + [-1]
        known: dict[int, np.ndarray] = {}  # position -> stream there, of what the next list has in common with those before
        for r, (removed, c) in enumerate(runs):
            begin = max(known, default=0)

            def use(first: int, logits: np.ndarray, c: int = c) -> None:
                rows = logits[: n - first]
                for s in range(0, len(rows), _BLOCK_ROWS):
                    at = slice(first + s, min(first + s + _BLOCK_ROWS, n))
                    shifted, lse = _shift(rows[s : s + _BLOCK_ROWS])
                    for kind, row in zip(kinds, out[:, c], strict=True):
                        row[at] = whole.kl(at, shifted, lse) if kind == "kl" else lse - _of(shifted, tokens[1:][at])

            keep = {min(shared[r : k + 1]) for k in range(r, len(runs))}
            found = self._run(tokens, removed, begin, known.get(begin), [k for k in keep if k > begin], use)
            known = {k: v for k, v in (known | found).items() if k <= shared[r]}
        return np.where(np.isfinite(out), out, np.inf)

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        if self._batch:
            self._lib.llama_batch_free(self._batch)
        if self._context:
            self._lib.llama_free(self._context)
        self._batch = self._context = None
        super().close()
