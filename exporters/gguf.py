"""Transformers folder -> one GGUF file that stock llama.cpp loads.

F32, F16, BF16 and Q8_0 are written directly; every other type is made by llama.cpp's own quantiser from a lossless
copy. Neither torch nor transformers is imported, and memory stays near a few pieces of the largest tensor.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from edgeprune.checkpoint import Checkpoint, open_checkpoint
from edgeprune.errors import InputRejected, UsageError
from edgeprune.families import for_model_type
from edgeprune.files import disk_errors, need_space
from exporters import PLAIN, Options
from exporters._gguf_shape import Shape, arch_metadata, read_shape
from exporters._gguf_tensors import (
    Planned,
    Stream,
    byte_shape,
    lossless_type,
    n_bytes,
    parameters,
    plan_tensors,
    type_number,
)
from exporters._gguf_tokenizer import read_json, tokenizer_metadata

SUFFIX = ".gguf"
RUNTIME = "llamacpp"
# name -> general.file_type (enum llama_ftype). Those that need an importance matrix (IQ1, IQ2, IQ3_XXS) are left out.
_FILE_TYPE = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q4_K_M": 15, "Q4_K_S": 14,
    "Q4_0": 2, "Q4_1": 3, "IQ4_XS": 30, "IQ4_NL": 25, "Q3_K_M": 12, "Q2_K": 10,
}  # fmt: skip
QUANTS = tuple(_FILE_TYPE)
_DIRECT = ("F32", "F16", "BF16", "Q8_0")
_HEADER_BYTES = 64 << 20  # room to ask of the disk for metadata and vocabulary


class _Job(NamedTuple):
    checkpoint: Checkpoint
    family: ModuleType
    shape: Shape
    tokenizer: dict[str, Any]


def check(folder: Path, quant: str, options: Options = PLAIN) -> None:
    """Everything that could stop an export, found from headers and tokenizer files in well under a second.

    Raises UsageError for an unknown `quant`, InputRejected for what GGUF or llama.cpp cannot hold.
    """
    job = _open(folder, quant, options)
    plan_tensors(job.checkpoint, job.family, job.shape, "F32")


def export(
    folder: Path,
    out: Path,
    quant: str,
    provenance: dict[str, str],
    progress: Callable[[str, float], None],
    options: Options = PLAIN,
) -> None:
    """Write `out`. `provenance` becomes `edgeprune.<key>` texts; `progress` gets a stage and a fraction of it.

    Raises as `check`, InputRejected for weights that are not finite, OutOfResources when disk or memory run out.
    """
    folder, out = Path(folder), Path(out)
    job = _open(folder, quant, options)
    planned = plan_tensors(job.checkpoint, job.family, job.shape, quant if quant in _DIRECT else "F32")
    if quant in _DIRECT:
        _write(job, planned, out, quant, provenance, lambda x: progress(f"writing {quant}", x))
        return
    from exporters._gguf_quantize import quantize

    whole = lossless_type(planned)
    planned = plan_tensors(job.checkpoint, job.family, job.shape, whole)
    temporary = out.parent / f".{out.name}.partial-{uuid.uuid4().hex[:8]}"
    try:
        _write(job, planned, temporary, whole, provenance, lambda x: progress(f"writing {whole}", x), quant)
        with disk_errors(out):
            quantize(temporary, out, _FILE_TYPE[quant], lambda x: progress(f"quantising to {quant}", x))
    finally:
        temporary.unlink(missing_ok=True)


def _open(folder: Path, quant: str, options: Options) -> _Job:
    if quant not in _FILE_TYPE:
        raise UsageError(f"no GGUF quantisation called {quant!r}; known: {', '.join(QUANTS)}")
    checkpoint = open_checkpoint(Path(folder))
    family = for_model_type(checkpoint.config["model_type"])
    shape = read_shape(checkpoint.config, family)
    tokenizer = tokenizer_metadata(checkpoint.folder, checkpoint.config, shape.vocab, options.tokenizer_pre)
    return _Job(checkpoint, family, shape, tokenizer)


def _write(
    job: _Job,
    planned: list[Planned],
    out: Path,
    quant: str,
    provenance: dict[str, str],
    progress: Callable[[float], None],
    final: str | None = None,
) -> None:
    """`final` is the quantisation the file is an intermediate of; both must fit on the disk together."""
    import gguf

    total = sum(n_bytes(p) for p in planned)
    need_space(out.parent, total + _HEADER_BYTES + (total // 2 if final else 0))
    writer = gguf.GGUFWriter(None, job.family.GGUF_ARCH)
    _general(writer, gguf, job, planned)
    arch = job.family.GGUF_ARCH
    _put_all(writer, {f"{arch}.{k}": v for k, v in arch_metadata(job.shape, arch).items()})
    writer.add_file_type(_FILE_TYPE[quant])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _put_all(writer, {k: v for k, v in job.tokenizer.items() if k != "tokenizer.chat_template"})
    if "tokenizer.chat_template" in job.tokenizer:
        writer.add_chat_template(job.tokenizer["tokenizer.chat_template"])
    _put_all(writer, {f"edgeprune.{k}": v for k, v in sorted(provenance.items())})
    for p in planned:
        np_type = _numpy_type(p)
        writer.add_tensor_info(p.name, byte_shape(p), np_type, n_bytes(p), type_number(gguf, p))
    with disk_errors(out):
        try:
            writer.write_header_to_file(out)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            done = 0
            for p in planned:
                writer.write_tensor_data(Stream(p))
                done += n_bytes(p)
                progress(done / total)
        finally:
            writer.close()


def _numpy_type(p: Planned) -> Any:
    import numpy as np

    return np.dtype({"F32": "f4", "F16": "f2", "BF16": "u2", "Q8_0": "u1"}[p.type])


def _put_all(writer: Any, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def _general(writer: Any, gguf: Any, job: _Job, planned: list[Planned]) -> None:
    """`general.*` as llama.cpp's converter fills it from the model card, but sized by what is really there."""
    folder, n = job.checkpoint.folder, parameters(planned)
    try:
        metadata = gguf.Metadata.load(None, folder, None, n)
        metadata.name = metadata.name or folder.name
        metadata.size_label = gguf.size_label(n, n, 0, 0)
        generation = read_json(folder / "generation_config.json") or {}
        if metadata.sampling_penalty_repeat is None:
            metadata.sampling_penalty_repeat = generation.get("repetition_penalty")
        for key in ("name", "author", "version", "organization", "finetune", "basename", "license_name"):
            if getattr(metadata, key) is not None:
                setattr(metadata, key, str(getattr(metadata, key)))
        writer.add_type(gguf.GGUFType.MODEL)
        metadata.set_gguf_meta_model(writer)
        for values in writer.kv_data[0].values():
            writer._pack_val(values.value, values.type, add_vtype=True, sub_type=values.sub_type)
    except InputRejected:
        raise
    except Exception as e:  # yaml, struct and attribute errors alike: the card's values can be anything
        what = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputRejected(f"{folder}/README.md: unusable front matter ({what}); correct or remove it") from None
