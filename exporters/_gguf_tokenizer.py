"""Tokenizer files -> the `tokenizer.*` keys of GGUF: byte-level BPE, and SentencePiece BPE with byte fallback."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeprune.errors import InputRejected
from exporters._gguf_pre import flat, pre_tokenizer
from exporters._gguf_sentencepiece import puts_a_space_first, read_pieces

_Json = dict[str, Any]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_GGUF_NAME = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # the key is really spelt so


def tokenizer_metadata(folder: Path, config: dict[str, Any], vocab_size: int, pre: str | None) -> dict[str, Any]:
    """All `tokenizer.*` keys, in llama.cpp's order. `pre` overrides the pre-tokenizer's name.

    Raises InputRejected when files are missing or damaged, or llama.cpp has no such tokenizer.
    """
    tokenizer = read_json(folder / "tokenizer.json")
    settings = read_json(folder / "tokenizer_config.json")
    if tokenizer is None and not (folder / "tokenizer.model").is_file():
        raise InputRejected(f"{folder} has no tokenizer.json or tokenizer.model; copy the model's tokenizer there")
    model = (tokenizer or {}).get("model") or {}
    try:
        if tokenizer is None or model.get("byte_fallback"):
            out = _sentencepiece(folder, tokenizer or {}, settings or {}, vocab_size)
        elif model.get("type") == "BPE":
            out = _byte_level(tokenizer, settings or {}, vocab_size, pre)
        else:
            kind = model.get("type")
            raise InputRejected(f"{folder}/tokenizer.json: a {kind!r} tokenizer has no counterpart in llama.cpp here")
        _check_unique(folder, out["tokenizer.ggml.tokens"])
        return out | _special(folder, tokenizer or {}, settings, config, out)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as e:
        raise InputRejected(f"{folder}/tokenizer.json is damaged: {type(e).__name__} {e}; download it again") from None


def read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise InputRejected(f"{path} is not JSON; download it again") from None
    if not isinstance(value, dict):
        raise InputRejected(f"{path} is not a JSON object; download it again")
    return value


def _byte_level(tokenizer: _Json, settings: _Json, vocab_size: int, pre: str | None) -> _Json:
    pre = pre or pre_tokenizer(tokenizer, settings.get("clean_up_tokenization_spaces") is True)
    tokens, types = _padding(vocab_size)
    for text, i in tokenizer["model"]["vocab"].items():
        _put(tokens, types, i, text, NORMAL)
    for i, text, special in _added(tokenizer, settings):
        _put(tokens, types, i, *_added_piece(text, special))
    pairs = tokenizer["model"]["merges"]
    merges = [m if isinstance(m, str) else " ".join(p.replace(" ", "Ġ") for p in m) for m in pairs]
    out = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre}
    return out | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": merges}


def _sentencepiece(folder: Path, tokenizer: _Json, settings: _Json, vocab_size: int) -> _Json:
    """Scores come from tokenizer.model, else from merge ranks, which give the same order of merging."""
    tokens, types = _padding(vocab_size)
    scores = [-10000.0] * vocab_size
    path = folder / "tokenizer.model"
    if path.is_file():
        for i, (text, score, kind) in enumerate(read_pieces(path)):
            if i < vocab_size:
                _put(tokens, types, i, text, kind)
                scores[i] = score
    else:
        rank: dict[str, int] = {}
        for n, m in enumerate(tokenizer["model"]["merges"]):
            rank.setdefault("".join(m.split(" ") if isinstance(m, str) else m), n)
        unknown = tokenizer["model"].get("unk_token")
        for text, i in tokenizer["model"]["vocab"].items():
            byte = re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text)
            _put(tokens, types, i, text, BYTE if byte else UNKNOWN if text == unknown else NORMAL)
            scores[i] = float(-rank.get(text, len(rank)))
    for text, i in (read_json(folder / "added_tokens.json") or {}).items():
        _put(tokens, types, i, text, USER_DEFINED)
        scores[i] = -1000.0
    for i, text, special in _added(tokenizer, settings):
        _put(tokens, types, i, *_added_piece(text, special))
        scores[i] = -1000.0
    out: dict[str, Any] = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
    prefix = settings.get("add_prefix_space")
    if isinstance(prefix, bool):
        out["tokenizer.ggml.add_space_prefix"] = prefix
    elif not (_puts_a_space_first(tokenizer) if tokenizer else puts_a_space_first(path)):  # llama.cpp's default
        out["tokenizer.ggml.add_space_prefix"] = False
    return out | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": scores, "tokenizer.ggml.token_type": types}


def _puts_a_space_first(tokenizer: _Json) -> bool:
    steps = [*flat(tokenizer.get("normalizer"), "normalizers"), *flat(tokenizer.get("pre_tokenizer"), "pretokenizers")]
    schemes = [s.get("prepend_scheme", "always") for s in steps if s.get("type") == "Metaspace"]
    return any(s.get("type") == "Prepend" for s in steps) or any(s != "never" for s in schemes)


def _padding(vocab_size: int) -> tuple[list[str], list[int]]:
    return [f"[PAD{i}]" for i in range(vocab_size)], [UNUSED] * vocab_size


def _put(tokens: list[str], types: list[int], i: int, text: str, kind: int) -> None:
    if not 0 <= i < len(tokens):
        raise InputRejected(f"the tokenizer has id {i}, the model {len(tokens)} embeddings; do they belong together?")
    tokens[i], types[i] = text, kind


def _check_unique(folder: Path, tokens: list[str]) -> None:
    """llama.cpp aborts the process on a vocabulary with two entries of one text."""
    first: dict[str, int] = {}
    for i, text in enumerate(tokens):
        if first.setdefault(text, i) != i:
            raise InputRejected(f"{folder}: tokens {first[text]} and {i} are both {text!r}; llama.cpp cannot load that")


def _added(tokenizer: dict[str, Any], settings: dict[str, Any]) -> Iterator[tuple[int, str, bool]]:
    seen = set()
    for t in tokenizer.get("added_tokens") or []:
        seen.add(t["id"])
        yield t["id"], t["content"], bool(t.get("special"))
    for i, t in (settings.get("added_tokens_decoder") or {}).items():
        if int(i) not in seen:
            yield int(i), t["content"], bool(t.get("special"))


def _added_piece(text: str, special: bool) -> tuple[str, int]:
    """llama.cpp matches control tokens only when asked to; `<|…|>` are meant so even where not marked special."""
    if (
        special
        or text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or re.fullmatch(r"<\|.*\|>|<｜.*｜>|<unused.*>", text, re.DOTALL)
    ):
        return text, CONTROL
    return text.replace("▁", " "), USER_DEFINED


def name_for(name: str, folder: Path, vocab: _Json) -> str:
    """general.name, from which llama.cpp takes whether special tokens swallow the blanks after them.

    They do where it has "phi-3" in it (src/llama-vocab.cpp, "phi-3"), which then needs the four tokens it excepts.
    """
    added = (read_json(folder / "tokenizer.json") or {}).get("added_tokens") or []
    swallow = any(t.get("rstrip") for t in added if t.get("special"))
    swallow = swallow and {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= set(vocab["tokenizer.ggml.tokens"])
    said = re.search("phi-?3", name, re.IGNORECASE)
    if swallow and not said:
        return (
            re.sub("phi 3", "Phi-3", name, count=1, flags=re.IGNORECASE) if "phi 3" in name.lower() else f"{name} phi-3"
        )
    return re.sub("(phi)-?3", r"\1 3", name, flags=re.IGNORECASE) if said and not swallow else name


def _special(folder: Path, tokenizer: _Json, settings: _Json | None, config: _Json, vocab: _Json) -> _Json:
    texts = {t: _text((settings or {}).get(f"{t}_token")) for t in _SPECIAL}
    texts["bos"], texts["eos"] = texts["bos"] or texts["cls"], texts["eos"] or texts["sep"]
    add = _added_by_template(tokenizer, texts)
    for kind in _SPECIAL:
        asked = (settings or {}).get(f"add_{kind}_token")
        if isinstance(asked, bool):
            add.setdefault(kind, asked)
    # An explicit no, because some of llama.cpp's pre-tokenizers put BOS unless told otherwise.
    add.setdefault("bos", vocab["tokenizer.ggml.model"] == "llama" and not tokenizer)
    ids = {t["content"]: t["id"] for t in reversed(tokenizer.get("added_tokens") or [])}
    out: dict[str, Any] = {}
    for kind in [*_SPECIAL, "eot"]:
        token = ids.get(texts.get(kind) or "", config.get(f"{kind}_token_id"))
        if type(token) is int and 0 <= token < len(vocab["tokenizer.ggml.tokens"]):
            out[f"tokenizer.ggml.{_GGUF_NAME.get(kind, kind)}_token_id"] = token
    for kind in ("bos", "eos", "sep"):
        if kind in add:
            out[f"tokenizer.ggml.add_{kind}_token"] = add[kind]
    template = _chat_template(folder, settings)
    return out if template is None else out | {"tokenizer.chat_template": template}


def _text(token: Any) -> str | None:
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _added_by_template(tokenizer: dict[str, Any], texts: dict[str, str | None]) -> dict[str, bool]:
    """Which special tokens the post-processor puts around one text; may name bos and eos in `texts`."""
    add: dict[str, bool] = {}
    top = tokenizer.get("post_processor") or {}
    for step in top.get("processors", [top]):
        if step.get("type") == "ByteLevel":
            add.setdefault("bos", False)
            add.setdefault("eos", False)
        if step.get("type") != "TemplateProcessing":
            continue
        single = [s.get("SpecialToken", {}).get("id") for s in step.get("single", [])]
        first, last = (single[0], single[-1]) if len(single) > 1 else (None, None)
        if first:
            texts["bos"] = texts["bos"] or first
            add["bos"] = first in (texts["bos"], texts["cls"])
        if last:
            if texts["eos"] not in (None, last):
                texts["eot"] = texts["eos"]
            texts["eos"] = last
            add["eos"] = True
        pair = [s.get("SpecialToken", {}).get("id") for s in step.get("pair", [])]
        between = pair[1 if first and pair[:1] == [first] else 0 : -1 if last and pair[-1:] == [last] else None][1:-1]
        if between:
            ends = {texts["sep"], texts["eos"]} - {None}
            add["sep"] = (between[0] in ends and not last) or (len(between) == 2 and between[1] in ends)
    return add


def _chat_template(folder: Path, settings: dict[str, Any] | None) -> Any:
    """Byte for byte; never rendered. The jinja file is what transformers writes today."""
    template = (settings or {}).get("chat_template")
    path = folder / "chat_template.jinja"
    if template is None and path.is_file():
        with open(path, encoding="utf-8", newline="") as f:
            template = f.read()
        more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        if more:
            template = [{"name": "default", "template": template}]
            template += [{"name": p.stem, "template": p.read_bytes().decode("utf-8")} for p in more]
    if template is not None and not isinstance(template, (str, list)):
        raise InputRejected(f"{folder}/tokenizer_config.json: chat_template is neither a text nor a list")
    return template
