"""PyTorch on a transformers folder: the reference that artifacts are compared with. float32, CUDA when present."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.checkpoint import open_checkpoint
from edgeprune.errors import InputRejected, OutOfResources, UsageError
from edgeprune.runtimes import _uneven as uneven
from edgeprune.runtimes._tokenizer import FolderText


def reads(path: Path) -> bool:
    path = Path(path)
    weights = any(path.glob("*.safetensors"))
    return (path / "config.json").is_file() and weights and not (path / "model.onnx").exists()


def version() -> str:
    import torch
    import transformers

    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def quant(path: Path) -> str:
    """The type most weights are stored in, as safetensors names it: "F32", "BF16", "F16"."""
    sizes: Counter[str] = Counter()
    for entry in open_checkpoint(Path(path)).tensors.values():
        sizes[entry.dtype] += entry.end - entry.start
    return sizes.most_common(1)[0][0]


def open_session(path: Path, *, n_ctx: int, n_threads: int, precise: bool = False) -> _Session:
    """Weights are widened to float32 whatever they are stored in; `precise` changes nothing.

    Sets torch's thread count for the process until the session is closed.
    Raises InputRejected for a folder that transformers can't open, OutOfResources when memory runs out.
    """
    return _Session(Path(path), n_ctx, n_threads)


class _Session(FolderText):
    def __init__(self, folder: Path, n_ctx: int, n_threads: int):
        import torch

        checkpoint = open_checkpoint(folder)
        super().__init__(folder)
        self.n_ctx = n_ctx
        self.backend = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = _load(folder).to(self.backend).eval()
        self.n_vocab = self._model.config.vocab_size
        self.n_blocks = checkpoint.config["num_hidden_layers"]
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        self.reset()

    def reset(self) -> None:
        from transformers import DynamicCache

        self._cache: Any = DynamicCache(config=self._model.config)
        self._n_past = 0

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        total = self._n_past + len(tokens)
        if not tokens or total > self.n_ctx:
            raise UsageError(f"{len(tokens)} tokens after {self._n_past} exceed the context of {self.n_ctx}")
        out = self._run(tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._n_past = total
        return out[-1]

    def decode(self, token: int) -> np.ndarray:
        return self.prefill([token])

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        return self._run(tokens, use_cache=False)

    def rewind(self, n_tokens: int) -> bool:
        try:
            self._cache.crop(n_tokens - self._n_past)
        except RuntimeError:  # a window has moved on
            self.reset()
            return False
        self._n_past = n_tokens
        return True

    def log_likelihoods(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], tick: Callable[[int], None]
    ) -> list[tuple[float, bool]]:
        from edgeprune.runtimes._torch_batches import log_likelihoods

        return log_likelihoods(self._model, pairs, tick)

    def close(self) -> None:
        import torch

        self._model = self._cache = None
        torch.set_num_threads(self._threads_before)

    def _run(self, tokens: Sequence[int], **options: Any) -> np.ndarray:
        """Logits (positions kept, n_vocab) float32; the copy to the CPU waits for the device."""
        import torch

        ids = torch.tensor([list(tokens)], device=self.backend)
        with torch.inference_mode():
            return self._model(input_ids=ids, **options).logits[0].float().cpu().numpy()


def _load(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # stderr is the caller's
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    options = dict(local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True)
    try:
        if open_checkpoint(folder).config.get("per_layer_config"):
            return uneven.load(folder)
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    except MemoryError as e:
        raise OutOfResources(f"no memory to open {folder}: {e}") from None
    except Exception as e:
        line = " ".join(str(e).split())[:200]
        if "out of memory" in line or "allocate memory" in line:
            raise OutOfResources(f"no memory to open {folder}: {line}") from None
        raise InputRejected(f"{folder} can't be opened by {version()}: {line}; download it again") from None
    finally:
        logging.set_verbosity(verbosity)
    absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if absent:  # transformers would go on with random values
        raise InputRejected(f"{folder}: {absent[0]} and {len(absent) - 1} more weights are missing; download it again")
    return model
