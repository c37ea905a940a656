"""Which of llama.cpp's built-in pre-tokenizers splits text as a tokenizer.json says.

llama.cpp knows pre-tokenizers by name only (src/llama-vocab.cpp), so the steps of tokenizer.json are compared with
the steps each name stands for. Names that split alike are one entry here; the most widely known is written.
"""

from __future__ import annotations

from typing import Any

from edgeprune.errors import InputRejected

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = ("split", _WORDS + r"\p{N}" + _REST)
_LLAMA3 = ("split", _WORDS + r"\p{N}{1,3}" + _REST)
_UPPER, _LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_MORE = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_TEKKEN = ("split", rf"{_UPPER}*{_LOWER}+|{_UPPER}+{_LOWER}*|\p{{N}}{_MORE}")
_GPT4O = ("split", rf"{_UPPER}*{_LOWER}+{_SUFFIX}|{_UPPER}+{_LOWER}*{_SUFFIX}|\p{{N}}{{1,3}}{_MORE}")
_GPT2, _BYTES, _DIGITS = ("gpt2",), ("bytes",), ("digits",)

# (steps, ignore_merges) -> name
_KNOWN: dict[tuple[tuple[tuple[str, ...], ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGITS, _GPT2), False): "smollm",
    ((_QWEN2, _BYTES), False): "qwen2",
    ((_LLAMA3, _BYTES), False): "dbrx",
    ((_LLAMA3, _BYTES), True): "llama-bpe",
    ((_TEKKEN, _BYTES), True): "tekken",
    ((_GPT4O, _BYTES), False): "gpt-4o",
}
_CLEANING = {"smollm": "refact"}  # split alike, but decoding removes spaces before punctuation: StarCoder's, Granite's


def pre_tokenizer(tokenizer: dict[str, Any], cleans_up: bool = False) -> str:
    """llama.cpp's name for a byte-level BPE tokenizer.json. Raises InputRejected when there is none.

    `cleans_up`: tokenizer_config.json's clean_up_tokenization_spaces.
    """
    steps = tuple(_steps(tokenizer.get("pre_tokenizer")))
    normal = [n.get("type") for n in flat(tokenizer.get("normalizer"), "normalizers")]
    name = _KNOWN.get((steps, bool(tokenizer.get("model", {}).get("ignore_merges"))))
    # llama.cpp does not normalise; NFC only matters for text that is not NFC already.
    if name is None or any(n != "NFC" for n in normal):
        found = " + ".join([*map(str, normal), *(s[0] for s in steps)]) or "none"
        raise InputRejected(
            f"tokenizer.json: pre-tokenizer ({found}) is none that edgeprune knows in llama.cpp; "
            "if you know its name there, pass --tokenizer-pre NAME"
        )
    return _CLEANING.get(name, name) if cleans_up else name


def flat(node: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(node, dict):
        return []
    if node.get("type") == "Sequence":
        return [step for child in node.get(key, []) for step in flat(child, key)]
    return [node]


# Each match is a piece. "Removed" drops what matches nothing, and the patterns known here match everything.
_WHOLE = {("Isolated", False), ("Removed", True)}


def _steps(node: Any) -> list[tuple[str, ...]]:
    out: list[tuple[str, ...]] = []
    for step in flat(node, "pretokenizers"):
        kind = step.get("type")
        if kind == "ByteLevel" and not step.get("add_prefix_space"):
            out.append(_GPT2 if step.get("use_regex", True) else _BYTES)
        elif kind == "Digits" and step.get("individual_digits"):
            out.append(_DIGITS)
        elif kind == "Split" and (step.get("behavior"), bool(step.get("invert"))) in _WHOLE:
            pattern = step.get("pattern")
            regex = str(pattern.get("Regex") if isinstance(pattern, dict) else pattern)
            out.append(("split", regex))
        else:
            out.append((str(kind),))
    return out
