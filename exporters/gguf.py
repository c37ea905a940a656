"""Transformers folder, or .gguf file -> one GGUF file that stock llama.cpp loads.

From a folder F32, F16, BF16 and Q8_0 are written directly; every other type is made by llama.cpp's own quantiser from
a lossless copy, and so is all that comes from a .gguf. Neither torch nor transformers is imported, and memory stays
near a few pieces of the largest tensor.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from edgeprune import families
from edgeprune.checkpoint import Checkpoint, halves, open_checkpoint
from edgeprune.errors import InputRejected
from edgeprune.files import disk_errors, need_space
from exporters import PLAIN, Options, _gguf_requantize
from exporters._gguf_quantize import ALIASES, FILE_TYPE, check_quant, prepare, quantize
from exporters._gguf_shape import Shape, read_shape
from exporters._gguf_stream import Stream
from exporters._gguf_tensors import (
    Planned,
    byte_shape,
    lossless_type,
    n_bytes,
    parameters,
    plan_tensors,
    type_number,
)
from exporters._gguf_tokenizer import name_for, read_json, tokenizer_metadata

__all__ = ["ALIASES", "QUANTS", "RUNTIME", "SUFFIX", "check", "export", "notes"]

SUFFIX = ".gguf"
RUNTIME = "llamacpp"
QUANTS = tuple(FILE_TYPE)
_DIRECT = ("F32", "F16", "BF16", "Q8_0")
_HEADER_BYTES = 64 << 20  # room to ask of the disk for metadata and vocabulary


class _Job(NamedTuple):
    checkpoint: Checkpoint
    family: ModuleType
    shape: Shape
    tokenizer: dict[str, Any]


def check(source: Path, quant: str, options: Options = PLAIN) -> None:
    """Everything that could stop an export, found from headers and tokenizer files in well under a second.

    Raises UsageError for an unknown `quant` or a missing importance matrix, InputRejected for what GGUF or llama.cpp
    cannot hold and for a matrix of another model.
    """
    if Path(source).is_file():
        _gguf_requantize.check(Path(source), quant, options)
        return
    job = _open(source, quant, options)
    origin = {k: str(v) for k, v in (read_json(job.checkpoint.folder / "edgeprune.json") or {}).items()}
    planned = plan_tensors(job.checkpoint, job.family, job.shape, "F32")
    prepare(quant, options, {p.name: p.shape for p in planned}, origin)


def notes(source: Path, quant: str) -> list[str]:
    """What the caller should know before the work."""
    source = Path(source)
    if source.is_file():
        return _gguf_requantize.notes(source, quant)
    checkpoint = open_checkpoint(source)
    arch = getattr(families.for_model_type(checkpoint.config["model_type"]), "GGUF_ARCH_IRREGULAR", None)
    n = sum(not attention for attention, _ in halves(checkpoint))
    if arch != "openelm" or not n:
        return []
    return [f"blocks without attention ({n}) keep one head of zeros in llama.cpp, and its share of the KV cache"]


def export(
    source: Path,
    out: Path,
    quant: str,
    provenance: dict[str, str],
    progress: Callable[[str, float], None],
    options: Options = PLAIN,
) -> None:
    """Write `out`. `provenance` becomes `edgeprune.<key>` texts; `progress` gets a stage and a fraction of it.

    Raises as `check`, InputRejected for weights that are not finite, OutOfResources when disk or memory run out.
    """
    source, out = Path(source), Path(out)
    if source.is_file():
        _gguf_requantize.export(source, out, quant, provenance, progress, options)
        return
    job = _open(source, quant, options)
    planned = plan_tensors(job.checkpoint, job.family, job.shape, quant if quant in _DIRECT else "F32")
    if quant in _DIRECT:
        _write(job, planned, out, quant, provenance, lambda x: progress(f"writing {quant}", x))
        return
    matrix = prepare(quant, options, {p.name: p.shape for p in planned}, provenance)
    whole = lossless_type(planned)
    planned = plan_tensors(job.checkpoint, job.family, job.shape, whole)
    temporary = out.parent / f".{out.name}.partial-{uuid.uuid4().hex[:8]}"
    try:
        _write(job, planned, temporary, whole, provenance, lambda x: progress(f"writing {whole}", x), quant)
        with disk_errors(out):
            quantize(temporary, out, quant, lambda x: progress(f"quantising to {quant}", x), matrix)
    finally:
        temporary.unlink(missing_ok=True)


def _open(folder: Path, quant: str, options: Options) -> _Job:
    check_quant(quant, options)
    checkpoint = open_checkpoint(Path(folder))
    config, family = checkpoint.config, families.for_model_type(checkpoint.config["model_type"])
    tied = families.is_tied(family.decoder(config), checkpoint.tensors)
    shape = read_shape(config, family, halves(checkpoint), tied)
    tokenizer = tokenizer_metadata(checkpoint.folder, config, shape.decoder.vocab, options.tokenizer_pre)
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
    arch = job.shape.arch.name
    writer = gguf.GGUFWriter(None, arch)
    _general(writer, gguf, job, planned)
    _put_all(writer, {f"{arch}.{k}": v for k, v in job.shape.keys.items()})
    writer.add_file_type(FILE_TYPE[quant])
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
        metadata.name = name_for(str(metadata.name or folder.name), folder, job.tokenizer)
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
