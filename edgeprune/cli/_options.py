"""The options verbs share: one name, one meaning, one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeprune.errors import UsageError
from edgeprune.units import parse_bytes


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as e:
        raise typer.BadParameter(str(e)) from None


def _limit(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None
    if not 0 <= value < float("inf"):
        raise typer.BadParameter(f"{text} is not a limit that can be met")
    return value


def _documents(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (0 < value < 1 or (value >= 1 and value == int(value))):
        raise typer.BadParameter(f"{text!r} is neither a number of documents nor a fraction below 1")
    return value


def _ends(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise typer.BadParameter(f"{text!r} is not two numbers such as 4,2")
    return int(parts[0]), int(parts[1])


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
ModelOrBuiltin = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help="Default: the built-in SmolLM2-135M-Instruct.")
]
Device = Annotated[
    str, typer.Option("--device", "-d", help="A profile's name or alias, a .toml of your own, or 'host'.")
]
MaxMem = Annotated[int | None, typer.Option(parser=_size, metavar="SIZE", help="Memory for weights, KV cache, buffers and runtime, e.g. 8GB or 8GiB.")]  # fmt: skip  # noqa: E501
Memory = Annotated[int | None, typer.Option("--max-memory", parser=_size, metavar="SIZE", help="What weights and activations may take in each process; a larger model is read from disk. Default: what is free.")]  # fmt: skip  # noqa: E501
MaxFile = Annotated[
    int | None, typer.Option(parser=_size, metavar="SIZE", help="Size of the .gguf or the ONNX folder.")
]
MaxKl = Annotated[float | None, typer.Option(parser=_limit, metavar="NATS", help="Expected damage: KL from the whole, unquantised model, nats per token; of removal as measured, of quantisation as published.")]  # fmt: skip  # noqa: E501
MaxPplRatio = Annotated[float | None, typer.Option(parser=_limit, metavar="RATIO", help="Expected perplexity over the whole, unquantised model's, e.g. 1.1.")]  # fmt: skip  # noqa: E501
Objective = Annotated[str, typer.Option(help="What is best among all that fits: quality, speed, size or memory.")]
KvType = Annotated[str, typer.Option(help="llama.cpp's type of the KV cache: f16, q8_0, q4_0 or 'auto'.")]
CacheType = Annotated[str | None, typer.Option("--kv-type", help="Type of llama.cpp's KV cache: f16, q8_0, q4_0 or f32; ONNX has its own. Default: f16.")]  # fmt: skip  # noqa: E501
MinTps = Annotated[
    float | None, typer.Option(parser=_limit, metavar="RATE", help="Least decode speed at batch 1, tokens per second.")
]
MaxTtft = Annotated[float | None, typer.Option(parser=_limit, metavar="SECONDS", help="Longest time to first token, seconds, for --prompt tokens.")]  # fmt: skip  # noqa: E501
Prompt = Annotated[int, typer.Option(min=1, help="Prompt length --max-ttft is for, tokens.")]
Context = Annotated[int, typer.Option(min=1, help="Context the KV cache is reserved for, tokens.")]
Quant = Annotated[str, typer.Option(help="A quantisation (Q8_0, Q4_K_M, int8, …) or 'auto'.")]
Runtime = Annotated[str, typer.Option(help="llamacpp, onnxruntime or 'auto'.")]
Mode = Annotated[str | None, typer.Option(help="Power mode of the device, as `edgeprune devices NAME` lists them.")]
Texts = Annotated[list[Path] | None, typer.Option("--text", help="Evaluation text, UTF-8; repeatable. Default, or the word default: half of CPython's help topics.")]  # fmt: skip  # noqa: E501
Calibration = Annotated[list[Path] | None, typer.Option("--calibration", help="Calibration text, UTF-8; repeatable, read in turn. Default, or the word default beside files: the other half, Python source and package descriptions.")]  # fmt: skip  # noqa: E501
Windows = Annotated[int, typer.Option(min=1, help="Windows of text to read.")]
Window = Annotated[int, typer.Option("--window", min=8, help="Tokens per window.")]
Metric = Annotated[
    str, typer.Option(help="How to choose removals: kl_search, block_influence, …; a wrong name lists all.")
]
Protect = Annotated[Any, typer.Option(parser=_ends, metavar="FIRST,LAST", help="Blocks at the start and the end never to remove, e.g. 4,2; for metrics that rate blocks.")]  # fmt: skip  # noqa: E501
Effort = Annotated[int, typer.Option(min=0, help="Of our searches: 0 greedy; 1 also goes back over it; more also carries that many on at every step.")]  # fmt: skip  # noqa: E501
AfterHeal = Annotated[str | None, typer.Option(help="Of the best cuts of each size choose by the damage left after healing so: refit, replaceme.")]  # fmt: skip  # noqa: E501
Precision = Annotated[str, typer.Option(help="Type of the weights while removals are chosen: float32, bfloat16 or 'auto', the fastest here.")]  # fmt: skip  # noqa: E501
MaxSteps = Annotated[int | None, typer.Option(min=1, help="Longest removal path. Default: a third of the blocks.")]
Granularity = Annotated[str, typer.Option(help="What a search may cut: portable (whole layers and seams), aligned (whole layers) or sublayer.")]  # fmt: skip  # noqa: E501
Through = Annotated[str, typer.Option(help="torch, llamacpp (a .gguf, without torch) or 'auto': llamacpp where that is quick.")]  # fmt: skip  # noqa: E501
Tokens = Annotated[int | None, typer.Option(min=1, help="How many tokens to train on. Default: 200000, or what --minutes allow.")]  # fmt: skip  # noqa: E501
Minutes = Annotated[float | None, typer.Option(min=0.01, help="How long to train at most.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A number or choice of how it trains, such as rate=1e-4; a wrong name lists all. Repeatable.")]  # fmt: skip  # noqa: E501
TaskNames = Annotated[list[str] | None, typer.Option("--tasks", metavar="NAME,…", help="lm-eval's tasks by name or pattern, or 'zeroshot': ARC, BoolQ, HellaSwag-1000, OpenBookQA, PIQA and WinoGrande from --task-data.")]  # fmt: skip  # noqa: E501
TaskData = Annotated[Path | None, typer.Option("--task-data", metavar="FOLDER", help="NAME.jsonl of the zeroshot tasks.")]  # fmt: skip  # noqa: E501
Include = Annotated[Path | None, typer.Option("--include-path", metavar="FOLDER", help="Task definitions of your own; Python code in them runs.")]  # fmt: skip  # noqa: E501
Limit = Annotated[float | None, typer.Option("--limit", parser=_documents, metavar="N", help="First N documents of each task; below 1, a fraction.")]  # fmt: skip  # noqa: E501
Shots = Annotated[int | None, typer.Option("--num-fewshot", min=0, help="Answered examples before each question.")]
Generate = Annotated[
    bool, typer.Option("--generate", help="Also greedy text: continuations, repetition, exact answers.")
]


def names(asked: list[str] | None) -> tuple[str, ...]:
    """Of an option that may be repeated, each time with several names and commas between."""
    return tuple(name for part in asked or [] for name in part.split(",") if name)


def pairs(settings: list[str] | None) -> dict[str, str]:
    found = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: write NAME=VALUE")
        found[name.strip()] = value.strip()
    return found
