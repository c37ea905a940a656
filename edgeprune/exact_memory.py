"""What a .gguf takes in llama.cpp, from a load that allocates nothing: exact where edgeprune.cost has formulas."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

from edgeprune.bench import physical_cores

# What running adds to the process that simulates the load: workers' stacks, tables filled on first use. 1.2 to 2.4 MiB
# on SmolLM2 and eight generated models (llama-cpp-python 0.3.36, Linux).
RUNNING_BYTES = 1_800_000


class ExactMemory(NamedTuple):
    """Bytes. `repack_bytes` None: whether weights are kept twice can't be known without loading them."""

    weights_bytes: int
    repack_bytes: int | None
    kv_bytes: int
    compute_bytes: int  # with the output logits: what becomes resident on a CPU
    committed_compute_bytes: int  # with logits of every token of a micro-batch: what is reserved
    runtime_bytes: int  # vocabulary, graphs and tables

    @property
    def resident_bytes(self) -> int:
        return self._of_all(self.compute_bytes)

    @property
    def committed_bytes(self) -> int:
        return self._of_all(self.committed_compute_bytes)

    def _of_all(self, compute: int) -> int:
        return self.weights_bytes + (self.repack_bytes or 0) + self.kv_bytes + compute + self.runtime_bytes


def exact_memory(path: Path, context_tokens: int) -> ExactMemory | None:
    """None where llama.cpp's bindings are not installed. Raises InputRejected for a file that llama.cpp does not load."""
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    from edgeprune.runtimes.llamacpp import memory_breakdown

    found = memory_breakdown(path, context_tokens, physical_cores())
    output = found["output_bytes"] or 0
    return ExactMemory(
        weights_bytes=found["weights_bytes"] or 0,
        repack_bytes=found["repack_bytes"],
        kv_bytes=found["kv_bytes"] or 0,
        compute_bytes=(found["compute_bytes"] or 0) + output,
        committed_compute_bytes=(found["compute_committed_bytes"] or 0) + output,
        runtime_bytes=(found["other_bytes"] or 0) + RUNNING_BYTES,
    )
