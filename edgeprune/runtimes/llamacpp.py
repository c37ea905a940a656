"""llama.cpp through llama-cpp-python's low-level bindings, set up as llama-bench sets it up.

llama-bench (tools/llama-bench in llama.cpp): n_batch 2048, n_ubatch 512, F16 KV cache, flash attention AUTO, all
layers on the accelerator there is, no full-size cache for sliding windows. `Llama()` sets other values; it is not used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import EdgepruneError, InputRejected, OutOfResources, UsageError
from edgeprune.gguf_file import file_type, read_header
from edgeprune.runtimes import _branches, _llama_log
from edgeprune.runtimes._llama_text import LlamaText

N_BATCH, N_UBATCH = 2048, 512
KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}  # enum ggml_type
_FLASH_AUTO, _FLASH_OFF = -1, 0  # enum llama_flash_attn_type
_LOGITS_BYTES = 64 << 20  # output buffer of one `logits` step


def reads(path: Path) -> bool:
    path = Path(path)
    return path.suffix == ".gguf" and path.is_file() if not path.is_dir() else _only_gguf(path) is not None


def version() -> str:
    """Such as "llama-cpp-python 0.3.36, llama.cpp 0.5.0-dev, CPU: AVX AVX2 FMA OPENMP"."""
    lib = _llama_log.library()
    parts = [f"llama-cpp-python {lib.__version__}"]
    if hasattr(lib, "llama_version"):
        parts.append(f"llama.cpp {lib.llama_version().decode()}")
    parts += [f"{name}: {' '.join(flags)}" for name, flags in _system_info(lib)]
    return ", ".join(parts) + (" (AMX left unused: no repacked weights)" if _has_amx(lib) else "")


def quant(path: Path) -> str:
    """The file's own word for it, e.g. "Q4_K_M"; "unknown" when it does not say."""
    return file_type(read_header(_file(path)))


def open_session(
    path: Path, *, n_ctx: int, n_threads: int, precise: bool = False, kv_type: str | None = None
) -> LlamaSession:
    """`kv_type`: a key of KV_TYPES for keys and values alike. Raises UsageError for another, InputRejected with llama.cpp's
    reason when the file does not load or has heads that the type does not divide, OutOfResources without memory."""
    if kv_type is not None and kv_type not in KV_TYPES:
        raise UsageError(f"no KV cache type {kv_type!r}; known: {', '.join(KV_TYPES)}")
    first = read_header(_file(path)).paths[0]  # llama.cpp opens a split model by its first part
    return LlamaSession(first, n_ctx, n_threads, precise, kv_type)


def open_text(path: Path) -> LlamaText:
    """The vocabulary alone, without weights. Raises as `open_session`."""
    first = read_header(_file(path)).paths[0]
    lib = _llama_log.library()
    return LlamaText(lib, _load(lib, first, vocab_only=True))


def memory_breakdown(path: Path, n_ctx: int, n_threads: int) -> dict[str, int | None]:
    """Bytes a default session takes, found without loading weights: see `_llama_memory.predict`."""
    from edgeprune.runtimes._llama_memory import predict

    return predict(_file(path), n_ctx, n_threads)


def _only_gguf(folder: Path) -> Path | None:
    """The file, or the first part, of a GGUF folder; None for a transformers folder, or where there is a choice."""
    found = [] if (folder / "config.json").exists() else sorted(folder.glob("*.gguf"))
    found = [p for p in found if not re.search(r"-of-\d{5}$", p.stem) or "-00001-of-" in p.stem]
    return found[0] if len(found) == 1 else None


def _file(path: Path) -> Path:
    path = Path(path)
    return (_only_gguf(path) if path.is_dir() else None) or path


def model_params(lib: Any) -> Any:
    params = lib.llama_model_default_params()
    params.n_gpu_layers = -1
    # AMX kernels crash on some machines (https://github.com/ggml-org/llama.cpp/issues/20824), and only leaving out
    # all repacked weights keeps a build that has them away from them.
    params.use_extra_bufts = params.use_extra_bufts and not _has_amx(lib)
    return params


def _load(lib: Any, path: Path, vocab_only: bool = False) -> Any:
    _llama_log.clear()
    params = model_params(lib)
    params.vocab_only = vocab_only
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise _failure(f"llama.cpp does not load {path}")
    return model


def context_params(lib: Any, n_ctx: int, n_threads: int, precise: bool = False, kv_type: str | None = None) -> Any:
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, N_BATCH, N_UBATCH
    params.n_threads = params.n_threads_batch = n_threads
    params.flash_attn_type = _FLASH_OFF if precise else _FLASH_AUTO
    params.type_k = params.type_v = KV_TYPES[kv_type or ("f32" if precise else "f16")]
    params.swa_full = False
    params.no_perf = True
    return params


