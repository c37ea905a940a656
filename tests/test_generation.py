"""What a model writes, against transformers; repetition against counting by hand; questions against arithmetic."""

from __future__ import annotations

import random

import pytest

from edgeprune.behaviour import generation
from edgeprune.chat import Chat
from edgeprune.errors import InputRejected
from edgeprune.evaluation import ExactMatch

pytestmark = pytest.mark.usefixtures("one_thread")


def test_repetition_and_distinct_count_n_grams():
    assert generation.repetition("abcdefg", 4) == 0  # four 4-grams, all different
    assert generation.repetition("aaaaaaa", 4) == 1 - 1 / 4
    assert generation.repetition("abcabcabc", 4) == 1 - 3 / 6  # abca bcab cabc, twice
    assert generation.repetition("abc", 4) is None
    assert generation.distinct(["aab", "aab"], 2) == 2 / 4
    assert generation.distinct(["a", ""], 2) is None


@pytest.mark.parametrize("task", generation.TASKS)
def test_questions_have_one_right_answer_and_stay_the_same(task):
    found = generation.questions(task, 30, seed=0)
    assert found == generation.questions(task, 40, seed=0)[:30] != generation.questions(task, 30, seed=1)
    assert len({prompt for prompt, _ in found}) > 25
    for prompt, answer in found:
        *shots, last = prompt.split("\n\n")
        pairs = [s.removeprefix("Input: ").split("\nOutput: ") for s in shots]
        assert len(pairs) == generation.SHOTS and last.endswith("\nOutput:")
        pairs.append([last.removeprefix("Input: ").removesuffix("\nOutput:"), answer])
        for asked, said in pairs:
            if task == "copy":
                assert said == asked and len(said.split()) == 5
            elif task == "sort":
                assert [int(x) for x in said.split()] == sorted(map(int, asked.split()))
            else:
                assert int(said) == sum(map(int, asked.split(" + ")))


def test_exact_match_knows_its_error():
    m = ExactMatch(task="add", n_correct=3, n_questions=12)
    assert (m.rate, m.stderr) == (0.25, pytest.approx((0.25 * 0.75 / 11) ** 0.5))
    assert ExactMatch(task="add", n_correct=1, n_questions=1).stderr is None


def test_text_is_transformers_and_right_answers_are_counted(tiny_folder, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_folder("llama")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tok = AutoTokenizer.from_pretrained(folder)

    def greedy(text: str, n: int) -> list[int]:
        ids = tok.encode(text, return_tensors="pt")
        return model.generate(ids, max_new_tokens=n, do_sample=False, pad_token_id=2)[0, ids.shape[1] :].tolist()

    def own(rng: random.Random) -> tuple[str, str]:
        """What the model itself says is the right answer, but not to a multiple of three."""
        number = rng.randrange(10**6)
        said = tok.decode(greedy(f"Input: {number}\nOutput:", 32), skip_special_tokens=True).split("\n")[0]
        return str(number), said.rstrip("�").strip() + ("" if number % 3 else "!")

    monkeypatch.setattr(generation, "SHOTS", 0)
    monkeypatch.setattr(generation, "TASKS", {"own": own})
    n_right = sum(not answer.endswith("!") for _, answer in generation.questions("own", 4, seed=0))
    told = []
    with Chat(folder, n_ctx=128) as chat:
        made = generation.generate(
            chat, max_tokens=12, n_questions=4, prompts=("the fox", "over"), tick=lambda *n: told.append(n)
        )
    assert 0 < n_right < 4 and made.exact_match == (ExactMatch(task="own", n_correct=n_right, n_questions=4),)
    assert told[-1] == (6, 6)
    for part, prompt in zip(made.continuations, ("the fox", "over"), strict=True):
        want = greedy(prompt, 12)
        assert (part.prompt, part.ended) == (prompt, want[-1] == 2)
        assert part.text.rstrip("�") == tok.decode(want, skip_special_tokens=True).rstrip("�")
    assert made.repetition == pytest.approx(sum(c.repetition for c in made.continuations) / 2)


def test_a_template_that_is_not_there(tiny_folder):
    with Chat(tiny_folder("llama"), n_ctx=32) as chat:
        chat.session.chat_template = None
        with pytest.raises(InputRejected, match="no chat template"):
            generation.generate(chat, chat_template=True)
