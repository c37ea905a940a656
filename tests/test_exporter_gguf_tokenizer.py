"""Does llama.cpp, given our GGUF, split text into the ids that the folder's own tokenizer gives?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from _exported import assert_same, convert, edit_json, export, needs_converter

from edgeprune.errors import InputRejected
from edgeprune.gguf_file import read_header
from edgeprune.runtimes import llamacpp
from exporters._gguf_sentencepiece import read_pieces

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = TEKKEN.replace("]+|[^", "]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^").replace(
    r"]*|\p{N}|", r"]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
)
TRAINING = [
    "The quick brown fox jumps over 12 lazy dogs, 345 times; isn't it? I'M sure they'LL say: we've seen 1234567 foxes.",
    "def f(x):\n\treturn x**2  # square\n\n\n    if x >= 10:\n        print('ten', x)\r\n  ...   !!!",
    "Grüße aus München, où êtes-vous? Привет, мир. 你好 世界 12月. ｡ﾟ naïve café 🚀🚀 family 👨‍👩‍👧 ½ ² ٣",
]
TRICKY = [
    *TRAINING,
    " leading", "trailing ", "  two  spaces  ", "\n", "\t\t\n \n  x", "1", "12", "123", "1234", "a1b2c3", "  1  22   333",
    "don't DON'T Don'T we'Re 'tis 'S", "snake_case camelCase HTTPServer", "a.b,c;d:e!?", "$1,234.56 (50%)", "x\u00a0y",
    "<|im_start|>user\nHi<|im_end|>\n", "é vs e\u0301", "\u2028", "...", "=====", "//**//", "ÀÉÎ ßẞ ŉ",
]  # fmt: skip
ASCII_ONLY = [t for t in TRICKY if t.isascii()]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(pattern: str | None, digits: bool = False, removed: bool = False):
    from tokenizers import Regex, pre_tokenizers

    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern:
        steps.append(pre_tokenizers.Split(Regex(pattern), "removed" if removed else "isolated", invert=removed))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    return pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]


def bpe_folder(tiny_folder, out: Path, pre, ignore_merges: bool = False) -> Path:
    """A tiny llama with a byte-level BPE of about 500 entries that splits with `pre`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(TRAINING * 3, trainer)
    shutil.copytree(tiny_folder("llama", vocab_size=512), out)
    PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=SPECIALS[1], eos_token=SPECIALS[2]).save_pretrained(out)
    data = json.loads((out / "tokenizer.json").read_text())
    data["model"]["ignore_merges"] = ignore_merges
    if ignore_merges:  # a whole word whose merges are missing: only ignoring them finds it
        data["model"]["vocab"]["foxes"] = 505
    (out / "tokenizer.json").write_text(json.dumps(data))
    return out


def assert_tokens_equal(folder: Path, path: Path, texts: list[str]) -> None:
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    session = llamacpp.open_session(path, n_ctx=64, n_threads=1)
    try:
        for text in texts:
            want = reference.encode(text, add_special_tokens=False).ids
            assert session.tokenize(text) == want, repr(text)
    finally:
        session.close()


@pytest.mark.parametrize("name, pre, ignore_merges, texts", [
    ("gpt-2", dict(pattern=None), False, TRICKY),
    ("smollm", dict(pattern=None, digits=True), False, TRICKY),
    ("qwen2", dict(pattern=WORDS + r"\p{N}" + REST), False, TRICKY),
    ("dbrx", dict(pattern=WORDS + r"\p{N}{1,3}" + REST), False, TRICKY),
    ("dbrx", dict(pattern=WORDS + r"\p{N}{1,3}" + REST, removed=True), False, TRICKY),  # OLMo 2, Phi-4
    ("llama-bpe", dict(pattern=WORDS + r"\p{N}{1,3}" + REST), True, TRICKY),  # also SmolLM3
    ("gpt-4o", dict(pattern=GPT4O), False, ASCII_ONLY),  # Phi-4-mini; letter case as in tekken
    ("tekken", dict(pattern=TEKKEN), True, ASCII_ONLY),  # llama.cpp approximates its letter case outside ASCII
])  # fmt: skip
def test_byte_level_tokenizers(tiny_folder, tmp_path, name, pre, ignore_merges, texts):
    folder = bpe_folder(tiny_folder, tmp_path / "m", byte_level(**pre), ignore_merges)
    path = export(folder, tmp_path / "m.gguf")
    metadata = read_header(path, arrays=True).metadata
    assert metadata["tokenizer.ggml.pre"] == name
    assert len(metadata["tokenizer.ggml.tokens"]) == 512 and metadata["tokenizer.ggml.tokens"][511] == "[PAD511]"
    assert metadata["tokenizer.ggml.token_type"][:3] == (3, 3, 3) and metadata["tokenizer.ggml.token_type"][511] == 5
    assert_tokens_equal(folder, path, [*texts, "foxes", "the foxes"])


