"""The records that flow between verbs, and their JSON. Imports nothing of ours.

Frozen; units in field names (`_bytes`, `_tokens`, `_ns`, `_tok_per_s`); unknown is None, never 0.
Predicted and measured numbers never share a field.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self  # in typing from Python 3.11; pydantic brings this one

SCHEMA_VERSION = 1


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def to_json(self) -> str:
        """Deterministic text: same record, same bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError in one line, naming the first field that does not fit."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(str(p) for p in first["loc"]) or "document"
            raise ValueError(f"not a {cls.__name__} record: {where}: {first['msg']}") from None

    def digest(self) -> str:
        """SHA-256 of the JSON text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


# --- the one idea: a model is a list of blocks -------------------------------------------------


class Block(Record):
    """Where this block's attention and feed-forward come from in the whole model; None leaves it out."""

    attn: int | None
    ffn: int | None


Blocks = tuple[Block, ...]


# --- model --------------------------------------------------------------------------------------


class SubLayerSpec(Record):
    """Tensor shapes by role, torch order (out, in): {"attn_q.weight": (576, 576), …}."""

    tensors: dict[str, tuple[int, ...]]

    @property
    def params(self) -> int:
        return sum(math.prod(s) for s in self.tensors.values())


class BlockSpec(Record):
    attn: SubLayerSpec
    ffn: SubLayerSpec
    sliding_window_tokens: int | None = None
    rotates: bool = True  # has a rotary embedding
    kv_elements_per_token: int  # K and V together: 2 * n_kv_heads * head_dim


class ModelSpec(Record):
    """A model's shape from its headers alone."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    format: Literal["safetensors", "gguf"]
    family: str  # key of edgeprune.families
    model_type: str  # config.json model_type, or GGUF general.architecture
    n_blocks: int
    hidden_size: int
    intermediate_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length_tokens: int
    tied_embeddings: bool
    blocks: tuple[BlockSpec, ...]
    globals: dict[str, tuple[int, ...]]  # token_embd.weight, output_norm.weight, output.weight
    dtypes: dict[str, int]  # stored type -> parameters
    weight_bytes: int  # tensor bytes as stored
    tokenizer_bytes: dict[str, int] | None = None  # format -> vocabulary and other metadata as it stores them
    fingerprint: str

    @property
    def params(self) -> int:
        return sum(math.prod(s) for s in self.globals.values()) + sum(b.attn.params + b.ffn.params for b in self.blocks)

    @property
    def kv_elements_per_token(self) -> int:
        return sum(b.kv_elements_per_token for b in self.blocks)


class Text(Record):
    """What was read: enough to tell two texts apart without storing them."""

    name: str
    sha256: str  # of all of it
    parts: tuple[str, ...] = ()  # SHA-256 of each text, where it was put together from several
    tokens: int
    context_tokens: int
    stride_tokens: int


class PathStep(Record):
    """The block list after this step and its damage against the whole model, in nats per token."""

    blocks: Blocks
    kl: float | None
    perplexity: float | None


class Scores(Record):
    """A removal path: step 0 is the whole model, each later step removes more. Knows no device."""

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    fingerprint: str
    n_blocks: int
    metric: str
    source: str  # the paper
    block_damage: tuple[float, ...] | None  # one number per block, low = remove first
    path: tuple[PathStep, ...]
    text: Text
    seed: int
    versions: dict[str, str]


# --- devices ------------------------------------------------------------------------------------


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
    prefill_overhead: Figure | None = None  # us per block and token of a prompt
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


# --- plan ---------------------------------------------------------------------------------------


class Budget(Record):
    """What was asked. None = no limit."""

    max_mem_bytes: int | None = None
    min_decode_tok_per_s: float | None = None
    max_ttft_s: float | None = None
    max_file_bytes: int | None = None
    max_kl: float | None = None  # of removal and quantisation together, nats per token
    max_ppl_ratio: float | None = None  # perplexity over the whole, unquantised model's
    prompt_tokens: int = 512  # what max_ttft_s is for
    context_tokens: int = 2048  # KV cache reserved
    quant: str = "auto"
    kv_type: str = "auto"  # llama.cpp's type of the KV cache: f16, q8_0 or q4_0
    runtime: str = "auto"
    objective: Literal["quality", "speed", "size", "memory"] = "quality"  # what is best among all that meets the limits


class Prediction(Record):
    """Memory and speed foretold for one block list × quantisation × runtime on one device."""

    file_bytes: int
    weights_bytes: int  # resident weights
    kv_bytes: int
    compute_bytes: int
    runtime_bytes: int
    memory_bytes: int  # the sum of the four above: what becomes resident
    committed_bytes: int | None = None  # what is reserved, written to or not; an accelerator must have it all
    streamed_bytes: int  # read for each decoded token
    decode_tok_per_s: float | None
    decode_low_tok_per_s: float | None
    decode_high_tok_per_s: float | None
    decode_depth_tokens: int = 64  # tokens in the cache at that speed; 64 is the mean of llama-bench's tg128
    ttft_s: float | None
    ttft_low_s: float | None = None
    ttft_high_s: float | None = None
    basis: str  # "prior", "fitted" or "host-calibrated", and from what


class Alternative(Record):
    """A candidate the planner looked at, and why it lost or what it gives for what."""

    runtime: str
    quant: str
    kv_type: str = "f16"
    n_blocks: int
    removed: str
    damage_kl: float | None  # removal, measured
    quant_kl: float | None  # quantisation, prior
    kv_kl: float | None = 0.0  # KV cache type, prior
    prediction: Prediction
    reason: str


class Plan(Record):
    """Small, reviewable, deterministic: same inputs, same bytes."""

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    family: str
    fingerprint: str
    n_blocks_whole: int
    device: str
    mode: str | None
    runtime: str
    backend: str
    quant: str
    kv_type: str = "f16"  # of the KV cache, as the runtime calls it; f32 in onnxruntime
    budget: Budget
    memory_limit_bytes: int | None
    memory_limit_from: str  # "--max-mem" or "device"
    blocks: Blocks
    removed: str
    damage_kl: float | None
    damage_perplexity: float | None
    whole_perplexity: float | None
    quant_kl: float | None
    kv_kl: float | None = 0.0  # prior
    expected_kl: float | None = None  # removal, quantisation and KV cache together
    expected_ppl_ratio: float | None = None
    prediction: Prediction
    prediction_whole: Prediction  # same quantisation, cache and runtime, nothing removed
    alternatives: tuple[Alternative, ...]  # the best of every other runtime × quantisation
    front: tuple[Alternative, ...] = ()  # damage × memory × speed: none is beaten in all three
    scores_sha256: str | None
    metric: str | None


class Artifact(Record):
    path: str  # relative to the folder it is listed in, or as given
    format: str  # key of exporters
    quant: str
    bytes: int
    sha256: str  # of the file, or of the folder's SHA256SUMS
    n_blocks: int
    max_logit_error: float | None  # against its source, largest absolute difference on the check prompt
    mean_kl: float | None  # against its source on the check prompt, nats per token


class Workload(Record):
    """llama-bench's defaults."""

    n_prompt: int = 512
    n_gen: int = 128
    n_depth: int = 0
    repetitions: int = 5
    n_threads: int | None = None  # None = physical cores
    context_tokens: int | None = None  # cache reserved; None = what the tests need
    kv_type: str | None = None  # of the cache; None = the runtime's own
    seed: int = 0


