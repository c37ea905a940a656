"""The residual stream of a GGUF as llama.cpp computes it, and the model without any of its sub-layers; no torch.

llama.cpp's evaluation callback (cb_eval) is asked about every node of a graph before it runs and shown those it wanted
after. That is enough to run any part of a model: to leave a sub-layer out, the node that holds the stream after it is
overwritten with the stream before it, and to begin in the middle, the node there is overwritten with a stream kept from
before. On a CPU, nodes that only serve what is left out are also taken out of the work, by ggml's own flag for that.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from edgeprune.errors import EdgepruneError, InputRejected, UsageError
from edgeprune.gguf_file import read_header
from edgeprune.runtimes import _ggml, _llama_log, llamacpp
from edgeprune.runtimes._llama_damage import Loss, Use, Whole
from edgeprune.runtimes._llama_graph import Graph, Half, HalfOf, Recorder, find
from edgeprune.runtimes._llama_text import LlamaText

STEP_TOKENS, STEP_LOGITS_BYTES = 512, 64 << 20  # of one llama_decode


def open_streams(path: Path, half_of: HalfOf, *, n_ctx: int, n_threads: int) -> LlamaStreams:
    """`half_of`: which half of which block a tensor of the file belongs to. Raises InputRejected with llama.cpp's reason
    when the file does not load, and for a model that is no stack of blocks on one stream."""
    return LlamaStreams(read_header(path).paths[0], half_of, n_ctx, n_threads)


class LlamaStreams(LlamaText):
    """An open GGUF, F32 cache, flash attention off: the arithmetic closest to torch. Not thread-safe.

    A `kept` list names the halves that run, ascending, [("A", 0), ("F", 0), …], as `blocks.kept_sublayers` does.
    Positions count sub-layers: the stream at position k is the one before sub-layer k.
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
            self.n_ctx: int = lib.llama_n_ctx(self._context)
            self._batch = lib.llama_batch_init(self._step, 0, 1)
            self._half_of = half_of
            self._idles = llamacpp._backend(lib) == "cpu"
            self._graphs: dict[int, Graph] = {}  # by tokens in a step
            self.sublayers = [(s.kind, s.block) for s in self._graph(2).sublayers]  # "B": a block that has no halves
        except BaseException:
            self.close()
            raise

    def streams(self, tokens: Sequence[int], positions: Iterable[int] | None = None) -> list[np.ndarray]:
        """The stream (t, d) float32 at these positions; None: at all, so before each of `sublayers`, and after the last
        one, before the final norm. Raises InputRejected naming the block when one is not finite."""
        wanted = list(range(len(self.sublayers) + 1) if positions is None else positions)
        found = self._run(self._fits(tokens), frozenset(), keep=wanted)
        for k in wanted:
            if not np.isfinite(found[k]).all():
                where = f"block {self.sublayers[k - 1][1]}" if k else "the embedding"
                raise InputRejected(f"{where} gives values that are not finite: its weights are not finite or overflow")
        return [found[k] for k in wanted]

    def logits(self, tokens: Sequence[int], kept: Sequence[Half] | None = None) -> np.ndarray:
        """Logits (t, v) of the model with only these halves; None: with all."""
        out = np.empty((len(tokens), self.n_vocab), np.float32)

        def use(first: int, logits: np.ndarray) -> None:
            out[first : first + len(logits)] = logits

        self._run(self._fits(tokens), frozenset() if kept is None else self._removed(kept), use=use)
        return out

    def damage(
        self, lists: Sequence[Sequence[Half]], tokens: Sequence[int], kinds: Sequence[str], n_segments: int = 1
    ) -> np.ndarray:
        """(len(kinds), len(lists), n_segments), nats: what each kept list costs, summed over the predicted tokens in
        each of `n_segments` stretches, as numpy.array_split makes them of the t − 1.

        A kind is "kl", KL(whole ‖ pruned), for which the whole model's probabilities are held, 4·t·v bytes; or "loss",
        the negative log-likelihood of the tokens. inf where a list's logits are not finite. Raises InputRejected naming
        the block when the whole model's are not.

        A list costs only what comes after the first sub-layer in which it differs from the list run before it, as it
        begins from the stream kept there. Of lists alike so far, those that leave the next sub-layer out go first: the
        candidates of a greedy step then need one kept stream at a time.
        """
        tokens, measures = self._fits(tokens), []
        for kind in kinds:
            measures.append(Whole(tokens, self.n_vocab) if kind == "kl" else Loss(tokens))
            if kind == "kl":
                self._run(tokens, frozenset(), use=measures[-1].learn)
                if not measures[-1].is_finite():
                    self.streams(tokens)  # names the block
                    raise InputRejected("the model's logits are not finite: its output weights are not, or overflow")
        out = np.empty((len(kinds), len(lists), len(tokens) - 1))
        removed = [self._removed(kept) for kept in lists]
        runs = sorted(range(len(lists)), key=lambda c: [k not in removed[c] for k in range(len(self.sublayers))])
        shared = [min(removed[a] ^ removed[b], default=len(self.sublayers)) for a, b in pairwise(runs)] + [0]
        known: dict[int, np.ndarray] = {}  # position -> stream there, of what lists to come share with those run
        for r, c in enumerate(runs):
            begin = max(known, default=0)
            keep = [k for k in accumulate(shared[r:], min) if k > begin]

            def use(first: int, logits: np.ndarray, c: int = c) -> None:
                for m, measure in enumerate(measures):
                    measure.rate(first, logits, out[m, c])

            known |= self._run(tokens, removed[c], begin, known.get(begin), keep, use)
            known = {k: stream for k, stream in known.items() if 0 < k <= shared[r]}
        out[~np.isfinite(out)] = np.inf
        return np.stack([part.sum(-1) for part in np.array_split(out, n_segments, axis=-1)], axis=-1)

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        if self._batch:
            self._lib.llama_batch_free(self._batch)
        if self._context:
            self._lib.llama_free(self._context)
        self._batch = self._context = None
        super().close()

    def _refuse_other_kinds(self, path: Path) -> None:
        lib, model = self._lib, self._model
        what = None
        if lib.llama_model_has_encoder(model) or not lib.llama_model_has_decoder(model):
            what = "is an encoder"
        elif lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model):
            what = "has recurrent blocks"
        elif lib.llama_model_is_diffusion(model):
            what = "is a diffusion model"
        if what:
            raise InputRejected(f"{path} {what}; only decoders with attention in every block are scored")

    def _fits(self, tokens: Sequence[int]) -> list[int]:
        if not self._context:
            raise EdgepruneError("the model is closed")
        if not 2 <= len(tokens) <= self.n_ctx:
            raise UsageError(f"{len(tokens)} tokens asked of a context of {self.n_ctx}, and 2 are needed")
        if min(tokens) < 0 or max(tokens) >= self.n_vocab:
            raise UsageError(f"token ids must be 0 to {self.n_vocab - 1}, found {min(tokens)} to {max(tokens)}")
        return [int(t) for t in tokens]

    def _removed(self, kept: Sequence[Half]) -> frozenset[int]:
        """Positions of the sub-layers to leave out. Raises UsageError for what this model can't do."""
        wanted = set(kept)
        if [*kept] != sorted(wanted, key=lambda half: half[::-1]) or any(not 0 <= i < self.n_blocks for _, i in kept):
            raise UsageError(f"halves to keep must be of blocks 0 to {self.n_blocks - 1}, ascending; got {[*kept]}")
        out = set()
        for k, (kind, i) in enumerate(self.sublayers):
            halves = {("A", i), ("F", i)} if kind == "B" else {(kind, i)}
            if len(halves & wanted) == 1 and kind == "B":
                raise UsageError(
                    f"block {i} has no stream between attention and feed-forward; choose a metric that removes whole blocks"
                )
            if not halves & wanted:
                out.add(k)
        return frozenset(out)

    def _run(
        self, tokens: list[int], removed: frozenset[int], begin: int = 0, start: np.ndarray | None = None,
        keep: Iterable[int] = (), use: Use | None = None,
    ) -> dict[int, np.ndarray]:  # fmt: skip
        """Streams at the positions `keep`, and logits for `use`, of the model from position `begin` on, which gets the
        stream `start` (None: the embedding), without the sub-layers `removed`."""
        n, count, keep = len(tokens), len(self.sublayers), set(keep)
        sizes = [len(part) for part in np.array_split(range(n), -(-n // self._step))]
        graphs = {size: self._graph(size) for size in set(sizes)}
        origin = {begin: begin}  # position -> where its stream was computed
        for k in range(begin, count):
            origin[k + 1] = origin[k] if k in removed else k + 1
        copies = [k for k in range(begin, count + 1) if origin[k] != k and (k == count or k not in removed)]
        given = {} if start is None else {begin: start}
        read = {origin[k] for k in keep | set(copies)} - set(given)
        streams = given | {k: np.empty((n, graphs[sizes[0]].width), np.float32) for k in read}
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        first = 0
        for size in sizes:
            graph, rows = graphs[size], slice(first, first + size)
            idle = {node for k in [*range(begin), *removed] for node in graph.sublayers[k].idle}
            reads = {graph.stream(k): streams[k][rows] for k in read}
            writes = {graph.stream(k): streams[origin[k]][rows] for k in [*given, *copies]}
            work = _Work(graph, idle if self._idles else (), reads, writes, goes_on=use is not None)
            self._decode(tokens[rows], first, work)
            if use:
                logits = self._lib.llama_get_logits(self._context)
                use(first, np.ctypeslib.as_array(logits, (size, self.n_vocab)))
            first += size
        return {k: streams[origin[k]] for k in keep}

    def _graph(self, size: int) -> Graph:
        """The graph of a step of so many tokens, looked at without running it where nodes can be left idle."""
        if size not in self._graphs:
            look = _Look(self._idles)
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
            self._decode([0] * size, 0, look)
            self._graphs[size] = find(look.recorder.nodes, self.n_blocks, self._half_of)
        return self._graphs[size]

    def _decode(self, tokens: list[int], first: int, work: _Look | _Work) -> None:
        _llama_log.clear()
        batch, self._work, self._error = self._batch, work, None
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, first + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        status = self._lib.llama_decode(self._context, batch)
        self._lib.llama_synchronize(self._context)
        if self._error:
            raise self._error
        if status:
            raise EdgepruneError(f"llama.cpp could not decode (status {status}): {_llama_log.reason()}")
        work.check()

    def _on_node(self, address: int, ask: bool, _: int | None) -> bool:
        """cb_eval. ctypes would swallow an exception, and llama.cpp would go on."""
        if self._error:
            return False
        try:
            return self._work.asked(address) if ask else self._work.shown(address)
        except BaseException as e:
            self._error = e
            return False


class _Look:
    """Takes down every node; none of them runs where nodes can be left idle."""

    def __init__(self, idles: bool):
        self.recorder, self._idles = Recorder(), idles

    def asked(self, address: int) -> bool:
        self.recorder.add(address)
        if self._idles:
            _flags(address).value &= ~_ggml.COMPUTE
        return False

    def shown(self, address: int) -> bool:
        return True

    def check(self) -> None:
        pass


class _Work:
    """Runs a graph: without its `idle` nodes, reading and overwriting the data of some, and up to the last of these
    unless it `goes_on` to the logits."""

    def __init__(
        self, graph: Graph, idle: Iterable[int], reads: dict[int, np.ndarray], writes: dict[int, np.ndarray],
        goes_on: bool,
    ):  # fmt: skip
        self._reads, self._writes, self._wanted = reads, writes, reads.keys() | writes.keys()
        self._flags = [node.flags for node in graph.nodes]
        for k in idle:
            self._flags[k] &= ~_ggml.COMPUTE
        self._goes_on, self._at = goes_on, -1
        self._last = len(graph.nodes) - 1 if goes_on else max(self._wanted)

    def asked(self, address: int) -> bool:
        self._at += 1
        if self._at > self._last:
            return False
        _flags(address).value = self._flags[self._at]  # also those that another step left idle in this same graph
        return self._at in self._wanted

    def shown(self, address: int) -> bool:
        """Whether to go on. What comes after the last stream runs only for logits."""
        values = self._writes.get(self._at, self._reads.get(self._at))
        found = _ggml.Tensor.from_address(address)
        if found.type != _ggml.F32 or (found.ne[1], found.ne[0]) != values.shape:
            raise EdgepruneError(f"llama.cpp's graph changed between steps: {found.name.decode()} is not the stream")
        if self._at in self._writes:
            _ggml.write(address, values)
        else:
            _ggml.read(address, values)
        return self._at < self._last

    def check(self) -> None:
        if self._at < self._last or (self._goes_on and self._at > self._last):
            raise EdgepruneError(f"llama.cpp's graph changed between steps: node {self._at}, expected {self._last}")


def _flags(address: int) -> ctypes.c_int32:
    return ctypes.c_int32.from_address(address + _ggml.FLAGS)