def test_the_pre_tokenizer_of_granite(tiny_folder, tmp_path):
    """Splits as SmolLM's does, but decoding cleans up spaces, which llama.cpp calls another tokenizer."""
    folder = bpe_folder(tiny_folder, tmp_path / "m", byte_level(None, digits=True))
    edit_json(folder / "tokenizer_config.json", clean_up_tokenization_spaces=True)
    path = export(folder, tmp_path / "m.gguf")
    assert read_header(path).metadata["tokenizer.ggml.pre"] == "refact"
    assert_tokens_equal(folder, path, TRICKY)


@pytest.mark.parametrize("post, settings, bos", [
    (None, {}, None),
    (None, {"add_bos_token": True}, 1),
    ([{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], {}, 1),
    ([{"Sequence": {"id": "A", "type_id": 0}}], {}, None),
])  # fmt: skip
def test_bos_is_put_where_the_folder_puts_it(tiny_folder, tmp_path, post, settings, bos):
    """Also for the pre-tokenizer where llama.cpp would put one unasked."""
    folder = bpe_folder(tiny_folder, tmp_path / "m", byte_level(WORDS + r"\p{N}{1,3}" + REST), True)
    if post:
        specials = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
        template = {"type": "TemplateProcessing", "single": post, "pair": post, "special_tokens": specials}
        edit_json(folder / "tokenizer.json", post_processor=template)
    edit_json(folder / "tokenizer_config.json", **settings)
    session = llamacpp.open_session(export(folder, tmp_path / "m.gguf"), n_ctx=64, n_threads=1)
    assert session.bos_token == bos
    session.close()


def sentencepiece_folder(tiny_folder, out: Path) -> Path:
    """A tiny llama with a SentencePiece BPE with byte fallback, as Llama 2 and Mistral 7B have."""
    import sentencepiece

    shutil.copytree(tiny_folder("llama", vocab_size=512), out)
    text = out / "text.txt"
    text.write_text("\n".join(TRAINING * 3))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(out / "tokenizer"), vocab_size=450, model_type="bpe", byte_fallback=True,
        character_coverage=0.98, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, minloglevel=2, num_threads=1,
    )  # fmt: skip
    for name in ("text.txt", "tokenizer.vocab", "tokenizer.json"):
        (out / name).unlink()
    edit_json(out / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>")
    edit_json(out / "config.json", bos_token_id=1, eos_token_id=2)
    return out


def test_sentencepiece_model(tiny_folder, tmp_path):
    import sentencepiece

    folder = sentencepiece_folder(tiny_folder, tmp_path / "m")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    pieces = read_pieces(folder / "tokenizer.model")
    assert [(t, round(s, 5)) for t, s, _ in pieces] == [
        (reference.id_to_piece(i), round(reference.get_score(i), 5)) for i in range(reference.vocab_size())
    ]
    path = export(folder, tmp_path / "m.gguf")
    session = llamacpp.open_session(path, n_ctx=64, n_threads=1)
    for text in (t for t in TRICKY if "<|" not in t):
        assert session.tokenize(text) == reference.encode(text), repr(text)
    assert session.bos_token == 1
    session.close()


def test_byte_fallback_without_a_sentencepiece_model(tiny_folder, tmp_path):
    """Scores are remade from the merges, so that llama.cpp merges in the same order."""
    from transformers import AutoTokenizer

    model = sentencepiece_folder(tiny_folder, tmp_path / "with")
    out = tmp_path / "without"
    shutil.copytree(model, out)
    AutoTokenizer.from_pretrained(model).save_pretrained(out)
    (out / "tokenizer.model").unlink(missing_ok=True)
    assert json.loads((out / "tokenizer.json").read_text())["model"]["byte_fallback"]
    path = export(out, tmp_path / "m.gguf")
    assert read_header(path).metadata["tokenizer.ggml.model"] == "llama"
    # The fast tokenizer puts no "▁" before a text that begins with a space; SentencePiece and llama.cpp do.
    texts = [t for t in TRICKY if "<|" not in t and t.strip() and t[0] != " "]
    assert_tokens_equal(out, path, texts)
    data = json.loads((out / "tokenizer.json").read_text())
    assert data["pre_tokenizer"]["type"] == "Metaspace"
    data["pre_tokenizer"]["prepend_scheme"] = "never"
    (out / "tokenizer.json").write_text(json.dumps(data))
    assert_tokens_equal(out, export(out, tmp_path / "never.gguf"), texts)


@pytest.mark.slow
@needs_converter
def test_sentencepiece_equals_the_converter(tiny_folder, tmp_path):
    folder = sentencepiece_folder(tiny_folder, tmp_path / "m")
    edit_json(
        folder / "tokenizer_config.json",
        add_bos_token=True,
        added_tokens_decoder={
            "0": {"content": "<unk>", "special": True}, "1": {"content": "<s>", "special": True},
            "450": {"content": "<|tool|>", "special": False}, "451": {"content": "word", "special": False},
        },
    )  # fmt: skip
    convert([(folder, tmp_path / "theirs.gguf", "F16", None)])
    assert_same(export(folder, tmp_path / "ours.gguf", "F16"), tmp_path / "theirs.gguf")


@pytest.mark.parametrize("cut", [0, 1, 7, 100, 1001])
def test_a_damaged_sentencepiece_model(tiny_folder, tmp_path, cut):
    folder = sentencepiece_folder(tiny_folder, tmp_path / "m")
    path = folder / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputRejected, match="tokenizer.model") as e:
        read_pieces(path)
    assert "\n" not in str(e.value)