class LlamaSession(LlamaText):
    """A Session (see edgeprune.runtimes). Not thread-safe."""

    def __init__(self, path: Path, n_ctx: int, n_threads: int, precise: bool, kv_type: str | None = None):
        self._model = self._context = None
        if n_ctx < 1 or n_threads < 1:
            raise UsageError(f"a session needs a token and a thread, asked {n_ctx} tokens, {n_threads} threads")
        lib = _llama_log.library()
        super().__init__(lib, _load(lib, path))
        params = context_params(lib, n_ctx, n_threads, precise, kv_type)
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            self.close()
            cache = f" and a {kv_type} KV cache" if kv_type else ""
            raise _failure(f"llama.cpp cannot run {path} with a context of {n_ctx}{cache}")
        self._memory = lib.llama_get_memory(self._context)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)
        self.n_blocks: int = lib.llama_model_n_layer(self._model)
        self.n_ctx: int = lib.llama_n_ctx(self._context)
        self.backend = _backend(lib)
        self._one = (lib.llama_token * 1)()
        self._one_batch = lib.llama_batch_get_one(self._one, 1)
        self._n_past = 0

    def reset(self) -> None:
        self._lib.llama_memory_clear(self._open(), False)
        self._n_past = 0

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        tokens = self._fits(tokens)
        for start in range(0, len(tokens), N_BATCH):
            chunk = tokens[start : start + N_BATCH]
            array = (self._lib.llama_token * len(chunk))(*chunk)
            self._decode(self._lib.llama_batch_get_one(array, len(chunk)), len(chunk))
        return self._last_logits()

    def decode(self, token: int) -> np.ndarray:
        self._one[0] = self._fits((token,))[0]
        self._decode(self._one_batch, 1)
        return self._last_logits()

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        self.reset()
        return self.append(tokens, len(tokens))

    def log_likelihoods(self, pairs: Sequence[_branches.Pair], tick: Callable[[int], None]) -> list[tuple[float, bool]]:
        return _branches.log_likelihoods(self, pairs, tick)

    def append(self, tokens: Sequence[int], n_last: int) -> np.ndarray:
        """Put tokens after what is cached; logits (n_last, n_vocab) float32 of the last of them."""
        tokens = self._fits(tokens)
        unasked = len(tokens) - n_last  # tokens whose logits nobody wants
        out = np.empty((n_last, self.n_vocab), np.float32)
        most = max(1, min(N_UBATCH, _LOGITS_BYTES // (4 * self.n_vocab)))  # logits at once
        batch = self._lib.llama_batch_init(min(N_UBATCH, len(tokens)), 0, 1)
        try:
            start = 0
            while start < len(tokens):
                stop = min(start + N_UBATCH, max(start, unasked) + most, len(tokens))
                batch.n_tokens = n = stop - start
                for i in range(n):
                    batch.token[i], batch.pos[i] = tokens[start + i], self._n_past + i
                    batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, start + i >= unasked
                self._decode(batch, n)
                first = max(start, unasked)
                if first < stop:
                    rows = self._lib.llama_get_logits(self._context)
                    out[first - unasked : stop - unasked] = np.ctypeslib.as_array(rows, (stop - first, self.n_vocab))
                start = stop
        finally:
            self._lib.llama_batch_free(batch)
        return out

    def rewind(self, n_tokens: int) -> bool:
        memory = self._open()
        whole = self._lib.llama_memory_seq_pos_min(memory, 0) <= 0  # nothing has been dropped
        if whole and self._lib.llama_memory_seq_rm(memory, 0, n_tokens, -1):
            self._n_past = n_tokens
            return True
        self.reset()
        return False

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        if self._context:
            self._lib.llama_free(self._context)
        self._context = None
        super().close()

    def _open(self) -> Any:
        if not self._context:
            raise EdgepruneError("the session is closed")
        return self._memory

    def _fits(self, tokens: Sequence[int]) -> list[int]:
        """Checked here because llama.cpp answers a full cache or a foreign id only with a number."""
        self._open()
        tokens = [int(t) for t in tokens]
        if not tokens or self._n_past + len(tokens) > self.n_ctx:
            raise UsageError(f"{len(tokens)} tokens after {self._n_past} do not fit a context of {self.n_ctx}")
        if min(tokens) < 0 or max(tokens) >= self.n_vocab:
            raise UsageError(f"token ids must be 0 to {self.n_vocab - 1}, found {min(tokens)} to {max(tokens)}")
        return tokens

    def _decode(self, batch: Any, n: int) -> None:
        status = self._lib.llama_decode(self._context, batch)
        self._lib.llama_synchronize(self._context)
        if status:
            raise EdgepruneError(f"llama.cpp could not decode (status {status}): {_llama_log.reason()}")
        self._n_past += n

    def _last_logits(self) -> np.ndarray:
        return np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, -1), (self.n_vocab,))


def _failure(what: str) -> EdgepruneError:
    reason = _llama_log.reason()
    if "alloc" in reason or "out of memory" in reason.lower():
        return OutOfResources(f"{what}: {reason}; use a smaller context or quantisation")
    return InputRejected(f"{what}: {reason}")


def _system_info(lib: Any) -> list[tuple[str, list[str]]]:
    """[("CPU", ["AVX", …])] from "CPU : AVX = 1 | … | CUDA : ARCHS = 900 | …"; flags that are off are left out."""
    out: list[tuple[str, list[str]]] = []
    for part in lib.llama_print_system_info().decode().split("|"):
        name, colon, flag = part.rpartition(" : ")
        if colon:
            out.append((name.strip(), []))
        key, _, value = flag.partition("=")
        if out and key.strip() and value.strip() not in ("", "0"):
            value = value.strip()
            out[-1][1].append(key.strip() if value == "1" else f"{key.strip()}={value}")
    return out


def _has_amx(lib: Any) -> bool:
    return any(flag.startswith("AMX") for _, flags in _system_info(lib) for flag in flags)


def _backend(lib: Any) -> str:
    if not lib.llama_supports_gpu_offload():
        return "cpu"
    names = [name.lower() for name, _ in _system_info(lib) if name != "CPU"]
    return names[0] if names else "gpu"
