"""What a run records for its report beside the plan: software, chat templates, and what to measure for comparison."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from pathlib import Path

from edgeprune import __version__, cost
from edgeprune._candidates import LADDER
from edgeprune.blocks import whole
from edgeprune.errors import UsageError
from edgeprune.types import DeviceProfile, ModelSpec, Plan, Workload

PACKAGES = "torch transformers accelerate gguf llama-cpp-python onnx onnxruntime onnxruntime-genai numpy safetensors"
LATE_TOKENS, LATE_REPETITIONS = 32, 3  # filling the cache takes long, a token's time late in the context spreads little


def environment() -> dict[str, str]:
    """Versions of everything that took part."""
    from importlib.metadata import PackageNotFoundError, version

    out = {"edgeprune": __version__, "python": platform.python_version()}
    for name in PACKAGES.split():
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def chat_templates(folders: dict[str, Path]) -> dict[str, str]:
    """SHA-256 of the chat template of each transformers folder that has one."""
    found = {name: _template(folder) for name, folder in folders.items()}
    return {name: hashlib.sha256(text).hexdigest() for name, text in found.items() if text is not None}


def _template(folder: Path) -> bytes | None:
    try:
        return (folder / "chat_template.jinja").read_bytes()
    except OSError:
        pass
    try:
        text = json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
    return text.encode() if isinstance(text, str) else None


def fewer_bits(spec: ModelSpec, made: Plan, device: DeviceProfile) -> str | None:
    """The quantisation at which the whole model's file comes nearest to the planned one: what removing competes with.

    None where the runtime has no other.
    """

    def apart(quant: str) -> float:
        p = cost.predict(spec, whole(spec.n_blocks), device, made.runtime, made.backend, quant, 1, 1)
        return abs(math.log(p.file_bytes / made.prediction.file_bytes))

    return min((q for q in LADDER[made.runtime] if q != made.quant), key=apart, default=None)


def late_workloads(depths: tuple[int, ...] | None, load: Workload) -> list[Workload]:
    """Decoding with the cache filled so far; unless told, to the end of the planned context. Raises UsageError past it."""
    n = load.context_tokens or 0
    n_gen = min(load.n_gen, LATE_TOKENS)
    asked = depths if depths is not None else (n - n_gen,) if n > 2 * n_gen else ()
    for depth in asked:
        if depth + n_gen > n:
            raise UsageError(
                f"--depth {depth} and {n_gen} tokens after it pass the {n} tokens of context reserved; give a larger --context"
            )
    change = {"n_prompt": 0, "n_gen": n_gen, "repetitions": min(load.repetitions, LATE_REPETITIONS)}
    return [load.model_copy(update={**change, "n_depth": depth}) for depth in dict.fromkeys(asked) if depth]
