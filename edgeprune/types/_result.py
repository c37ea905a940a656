"""What came out: files, measurements, quality."""

from __future__ import annotations

from typing import Any

from edgeprune.types._model import Text
from edgeprune.types._record import Record


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
