"""What a study yields, as one JSON document from which its page is drawn."""

from __future__ import annotations

from typing import Literal

from edgeprune.evaluation import TaskScore
from edgeprune.types import SCHEMA_VERSION, Record

Winner = Literal["depth", "width", "equal", "open"]  # open: the interval leaves it open


class Interval(Record):
    low: float
    middle: float
    high: float


class Model(Record):
    """One model of the study in one quantisation."""

    variant: str
    label: str
    kind: Literal["whole", "depth", "width"]
    ratio: float  # asked for
    rounding: int  # of widths: what they are multiples of; 0: each layer has its own
    equal: str  # what it shares with the depth variant of its ratio: "parameters", or a file's bytes
    method: str = ""  # of a real model: how it was chosen what goes
    n_blocks: int
    heads: int
    kv_heads: int
    ffn: int
    params: int
    runtime: str
    quant: str
    predicted_bytes: int
    file_bytes: int | None  # of the file that was measured
    memory_bytes: int | None  # what it added to a process; the most of its runs


class Cell(Record):
    """One model in one state of decode: measured and explained."""

    variant: str
    runtime: str
    quant: str
    threads: int
    context: int
    measured_s: float  # median of a token
    predicted_s: float  # by a fit that saw no row of this model
    parts: dict[str, float]  # seconds: bytes, fallback, blocks, attention, and what these leave unexplained


class Pair(Record):
    """A depth variant beside a width variant: ratios of speeds, above 1 where depth is faster."""

    ratio: float
    runtime: str
    quant: str
    threads: int
    what: Literal["decode", "prefill"]
    context: int  # tokens before; of a prefill: of the prompt
    depth: str
    width: str
    equal: str
    repetitions: int
    depth_tok_per_s: float
    width_tok_per_s: float
    measured: Interval  # over repetitions side by side, 95 %
    predicted: float | None  # by fits that saw no row of the models
    winner: Winner


class Projection(Record):
    """The same, foretold for a device on which nothing of it was measured."""

    device: str
    device_class: str
    runtime: str
    backend: str
    basis: str
    ratio: float
    quant: str
    context: int
    depth: str
    width: str
    equal: str
    depth_tok_per_s: float
    predicted: Interval  # 90 %
    winner: Winner


class Curve(Record):
    """Depth's advantage foretold along one axis; the rest as in the study."""

    axis: Literal["context", "model", "bandwidth", "threads"]
    device: str
    quant: str
    width: str  # a label
    x: tuple[float, ...]
    x_labels: tuple[str, ...] = ()
    y: tuple[Interval, ...]
    even_at: float | None = None  # where neither is faster, if that lies inside


class Quality(Record):
    """Of one variant as torch runs it, on text nothing was chosen by; or of its file, where `quant` is said."""

    variant: str
    quant: str | None
    method: str
    healed: bool
    perplexity: float
    kl: float | None
    kl_stderr: float | None
    text: str | None = None  # that it was judged on
    tasks: tuple[TaskScore, ...] = ()


class Stock(Record):
    """What a real llama-bench says of a file, with nothing in the context."""

    variant: str
    quant: str
    prefill_tok_per_s: float
    decode_tok_per_s: float


class EqualQuality(Record):
    """A width variant beside the depth model of the same damage, which lies between two that were measured."""

    quant: str
    width: str
    method: str
    healed: bool  # both
    kl: float
    width_tok_per_s: float
    depth_tok_per_s: float
    ratio: Interval  # of speeds; the ends are of the KL's 95 %
    winner: Winner


class Study(Record):
    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    speed_only: bool
    ratios: tuple[float, ...]
    contexts: tuple[int, ...]
    n_prompt: int
    n_gen: int
    repetitions: int
    threads: tuple[int, ...]
    models: tuple[Model, ...]
    cells: tuple[Cell, ...]
    pairs: tuple[Pair, ...]
    projections: tuple[Projection, ...]
    curves: tuple[Curve, ...]
    qualities: tuple[Quality, ...] = ()
    equal_quality: tuple[EqualQuality, ...] = ()
    llama_bench: tuple[Stock, ...] = ()
    left_out: tuple[str, ...]
    environment: dict[str, str]
    command: str
    created: str
