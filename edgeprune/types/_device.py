"""A device: its facts, and the terms of the cost model calibrated on it."""

from __future__ import annotations

from typing import Literal

from edgeprune.types._record import SCHEMA_VERSION, Record


class Figure(Record):
    """A number and where it comes from. `kind` "unsourced" is printed with "~"."""

    value: float
    unit: Literal["bytes", "bytes/s", "flop/s", "ratio", "us", "W", "1"]
    source: str
    kind: Literal["vendor", "measured", "computed", "third-party", "unsourced", "prior"]
    low: float | None = None
    high: float | None = None
    note: str | None = None


class PowerMode(Record):
    name: str
    watts: float | None = None
    bandwidth_scale: float | None = None  # of the theoretical bandwidth; None = not known
    note: str | None = None
    source: str


class Calibration(Record):
    """Terms of the decode model for one runtime × backend (× mode × quantisation); see edgeprune.cost."""

    runtime: str  # key of edgeprune.runtimes, or another runtime's name
    backend: str  # cpu, cuda, metal, vulkan, …
    mode: str | None = None
    quant: str | None = None
    build: str | None = None
    efficiency: Figure | None = None  # fraction of theoretical bandwidth reached on weights
    efficiency_of: dict[str, Figure] = {}  # quantisation -> that fraction, where it was measured
    overhead_per_block: Figure | None = None  # us
    attention_rate: Figure | None = None  # flop/s reached by attention over the cache
    cache_rate: Figure | None = None  # bytes/s reading the cache
    error: Figure | None = None  # spread (standard deviation of the logarithm) of one measurement about the formula
    prefill_rate: Figure | None = None  # flop/s reached in prefill
    weight_rates: dict[str, Figure] = {}  # tensor type -> bytes/s of reading weights of it; before `efficiency`
    prefill_rates: dict[str, Figure] = {}  # tensor type -> flop/s of a prompt's matrices of it; before `prefill_rate`
    prefill_weight_rates: dict[str, Figure] = {}  # tensor type -> bytes/s, once for each micro-batch of a prompt
    prefill_activation_rate: Figure | None = None  # bytes/s of a prompt's float32 activations into and out of matrices
    prefill_attention_rate: Figure | None = None  # flop/s reached by attention over a prompt
    runtime_memory: Figure | None = None  # bytes of the runtime itself
    n_rows: int
    n_models: int
    status: Literal["prior", "fitted", "host-calibrated"]
    note: str | None = None


class DeviceProfile(Record):
    schema_version: Literal[1] = SCHEMA_VERSION
    id: str
    aliases: tuple[str, ...] = ()
    siblings: tuple[str, ...] = ()  # other members an alias could have meant
    vendor: str
    name: str
    memory_total: Figure
    memory_available: Figure  # what a model process may take
    unified_memory: bool
    bandwidth: Figure  # theoretical
    cpu: str | None = None
    isa: str | None = None  # CPU features, space-separated: avx2 avx512 dotprod i8mm …
    gpu: str | None = None
    peak: str | None = None  # advertised compute, as text
    power: str | None = None  # power range, as text, where modes are not known
    runtimes: dict[str, tuple[str, ...]]  # runtime -> backends, best first
    modes: tuple[PowerMode, ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    note: str | None = None
