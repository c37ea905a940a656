"""Chat against transformers: the same prompts, the same greedy text, the same sampling distribution."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from _exported import in_every_runtime

from edgeprune.chat import Chat, Sampling, choose, render
from edgeprune.errors import InputRejected, UsageError
from exporters import gguf, onnx

pytestmark = pytest.mark.usefixtures("one_thread")
DIALOGUES = (
    [{"role": "user", "content": "the quick brown fox"}],
    [{"role": "system", "content": "be brief\n"}, {"role": "user", "content": " é 日本 😀 <|im_end|>"}],
    [
        {"role": "user", "content": "jumps over?"},
        {"role": "assistant", "content": "the lazy dog"},
        {"role": "user", "content": "and then\n\nthe other one"},
    ],
)


def quiet(stage, fraction):
    pass


@pytest.fixture(scope="module")
def artifacts(tiny_folder, tmp_path_factory):
    """The same tiny model for torch, llama.cpp and onnxruntime."""
    return in_every_runtime(tiny_folder("llama"), tmp_path_factory.mktemp("chat"))


def template_ids(folder, messages):
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(folder)
    return tok.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)


def answer(chat, prompt, n=40, sampling=None):
    parts = []
    reply = chat.generate(prompt, max_tokens=n, sampling=sampling or Sampling(), emit=parts.append)
    assert "".join(parts) == reply.text
    return reply


@pytest.mark.slow
def test_a_dialogue_is_the_same_tokens_as_in_transformers(artifacts):
    for runtime, path in artifacts.items():
        with Chat(path, n_ctx=64, precise=True) as chat:
            assert chat.runtime == runtime
            for messages in DIALOGUES:
                assert chat.prompt(messages) == template_ids(artifacts["transformers"], messages)


def test_greedy_text_is_the_same_as_in_transformers(artifacts):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = artifacts["transformers"]
    ids = template_ids(folder, DIALOGUES[2])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    want = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False, eos_token_id=2, pad_token_id=2)
    new = want[0, len(ids) :].tolist()
    text = AutoTokenizer.from_pretrained(folder).decode(new, skip_special_tokens=True)
    for path in artifacts.values():
        with Chat(path, n_ctx=256, precise=True) as chat:
            reply = answer(chat, ids)
            assert (reply.text.rstrip("�"), reply.generated_tokens) == (text.rstrip("�"), len(new))
            assert reply.stop == ("end" if new[-1] == 2 else "length") and reply.prompt_tokens == len(ids)


def test_streams_whole_characters(artifacts):
    text = "é 日本 😀 the fox 👩‍👧 ñ"
    for path in artifacts.values():
        with Chat(path, n_ctx=8) as chat:
            tokens, text_of = chat.session.tokenize(text), chat.session.text_stream([5])
            parts = [text_of(t) for t in [1, *tokens, 2]]
            assert len(tokens) > len(text) and "".join(parts) == text
            assert all("�" not in part for part in parts)


def test_bos_comes_once(tiny_folder, tmp_path):
    """Where the tokenizer puts BOS and the template writes it too, and where only the tokenizer does."""
    from tokenizers import Tokenizer, processors

    folder = tmp_path / "m"
    shutil.copytree(tiny_folder("llama"), folder)
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tok.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tok.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    gguf.export(folder, tmp_path / "m.gguf", "F32", {}, quiet)
    for path in (folder, tmp_path / "m.gguf"):
        with Chat(path, n_ctx=64) as chat:
            fox = chat.session.tokenize("the fox")
            assert chat.prompt([{"role": "user", "content": "the fox"}]) == [1, *fox]
            assert chat.completion("the fox") == [1, *fox]


def test_a_second_turn_reads_only_what_is_new(artifacts):
    with Chat(artifacts["onnxruntime"], n_ctx=128) as chat:
        first = answer(chat, chat.prompt(DIALOGUES[0]), n=6)
        turns = [*DIALOGUES[0], {"role": "assistant", "content": first.text}, {"role": "user", "content": "more"}]
        # A longer prompt that begins with all that is cached; a template may break up the answer's tokens.
        prompt = [*chat._cached, *chat.prompt(turns)[-8:]]
        again = answer(chat, prompt, n=12)
        assert again.prefill_tokens == 8 < again.prompt_tokens
    with Chat(artifacts["onnxruntime"], n_ctx=128) as fresh:
        assert answer(fresh, prompt, n=12).text == again.text


def test_stops(artifacts):
    with Chat(artifacts["onnxruntime"], n_ctx=24) as chat:
        prompt = chat.session.tokenize("the quick brown fox jumps")[:6]
        free = answer(chat, prompt, n=10**6)
        assert free.stop in ("end", "context")
        if free.stop == "context":
            assert free.prompt_tokens + free.generated_tokens == 24 + 1  # the last token needs no room
        assert answer(chat, prompt, n=3).stop == "length" and answer(chat, prompt, n=3).generated_tokens == 3
        with pytest.raises(UsageError, match="context holds 24"):
            answer(chat, [5] * 25)
        with pytest.raises(UsageError, match="0 tokens"):
            answer(chat, [])


@pytest.mark.parametrize("sampling", [
    Sampling(0.7, 0, 1.0, 0), Sampling(1.3, 12, 1.0, 0), Sampling(1.0, 0, 0.6, 0), Sampling(0.9, 20, 0.8, 0),
])  # fmt: skip
def test_sampling_is_transformers_distribution(sampling):
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(5).normal(0, 2, 40).astype(np.float32)
    scores = TemperatureLogitsWarper(sampling.temperature)(None, torch.tensor(logits)[None])
    scores = TopKLogitsWarper(sampling.top_k)(None, scores) if sampling.top_k else scores
    scores = TopPLogitsWarper(sampling.top_p)(None, scores) if sampling.top_p < 1 else scores
    want = scores.softmax(-1)[0].numpy()
    rng, n = np.random.default_rng(1), 6000
    counts = Counter(choose(logits, sampling, rng) for _ in range(n))
    found = np.array([counts[i] / n for i in range(40)])
    assert set(counts) <= set(np.flatnonzero(want))
    assert np.abs(found - want).sum() / 2 < 0.04  # total variation


def test_greedy_and_seeds(artifacts):
    logits = np.array([0.1, 3.0, 2.9], np.float32)
    assert {choose(logits, Sampling(), np.random.default_rng(i)) for i in range(20)} == {1}
    with Chat(artifacts["onnxruntime"], n_ctx=64) as chat:
        texts = [answer(chat, [1, 5, 7], 12, Sampling(1.5, seed=s)).text for s in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


def test_a_template_is_sandboxed_and_may_refuse():
    with pytest.raises(InputRejected, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", DIALOGUES[0], {})
    with pytest.raises(InputRejected):
        render("{{ ''.__class__.__mro__[1].__subclasses__() }}", DIALOGUES[0], {})
    with pytest.raises(InputRejected):
        render("{% for %}", DIALOGUES[0], {})


def call(*args, text):
    from typer.testing import CliRunner

    import edgeprune.cli.chat  # noqa: F401  registers the verb
    from edgeprune.cli._app import app

    return CliRunner().invoke(app, ["chat", *map(str, args)], input=text)


def test_the_verb(artifacts, tmp_path):
    done = call(artifacts["onnxruntime"], "-", "-n", "5", "--json", text="the fox")
    reply = json.loads(done.stdout)
    assert done.exit_code == 0 and reply["runtime"] == "onnxruntime" and reply["generated_tokens"] <= 5
    done = call(artifacts["onnxruntime"], "-n", "5", text="the fox")
    assert done.stdout == reply["text"] + "\n" and "written" in done.stderr
    bare = shutil.copytree(artifacts["onnxruntime"], tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    done = call(bare, text="the fox")
    assert done.exit_code == 0 and "no chat template" in done.stderr
    done = call(bare, "x", "--system", "y", text="")
    assert done.exit_code == 2 and "--system" in done.stderr and done.stdout == ""
    done = call(bare, text="")
    assert done.exit_code == 2 and "no prompt" in done.stderr


@pytest.mark.slow
def test_a_dialogue_on_a_terminal(artifacts):
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "edgeprune.cli", "chat", str(artifacts["llamacpp"]), "-n", "8"]
    child = subprocess.Popen(command, stdin=follower, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.write(leader, b"the fox\n\nand the dog\n/exit\n")
    _, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    read = [int(n) for n in re.findall(r"(\d+) tokens read, \d+ written", err)]
    assert len(read) == 2 and read[1] > 2 * read[0]  # the second turn is after the first and its answer


@pytest.mark.slow
def test_interrupted(smollm2_gguf):
    command = [sys.executable, "-m", "edgeprune.cli", "chat", str(smollm2_gguf), "Count to a thousand", "-n", "2000"]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert child.stdout and child.stdout.read(1)  # it has begun to speak
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130 and b"Traceback" not in err


@pytest.mark.slow
def test_real_dialogues_are_the_same_tokens_in_transformers_llamacpp_and_genai(smollm2_folder, smollm2_gguf, tmp_path):
    import onnxruntime_genai as genai

    onnx.export(smollm2_folder, tmp_path / "onnx", "int8", {}, quiet)
    tok = genai.Tokenizer(genai.Model(str(tmp_path / "onnx")))
    for messages in DIALOGUES:
        want = template_ids(smollm2_folder, messages)
        assert tok.encode(tok.apply_chat_template(json.dumps(messages))).tolist() == want
        for path in (smollm2_gguf, tmp_path / "onnx", smollm2_folder):
            with Chat(path, n_ctx=64) as chat:
                assert chat.prompt(messages) == want
    with Chat(smollm2_gguf, n_ctx=128) as chat:
        prompt = chat.prompt([{"role": "user", "content": "Name the capital city of France."}])
        assert "Paris" in answer(chat, prompt, n=16).text
