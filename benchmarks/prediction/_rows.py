"""The public rates as rows of a fit: which device profile, runtime, backend and power mode a line belongs to.

Lines are left out for what they are, never for how well they fit; every one that is left out is named with its reason.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import NamedTuple

from _models import SHAPES, check

from edgeprune._fit import Row

FULL_POWER = (None, "MAXN", "MAXN_SUPER")  # a capped mode says little of other devices of its backend
# label in the file -> (profile, power mode); the first that matches. A profile that is not shipped serves the priors.
DEVICES = [
    (r"M1 Pro", "m1-pro", None),
    (r"M1 Max", "m1-max", None),
    (r"Apple M1", "m1", None),
    (r"M2 Ultra", "m2-ultra", None),
    (r"M2 Pro", "m2-pro", None),
    (r"Apple M2", "m2", None),
    (r"M3 Pro", "m3-pro", None),
    (r"M3 Max", "m3-max", None),
    (r"Apple M3", "m3", None),
    (r"M4 Pro", "m4-pro", None),
    (r"M4 Max", "m4-max", None),
    (r"Apple M4", "m4", None),
    (r"RTX 3060", "rtx3060-12gb", None),
    (r"RTX 3070", "rtx3070-8gb", None),
    (r"RTX 3090", "rtx3090", None),
    (r"RTX 4080", "rtx4080", None),
    (r"RTX 4090", "rtx4090", None),
    (r"RTX 5060 Ti", "rtx5060ti-16gb", None),
    (r"GB10", "nvidia-gb10", None),
    (r"RX 7900 XTX", "rx7900xtx", None),
    (r"Arc B580", "arc-b580", None),
    (r"AI Max\+ 395", "amd-aimax395", None),
    (r"AI Max 385", "amd-aimax385", None),
    (r"AI 5 340", "amd-ai340", None),
    (r"Ultra 7 258V", "intel-ultra7-258v", None),
    (r"N150", "intel-n150", None),
    (r"AGX Orin 64GB \(30W", "jetson-agx-orin-64gb", "30W"),
    (r"AGX Orin 64GB", "jetson-agx-orin-64gb", "MAXN"),
    (r"AGX Thor", "jetson-thor-128gb", None),
    (r"Orin Nano 8GB 15W", "jetson-orin-nano-8gb", "15W"),
    (r"Orin Nano 8GB Super MAXN", "jetson-orin-nano-8gb-super", "MAXN_SUPER"),
    (r"Orin Nano 8GB Super", "jetson-orin-nano-8gb-super", "25W"),
    (r"Raspberry Pi 400", "rpi4-4gb", None),
    (r"Raspberry Pi 5", "rpi5-8gb", None),
    (r"RK3588", "rk3588-orangepi5", None),
    (r"iPhone 15 Pro", "iphone15pro", None),
    (r"X Elite", "qcom-x-elite", None),
    (r"8 Elite Gen 5", "sd-8elite-gen5", None),
    (r"8 Elite", "sd-8elite", None),
]
# The same machine with another amount of memory, or the same cores and memory at another clock: one calibration serves.
TWINS = {"rpi5-8gb": ("rpi5-4gb", "rpi5-16gb"), "rpi4-4gb": ("rpi4-8gb",), "intel-n150": ("intel-n100",)}
RUNTIMES = {"mlc": "mlc", "vllm": "vllm", "rkllm": "rkllm", "ipex-llm": "ipex-llm", "genie/qairt": "qairt"}
RUNTIMES |= {"geniex/qairt": "geniex-qairt"}
BACKENDS = {"npu": "rknpu", "hexagon npu": "hexagon", "rocm/hip": "hip"}
DEFAULT_THREADS = {"rpi5-8gb": "4", "rpi4-4gb": "4"}  # physical cores, as the runtime takes them by itself
PREFILL_LEAST_PARAMS = 1e9
PREFILL_MOST_TOKENS = 1100  # beyond, attention's own rate counts and one rate for all no longer holds


class Key(NamedTuple):
    profile: str
    runtime: str
    backend: str
    mode: str | None
    threads: str | None  # where it is not what the runtime takes by itself

    def __str__(self) -> str:
        extra = [self.mode, f"{self.threads} threads" if self.threads else None]
        return " ".join([self.profile, self.runtime, self.backend, *(e for e in extra if e)])


class Line(NamedTuple):
    number: int  # in the file
    key: Key
    label: str
    model: str
    quant: str
    bandwidth: float  # bytes/s, as the file has it
    depth: int
    source: str
    decode: Row
    prefill: Row | None


def read(path: Path) -> tuple[list[Line], list[tuple[int, str]]]:
    """(lines used, (line number, reason) of those left out). Raises ValueError for a device or model not known here."""
    used, left_out = [], []
    with path.open(newline="", encoding="utf-8") as f:
        for number, record in enumerate(csv.DictReader(f), 2):
            reason = _reason(record)
            if reason:
                left_out.append((number, f"{record['device']}, {record['model']}: {reason}"))
            else:
                used.append(_line(number, record))
    return used, left_out


def _reason(record: dict[str, str]) -> str | None:
    if "MoE" in record["model"]:
        return "a mixture of experts; the file's size is not what is read for a token"
    if not record["theoretical_bw_gbs"]:
        return "its bandwidth is not known"
    return None


def _line(number: int, record: dict[str, str]) -> Line:
    model, depth = record["model"], int(float(record["depth"]))
    if model not in SHAPES:
        raise ValueError(f"line {number}: no shape of {model} in _models.py")
    check(model, float(record["params_b"]))
    shape, bandwidth = SHAPES[model], float(record["theoretical_bw_gbs"]) * 1e9
    streamed = float(record["streamed_gib"]) * 2**30
    amounts = (
        streamed / bandwidth,
        float(shape.blocks),
        shape.cache_bytes(depth) / bandwidth,
        shape.attention_flops(depth),
    )
    decode = Row(model, amounts, 1 / float(record["tg_tps"]), record["quant"])
    return Line(
        number, _key(number, record), record["device"], model, record["quant"], bandwidth, depth, record["source"],
        decode, _prefill(record, depth),
    )  # fmt: skip


def _prefill(record: dict[str, str], depth: int) -> Row | None:
    tokens = depth if depth >= 512 else 512  # llama-bench's pp512 where the file gives no prompt
    shape = SHAPES[record["model"]]
    if not record["pp_tps"] or shape.params < PREFILL_LEAST_PARAMS or tokens > PREFILL_MOST_TOKENS:
        return None
    return Row(record["model"], (shape.prefill_flops(tokens),), tokens / float(record["pp_tps"]))


def _key(number: int, record: dict[str, str]) -> Key:
    label, runtime = record["device"], record["runtime"].lower()
    profile, mode = next(((p, m) for pattern, p, m in DEVICES if re.search(pattern, label)), (None, None))
    if profile is None:
        raise ValueError(f"line {number}: no profile for {label!r} in _rows.py")
    backend = record["backend"].lower()
    usual = DEFAULT_THREADS.get(profile)
    threads = record["threads"] if usual and record["threads"] not in ("", usual) else None
    return Key(profile, RUNTIMES.get(runtime, "llamacpp"), BACKENDS.get(backend, backend), mode, threads)