class Measurement(Record):
    """One artifact × one runtime, measured in a fresh process. Raw samples; averages are derived."""

    artifact: str
    artifact_sha256: str
    runtime: str
    backend: str
    build: str
    n_threads: int
    interleaved: bool = False  # its repetitions took turns with other artifacts'
    workload: Workload
    prefill_samples_ns: tuple[int, ...]
    decode_samples_ns: tuple[int, ...]  # one per repetition: n_gen tokens
    token_samples_ns: tuple[int, ...]  # every decoded token
    baseline_rss_bytes: int  # interpreter and bindings, before the model is opened
    loaded_rss_bytes: int
    peak_rss_bytes: int
    peak_anon_bytes: int | None  # PSS of anonymous memory at the end
    peak_file_bytes: int | None  # PSS of mapped files at the end
    model_bytes: int
    host: dict[str, Any]
    test_time: str

    @property
    def memory_bytes(self) -> int:
        """What the model adds to a process: peak RSS less the interpreter's own."""
        return self.peak_rss_bytes - self.baseline_rss_bytes


class Quality(Record):
    """Perplexity, and KL(whole ‖ this), nats per token with its standard error over windows."""

    subject: str
    sha256: str
    runtime: str
    text: Text
    windows: int
    perplexity: float
    perplexity_whole: float | None
    kl: float | None
    kl_stderr: float | None
    top1_agreement: float | None


class BudgetLine(Record):
    line: str  # "memory", "file size", "decode speed", "time to first token", "damage", "perplexity"
    unit: str  # "bytes", "tok/s", "s", "nats", "×"
    asked: float
    predicted: float | None
    measured: float | None
    verdict: Literal["met", "missed", "not measured"]


class Report(Record):
    schema_version: Literal[1] = SCHEMA_VERSION
    title: str
    headline: str  # the verdict in one sentence
    plan: Plan
    device: DeviceProfile | None
    model: ModelSpec | None
    scores: Scores | None
    verdict: tuple[BudgetLine, ...]
    artifacts: tuple[Artifact, ...]
    measurements: tuple[Measurement, ...]
    qualities: tuple[Quality, ...]
    predictions: dict[str, Prediction]  # by artifact path
    not_measured: tuple[str, ...]
    risks: tuple[str, ...]
    environment: dict[str, str]
    command: str
    created: str