def gemma_folder(tiny_folder, out: Path) -> Path:
    """SentencePiece that puts no space first, with pieces for runs of newlines and unused ones, as Gemma has."""
    import sentencepiece

    shutil.copytree(tiny_folder("gemma3", vocab_size=512), out)
    (out / "text.txt").write_text("\n".join(TRAINING * 3))
    sentencepiece.SentencePieceTrainer.train(
        input=str(out / "text.txt"), model_prefix=str(out / "tokenizer"), vocab_size=460, model_type="bpe",
        byte_fallback=True, character_coverage=0.98, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, add_dummy_prefix=False, minloglevel=2,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, user_defined_symbols=["<mask>", "<unused0>", "\n\n", "<table>"],
        num_threads=1,
    )  # fmt: skip
    for name in ("text.txt", "tokenizer.vocab", "tokenizer.json"):
        (out / name).unlink()
    names = dict(bos_token="<bos>", eos_token="</s>", pad_token="<pad>")
    edit_json(out / "tokenizer_config.json", tokenizer_class="GemmaTokenizer", **names)
    return out


@pytest.mark.slow
def test_gemma_kind_of_sentencepiece(tiny_folder, tmp_path):
    import sentencepiece

    folder = gemma_folder(tiny_folder, tmp_path / "m")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    path = export(folder, tmp_path / "m.gguf")
    metadata = read_header(path).metadata
    assert metadata["tokenizer.ggml.model"] == "llama" and metadata["tokenizer.ggml.add_space_prefix"] is False
    session = llamacpp.open_session(path, n_ctx=64, n_threads=1)
    for text in [*(t for t in TRICKY if "<|" not in t), "a\n\nb\n\n\nc", "<table>x"]:
        assert session.tokenize(text) == reference.encode(text), repr(text)
    session.close()


def phi3_folder(tiny_folder, out: Path, name: str) -> Path:
    """A byte-fallback tokenizer.json whose chat tokens swallow the blanks after them, as Phi-3's do."""
    from transformers import AutoTokenizer

    model = sentencepiece_folder(tiny_folder, out / "spm")
    folder = out / name
    shutil.copytree(model, folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    (folder / "tokenizer.model").unlink(missing_ok=True)
    data = json.loads((folder / "tokenizer.json").read_text())
    free = max([*data["model"]["vocab"].values(), *(t["id"] for t in data["added_tokens"])]) + 1
    plain = dict(single_word=False, lstrip=False, normalized=False, special=True)
    there = {t["content"] for t in data["added_tokens"]}
    for text in [t for t in ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>") if t not in there]:
        data["added_tokens"].append(dict(plain, id=free, content=text, rstrip=text != "<|endoftext|>"))
        free += 1
    for token in data["added_tokens"]:
        token["rstrip"] = token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    data["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]}  # fmt: skip
    data["pre_tokenizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Phi-3-mini-instruct", "my-model"])
def test_special_tokens_that_swallow_blanks(tiny_folder, tmp_path, name):
    """llama.cpp does that for models with "phi-3" in their name only; a dialogue gives the same ids in both."""
    folder = phi3_folder(tiny_folder, tmp_path, name)
    path = export(folder, tmp_path / "m.gguf")
    assert "phi-3" in read_header(path).metadata["general.name"].lower()
    dialogue = "<|user|>\nThe quick brown fox?<|end|>\n<|assistant|>\n"
    from tokenizers import Tokenizer

    want = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(dialogue, add_special_tokens=False).ids
    session = llamacpp.open_session(path, n_ctx=64, n_threads=1)
    assert session.tokenize(dialogue) == want
    session.close()


def test_one_text_for_two_tokens(tiny_folder, tmp_path):
    folder = phi3_folder(tiny_folder, tmp_path, "twice")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"].append(dict(data["added_tokens"][-1], id=511))
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(InputRejected, match="and 511 are both"):
        export(folder, tmp_path / "m.gguf")


def test_a_name_that_would_mislead_llama_cpp(tiny_folder, tmp_path):
    """Without those tokens it would not even load a model called so."""
    folder = tmp_path / "phi3-like"
    shutil.copytree(tiny_folder("llama"), folder)
    path = export(folder, tmp_path / "m.gguf")
    llamacpp.open_session(path, n_ctx=64, n_threads=1).close()
