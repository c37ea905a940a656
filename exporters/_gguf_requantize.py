"""A .gguf file -> another quantisation of it, by llama.cpp's quantiser alone: any architecture it knows, no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from edgeprune.errors import UsageError
from edgeprune.files import disk_errors, need_space
from edgeprune.gguf_file import FILE_TYPES, GGUFHeader, read_header
from exporters import Options
from exporters._gguf_quantize import check_quant, prepare, quantize

_PLAIN_TYPES = ("F32", "F16", "BF16")


def check(source: Path, quant: str, options: Options) -> None:
    """Raises UsageError or InputRejected for what can be known from headers."""
    check_quant(quant, options)
    if options.tokenizer_pre is not None:
        raise UsageError(f"{source} names its pre-tokenizer itself; leave --tokenizer-pre out")
    header = read_header(source)
    prepare(quant, options, _shapes(header), _origin(header))


def export(
    source: Path,
    out: Path,
    quant: str,
    provenance: Mapping[str, str],
    progress: Callable[[str, float], None],
    options: Options,
) -> None:
    """Write `out`; metadata is the source's, with what of `provenance` it does not say yet."""
    check_quant(quant, options)
    header = read_header(source)
    origin = _origin(header)
    matrix = prepare(quant, options, _shapes(header), {**origin, **provenance})
    new = {f"edgeprune.{k}": v for k, v in provenance.items() if origin.get(k) != v}
    need_space(out.parent, _room(header, quant))
    with disk_errors(out):
        quantize(
            header.paths[0], out, quant, lambda x: progress(f"quantising to {quant}", x), matrix, new, requantize=True
        )


def notes(source: Path, quant: str) -> list[str]:
    """What the caller should know: a source that is quantised already loses twice."""
    header = read_header(source)
    kinds = sorted({t.type for t in header.tensors.values() if len(t.shape) > 1} - set(_PLAIN_TYPES))
    if not kinds:
        return []
    name = FILE_TYPES.get(header.metadata.get("general.file_type"), ", ".join(kinds))
    if quant in _PLAIN_TYPES:
        return [f"{source.name} is quantised already ({name}): {quant} keeps its rounding and takes more room"]
    return [
        f"{source.name} is quantised already ({name}): {quant} rounds a second time; "
        "start from the F16 or F32 model where there is one"
    ]


def _shapes(header: GGUFHeader) -> dict[str, tuple[int, ...]]:
    return {name: t.shape for name, t in header.tensors.items()}


def _origin(header: GGUFHeader) -> dict[str, str]:
    """The provenance that an earlier export or cut left in the file."""
    return {k.removeprefix("edgeprune."): str(v) for k, v in header.metadata.items() if k.startswith("edgeprune.")}


def _room(header: GGUFHeader, quant: str) -> int:
    """Bytes to ask of the disk: a bit and a half over the nominal bits of each weight."""
    bits = {"F32": 32, "F16": 16, "BF16": 16}.get(quant) or int(re.search(r"\d", quant)[0]) + 1.5
    n = sum(math.prod(t.shape) for t in header.tensors.values())
    return round(n * bits / 8) + header.data_offset
