"""onnxruntime on a folder with model.onnx, as the ONNX exporter and onnxruntime-genai's builder write it.

Plain sessions with bound buffers: each layer's past and present are one array of n_ctx tokens, which
GroupQueryAttention extends in place.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import EdgepruneError, InputRejected, OutOfResources, UsageError
from edgeprune.runtimes import _branches
from edgeprune.runtimes._tokenizer import FolderText

_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_LAST = "/lm_head/last"  # the exporter's node that keeps only the last position
_FOLDER_KEY = "session.model_external_initializers_file_folder_path"


def reads(path: Path) -> bool:
    return (Path(path) / "model.onnx").is_file()


def version() -> str:
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def quant(path: Path) -> str:
    """What the exporter recorded, else what the operators say: "int4", "int4-mixed", "int8", "fp16" or "fp32"."""
    model = _graph(Path(path))
    for prop in model.metadata_props:
        if prop.key == "edgeprune.quant":
            return prop.value
    bits = {a.i for n in model.graph.node if n.op_type == "MatMulNBits" for a in n.attribute if a.name == "bits"}
    if bits:
        return f"int{min(bits)}{'-mixed' if len(bits) > 1 else ''}"
    half = model.graph.output[0].type.tensor_type.elem_type == 10  # TensorProto.FLOAT16
    return "fp16" if half else "fp32"


def open_session(path: Path, *, n_ctx: int, n_threads: int, precise: bool = False) -> _Session:
    """CUDA when onnxruntime has it, else CPU. `precise` changes nothing: arithmetic is what the file's quant says.

    Raises InputRejected for a folder that onnxruntime can't open, OutOfResources when memory runs out.
    """
    return _Session(Path(path), n_ctx, n_threads)


class _Session(FolderText):
    def __init__(self, folder: Path, n_ctx: int, n_threads: int):
        super().__init__(folder)
        self.n_ctx, self._n_threads = n_ctx, n_threads
        self._ort = _open(folder, str(folder / "model.onnx"), n_threads)
        self.backend = "cuda" if "CUDAExecutionProvider" in self._ort.get_providers() else "cpu"
        self._check_names()
        self._past = [i for i in self._ort.get_inputs() if i.name.startswith("past_key_values.")]
        logits = next(o for o in self._ort.get_outputs() if o.name == "logits")
        self._shapes = [(i.shape[1], _head_dim(i, folder)) for i in self._past]
        said = self._ort.get_modelmeta().custom_metadata_map.get("edgeprune.blocks")
        self.n_vocab, self.n_blocks = logits.shape[-1], int(said or len(self._past) // 2)  # some have no cache
        self._last_only = logits.shape[1] == 1
        self._float = np.dtype(_NUMPY[logits.type])
        self._all: Any = None  # the graph that gives every position's logits, once it is asked for
        self._all_binding: Any = None
        self._mask = np.ones(n_ctx, np.int64)
        self._step = np.zeros((1, 1, self.n_vocab), self._float)  # where a decoded token's logits land
        self._cache = self._new_cache()
        self._binding = self._ort.io_binding()
        self._n_past = 0

    def reset(self) -> None:
        self._n_past = 0

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        return self.append(tokens, 1)[0]

    def decode(self, token: int) -> np.ndarray:
        return self._run(self._ort, self._binding, [token], self._step)[0]

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        self.reset()
        return self.append(tokens, len(tokens))

    def log_likelihoods(self, pairs: Sequence[_branches.Pair], tick: Callable[[int], None]) -> list[tuple[float, bool]]:
        return _branches.log_likelihoods(self, pairs, tick)

    def append(self, tokens: Sequence[int], n_last: int) -> np.ndarray:
        """Put tokens after what is cached; logits (n_last, n_vocab) float32 of the last of them."""
        if n_last == 1 or not self._last_only:
            out = np.empty((1, 1 if self._last_only else len(tokens), self.n_vocab), self._float)
            return self._run(self._ort, self._binding, tokens, out)[-n_last:]
        if self._all is None:
            self._all = _open(self._folder, _all_positions(_graph(self._folder), self._folder), self._n_threads)
            self._all_binding = self._all.io_binding()
        unasked = len(tokens) - n_last
        if unasked:
            self.prefill(tokens[:unasked])
        out = np.empty((1, n_last, self.n_vocab), self._float)
        return self._run(self._all, self._all_binding, tokens[unasked:], out)

    def rewind(self, n_tokens: int) -> bool:
        self._n_past = n_tokens
        return True

    def close(self) -> None:
        self._binding = self._all_binding = self._ort = self._all = None
        self._cache = []

    def _run(self, graph: Any, bind: Any, tokens: Sequence[int], out: np.ndarray) -> np.ndarray:
        """Run `tokens` after what is cached; logits land in `out` (1, positions, n_vocab), returned as float32 without the 1."""
        total = self._n_past + len(tokens)
        if not tokens or total > self.n_ctx:
            raise UsageError(f"{len(tokens)} tokens after {self._n_past} exceed the context of {self.n_ctx}")
        ids, mask = np.asarray([tokens], np.int64), self._mask[None, :total]
        bind.bind_cpu_input("input_ids", ids)
        bind.bind_cpu_input("attention_mask", mask)
        bind.bind_output("logits", "cpu", 0, self._float, out.shape, out.ctypes.data)
        for info, value in zip(self._past, self._cache, strict=True):
            bind.bind_ortvalue_input(info.name, value)
            bind.bind_ortvalue_output(info.name.replace("past_key_values", "present"), value)
        with _failures(self._folder):
            graph.run_with_iobinding(bind)
        self._n_past = total
        return out[0].astype(np.float32, copy=False)

    def _new_cache(self) -> list[Any]:
        import onnxruntime

        new = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        try:
            return [new([1, heads, self.n_ctx, dim], self._float, self.backend, 0) for heads, dim in self._shapes]
        except (MemoryError, RuntimeError) as e:
            raise OutOfResources(f"no memory to cache {self.n_ctx} tokens: {_line(e)}; use less context") from None

    def _check_names(self) -> None:
        inputs, outputs = ({v.name: v for v in vs} for vs in (self._ort.get_inputs(), self._ort.get_outputs()))
        past = {n for n in inputs if n.startswith("past_key_values.")}
        want_in, want_out = {"input_ids", "attention_mask"} | past, {"logits"}
        want_out |= {n.replace("past_key_values", "present") for n in past}
        if not past or set(inputs) != want_in or not want_out <= set(outputs):
            raise InputRejected(
                f"{self._folder}/model.onnx is not a decoder taking input_ids, attention_mask and past_key_values; "
                "export the model with edgeprune"
            )
        types = {inputs[n].type for n in past} | {outputs["logits"].type}
        if len(types) > 1 or not types <= set(_NUMPY):
            raise InputRejected(
                f"{self._folder}/model.onnx has cache and logits of {sorted(types)}, not one float type"
            )


def _head_dim(past: Any, folder: Path) -> int:
    """Last dimension of a cache input; other exporters leave it open and say it in genai_config.json."""
    if isinstance(past.shape[3], int):
        return past.shape[3]
    try:
        return int(json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]["decoder"]["head_size"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputRejected(
            f"{folder}: neither model.onnx nor genai_config.json says the head size; export again"
        ) from None


def _open(folder: Path, model: str | bytes, n_threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = n_threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # a plan per input shape, on top of the arena; here each step has another shape
    options.log_severity_level = 4  # faults come back as exceptions; stderr is the caller's
    if isinstance(model, bytes):
        options.add_session_config_entry(_FOLDER_KEY, str(folder))
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except MemoryError as e:
        raise OutOfResources(f"no memory to open {folder}: {_line(e)}") from None
    except Exception as e:  # onnxruntime has a class per fault, without a common base
        if "bad_alloc" in str(e) or "allocate memory" in str(e):
            raise OutOfResources(f"no memory to open {folder}: {_line(e)}") from None
        raise InputRejected(f"{folder}/model.onnx can't be opened by {version()}: {_line(e)}; export again") from None


@contextlib.contextmanager
def _failures(folder: Path) -> Iterator[None]:
    """A fault while the graph runs, such as a token outside the vocabulary, as one line."""
    try:
        yield
    except Exception as e:
        if "bad_alloc" in str(e) or "allocate memory" in str(e):
            raise OutOfResources(f"no memory to run {folder}: {_line(e)}; use less context") from None
        raise EdgepruneError(f"{folder}/model.onnx failed in {version()}: {_line(e)}") from None


def _graph(folder: Path) -> Any:
    """The ModelProto without its weights."""
    import onnx

    try:
        return onnx.load(str(folder / "model.onnx"), load_external_data=False)
    except Exception as e:
        raise InputRejected(f"{folder}/model.onnx is not an ONNX file: {_line(e)}; export it again") from None


def _all_positions(model: Any, folder: Path) -> bytes:
    """The same graph, giving logits of every position: the node that picks the last one is taken out."""
    picks = [n for n in model.graph.node if n.name == _LAST]
    if len(picks) != 1:
        raise EdgepruneError(f"{folder}/model.onnx gives the last position's logits only; export it with edgeprune")
    for node in model.graph.node:
        node.input[:] = [picks[0].input[0] if name == picks[0].output[0] else name for name in node.input]
    model.graph.node.remove(picks[0])
    logits = next(o for o in model.graph.output if o.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_param = "sequence_length"
    return model.SerializeToString()


def _line(e: Exception) -> str:
    return " ".join(str(e).split())[:200]
