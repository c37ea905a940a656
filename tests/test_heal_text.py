"""What training reads: text in kinds, conversations through the chat template, sequences of a step."""

from __future__ import annotations

import json

import pytest
from test_heal import texts  # noqa: F401

from edgeprune import model, torch_model
from edgeprune.errors import InputRejected, UsageError
from edgeprune.heal_text import Example, conversation, keep_from_judging, read_examples, shared
from edgeprune.healers._trainee import Recipe
from edgeprune.training import batches
from edgeprune.training.pace import LEAST_STEPS, length, rate_at

TALK = [
    {"role": "system", "content": "You are a fox."},
    {"role": "user", "content": "the dog?"},
    {"role": "assistant", "content": "lazy"},
    {"role": "user", "content": "and the other one?"},
    {"role": "assistant", "content": "quick, over the dog"},
    {"role": "user", "content": "thanks"},
]


@pytest.fixture
def tok(tiny_folder):
    return torch_model.tokenizer(tiny_folder("llama"))


def write_jsonl(path, lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_only_what_the_assistant_says_is_learnt(tok):
    found = conversation(tok, TALK)
    said = tok.decode([t for t, learn in zip(found.tokens, found.learn, strict=True) if learn])
    assert said == "lazy<|im_end|>\nquick, over the dog<|im_end|>\n"
    assert tok.decode(found.tokens) == tok.apply_chat_template(TALK[:5], tokenize=False)
    assert not found.learn[0]


def read(tiny_folder, files, n_tokens=10_000, context=64, **changes):
    base = changes.get("base") or tiny_folder("llama")
    return read_examples(torch_model.tokenizer(base), model.inspect(base), files, [], n_tokens, context)


def test_conversations_and_text_are_kinds(tiny_folder, texts, tmp_path):  # noqa: F811
    talks = write_jsonl(tmp_path / "talks.jsonl", [{"messages": TALK}] * 9 + ["", {"messages": TALK[:2]}])
    about, kinds = read(tiny_folder, [texts[0], talks])
    assert [kind.name for kind in kinds] == ["a.txt", "talks.jsonl"]
    assert len(kinds[1].fit) + len(kinds[1].aside) == 9  # one has nothing that the assistant says
    assert all(len(e.tokens) == len(e.learn) <= 64 for kind in kinds for e in [*kind.fit, *kind.aside])
    assert about.tokens == sum(len(e.tokens) for kind in kinds for e in [*kind.fit, *kind.aside])
    few = read(tiny_folder, [texts[0], talks], n_tokens=400)[1]
    assert 300 <= sum(len(e.tokens) for kind in few for e in kind.fit) < 700


@pytest.mark.parametrize(
    "line", ["{", '{"text": "a"}', '{"messages": [{"role": "user"}, {"role": "assistant"}]}', "[1]"]
)
def test_lines_that_are_no_conversation_are_refused_by_number(tiny_folder, tmp_path, line):
    with pytest.raises(InputRejected, match=r"talks\.jsonl, line 2 is not"):
        read(tiny_folder, [write_jsonl(tmp_path / "talks.jsonl", [{"messages": TALK}, line, {"messages": TALK}])])


def test_too_few_conversations_are_refused(tiny_folder, tmp_path):
    with pytest.raises(UsageError, match="two of each kind"):
        read(tiny_folder, [write_jsonl(tmp_path / "talks.jsonl", [{"messages": TALK}])])


def test_every_epoch_has_every_sequence_once_in_its_own_order():
    examples = [Example([i], [False]) for i in range(7)]
    drawn = [e.tokens[0] for step in range(7) for e in batches.batch_of(examples, step, 3, seed=0)]
    epochs = [drawn[:7], drawn[7:14], drawn[14:]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]


def test_sequences_are_filled_up_to_the_longest_of_their_kind():
    examples = [Example([1] * n, [False] + [True] * (n - 1)) for n in (3, 9, 8, 2)]
    parts = batches.micro(examples, 18)
    assert [[len(e.tokens) for e in part] for part in parts] == [[9, 8], [3, 2]]
    batch = batches.as_batch(parts[1], "cpu")
    assert batch.real.tolist() == [[True] * 3, [True, True, False]]
    assert batch.learn.tolist() == [[False, True, True], [False, True, False]]


def test_the_rate_rises_then_falls_along_a_cosine():
    recipe = Recipe(rate=1.0, last_rate=0.2, warmup=0.1, batch_tokens=1)
    rates = [rate_at(recipe, step, 101) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1) == pytest.approx(max(rates))
    assert rates[55] == pytest.approx(0.6) and rates[100] == pytest.approx(0.2)


def test_a_small_budget_has_smaller_steps_and_few_looks():
    recipe = Recipe(rate=1.0, last_rate=0.2, warmup=0.1, batch_tokens=16384)
    small, large = length(recipe, 20_000, 1e9, 512, 2048), length(recipe, 10**8, 1e9, 512, 2048)
    assert (small.per_step, small.steps, small.look_every) == (1, 39, 20)
    assert large.per_step == 32 and large.steps == round(10**8 / 16384) > LEAST_STEPS and large.look_every == 306


def test_text_that_holds_much_of_what_judges_is_refused(tmp_path):
    """Of 48 runs of 13 words, 28 lie in the 40 words that both have."""
    text = " ".join(f"w{i}" for i in range(100))
    judged = " ".join([*(f"v{i}" for i in range(20)), *(f"w{i}" for i in range(50, 90))])
    (tmp_path / "judge.txt").write_text(judged)
    assert shared(text, judged) == 28 / 48 and shared("a b", judged) == shared(text, "a b") == 0
    with pytest.raises(UsageError, match="a.txt holds 58% of judge.txt"):
        keep_from_judging([("a.txt", text)], [tmp_path / "judge.txt"])
    quotes = " ".join(f"w{i}" for i in range(74, 100))  # 16 words
    keep_from_judging([("a.txt", quotes)], [tmp_path / "judge.txt"])
