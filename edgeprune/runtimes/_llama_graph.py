"""Where the residual stream lies in llama.cpp's graph of a model, found from the graph itself.

Names would not do: every architecture's source names its tensors its own way, some not at all. But the stream is the one
thing that everything passes through. A node is a *cut* of the graph when nothing computed from the tokens before it is
read after it, the node itself excepted; between two cuts lie the weights of one half of one block, or of a block whose
halves run side by side, and the file's names of those weights say which.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from itertools import groupby, pairwise
from typing import NamedTuple

from edgeprune.errors import InputRejected
from edgeprune.runtimes import _ggml

Half = tuple[str, int]  # ("A", 3) is the attention of block 3, ("F", 3) its feed-forward
HalfOf = Callable[[str], "Half | None"]  # what a tensor of the file belongs to; None: to no block
EMBEDDING = "token_embd.weight"
_COPY = re.compile(r"[^#]+#(.*)#\d+")  # how ggml's scheduler names what it copies to another device


class Node(NamedTuple):
    name: str
    address: int
    root: int  # the tensor whose memory it has: its own address, or of what it is a view of
    reads: tuple[int, ...]  # roots of its sources
    leaves: tuple[str, ...]  # names of sources that no node makes: weights, inputs, caches
    shape: tuple[int, int] | None  # rows and columns of a plain float32 matrix
    flags: int


class Sublayer(NamedTuple):
    kind: str  # "A", "F", or "B": a block that can only be taken whole
    block: int
    end: int  # node that holds the stream after it
    idle: tuple[int, ...]  # nodes that need not run when it is left out: only it reads them


class Graph(NamedTuple):
    nodes: list[Node]
    start: int  # node that holds the stream before the first sub-layer
    sublayers: list[Sublayer]

    def stream(self, position: int) -> int:
        """The node that holds the stream before sub-layer `position`, after the last one for their number."""
        return self.sublayers[position - 1].end if position else self.start

    @property
    def width(self) -> int:
        return self.nodes[self.start].shape[1]


class Recorder:
    """Nodes in the order they run."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._roots: dict[int, int] = {}  # address of a node -> its root
        self._named: dict[str, int] = {}  # name -> root of the last node that had it

    def add(self, address: int) -> None:
        t = _ggml.Tensor.from_address(address)
        roots, leaves = [], []
        for source in filter(None, t.src):
            root, name = self._find(source)
            roots.append(root)
            leaves += [] if name is None else [name]
        name, root = t.name.decode(errors="replace"), self._root(address, t)
        self._roots[address] = self._named[name] = root
        matrix = t.type == _ggml.F32 and t.ne[2:] == [1, 1] and t.nb[:2] == [4, 4 * t.ne[0]]
        shape = (t.ne[1], t.ne[0]) if matrix else None
        self.nodes.append(Node(name, address, root, tuple(roots), tuple(leaves), shape, t.flags))

    def _find(self, source: int) -> tuple[int, str | None]:
        """Root of a source, and its name when it is a leaf."""
        if source in self._roots:
            return self._roots[source], None
        t = _ggml.Tensor.from_address(source)
        root = self._root(source, t)
        name = _ggml.Tensor.from_address(root).name.decode(errors="replace")
        copied = _COPY.fullmatch(name)
        name = copied[1] if copied else name
        return (self._named[name], None) if copied and name in self._named else (root, name)

    def _root(self, address: int, t: _ggml.Tensor) -> int:
        return self._roots.get(t.view_src, t.view_src) if t.view_src else address


def find(nodes: list[Node], n_blocks: int, half_of: HalfOf) -> Graph:
    """Raises InputRejected when a block hands on more than one stream, so that it can't be left out by itself."""
    readers: dict[int, list[int]] = defaultdict(list)
    for k, node in enumerate(nodes):
        for root in set(node.reads):
            readers[root].append(k)
    start, parts = 0, []  # (halves whose weights are read, first node after the last cut, the cut that ends it)
    for before, after in pairwise(_cuts(nodes, readers)):
        halves = {h for node in nodes[before + 1 : after + 1] for leaf in node.leaves if (h := half_of(leaf))}
        if halves:
            parts.append((halves, before, after))
        elif not parts:
            start = after  # scales and norms of the embedding
    if not parts:
        raise InputRejected("llama.cpp's graph of the model has no stream that its blocks pass on")
    start = parts[0][1]
    found = []
    for i, group in groupby(parts, key=lambda part: min(block for _, block in part[0])):
        of_block = list(group)
        last = max(block for halves, *_ in of_block for _, block in halves)
        if last != i:
            raise InputRejected(
                f"blocks {i} to {last} share more than the stream; none of them can be left out by itself"
            )
        kinds = [kind for kind, _ in groupby("".join(sorted(k for k, _ in halves)) for halves, *_ in of_block)]
        if kinds in (["A", "F"], ["A"], ["F"]):
            found += [(kind, i, max(end for halves, _, end in of_block if halves == {(kind, i)})) for kind in kinds]
        else:
            found.append(("B", i, of_block[-1][2]))
    if [i for i, _ in groupby(i for _, i, _ in found)] != list(range(n_blocks)):
        raise InputRejected(f"llama.cpp runs the blocks in another order than 0 to {n_blocks - 1}, or not all of them")
    begins = [start, *(end for *_, end in found)]
    sublayers = [
        Sublayer(kind, i, end, _idle(nodes, readers, begin, end))
        for begin, (kind, i, end) in zip(begins, found, strict=False)
    ]
    graph = Graph(nodes, start, sublayers)
    shapes = {nodes[graph.stream(p)].shape for p in range(len(sublayers) + 1)}
    if len(shapes) > 1 or None in shapes:
        raise InputRejected("the stream between the blocks is not a float32 matrix of one shape")
    return graph


def _cuts(nodes: list[Node], readers: dict[int, list[int]]) -> list[int]:
    first = next((k for k, node in enumerate(nodes) if EMBEDDING in node.leaves), len(nodes))
    carries: set[int] = set()  # roots of what is computed from the tokens
    latest, cuts = -1, []  # the last reader of any of them
    for k, node in enumerate(nodes[first:], first):
        if k == first or not carries.isdisjoint(node.reads):
            if latest <= k and node.root == node.address:
                cuts.append(k)
            carries.add(node.root)
            latest = max([latest, *readers[node.root][-1:]])
    return cuts


def _idle(nodes: list[Node], readers: dict[int, list[int]], begin: int, end: int) -> tuple[int, ...]:
    """Nodes after `begin` up to `end` whose results nothing else reads. A mask that block 0 converts for all is not one."""
    idle = {end}
    for k in range(end - 1, begin, -1):
        if not nodes[k].flags & _ggml.OUTPUT and all(r in idle for r in readers[nodes[k].root] if r > k):
            idle.add(k)
    return tuple(sorted(idle))
