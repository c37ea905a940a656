"""Modelfiles: the Go template, run by a small interpreter of Go's syntax, against the chat template run by Jinja."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeprune import modelfile
from edgeprune.chat import render

TEMPLATES = Path(__file__).parent.parent / ".venv/llama.cpp/models/templates"
TEXTS = {"bos_token": "<s>", "eos_token": "</s>"}
# The formats of models that ship no template file with llama.cpp, as their cards describe them.
WRITTEN = {
    "Llama-2": "{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (s if loop.first else '') + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "Zephyr": "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    "Vicuna": "{{ bos_token }}{% if messages[0].role != 'system' %}{{ 'A chat. ' }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content + ' ' }}{% elif m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}{{ 'ASSISTANT:' }}",
}
SHIPPED = (
    "HuggingFaceTB-SmolLM3-3B", "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "google-gemma-2-2b-it",
    "ibm-granite-granite-4.0", "meta-llama-Llama-3.2-3B-Instruct", "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Ministral-3-14B-Reasoning-2512",
)  # fmt: skip


def template(name: str) -> str:
    if name in WRITTEN:
        return WRITTEN[name]
    path = TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        pytest.skip("llama.cpp's sources are fetched by `make test`")
    return path.read_text(encoding="utf-8")


def dialogue(roles: str) -> list[dict[str, str]]:
    role = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": role[r], "content": f"Say {i}: is it {r}?\n\n- yes {{}}\n- no"} for i, r in enumerate(roles)]


def run_go(text: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of `text`, for the actions used here; raises KeyError for any other."""
    parts = re.split(r"\{\{ ?(.*?) ?\}\}", text)

    def block(i: int, dot, last: list[str], out: list[str] | None) -> tuple[int, str]:
        """Run from part i up to the closing action; `out` None only skips. Returns where it closed, and with what."""
        while i < len(parts):
            if i % 2 == 0:
                (out if out is not None else []).append(parts[i])
            elif (action := parts[i]) == "range .Messages":
                for m in messages:
                    end, _ = block(i + 1, m, last, out)
                i = end
            elif action.startswith("if "):
                done = False
                while action != "end":
                    taken = not done and (action == "else" or test(action.removeprefix("else "), dot, last))
                    i, action = block(i + 1, dot, last, out if taken else None)
                    done = done or taken
            elif action == "end" or action.startswith("else"):
                return i, action
            elif out is not None:
                if action == ".Content":
                    out.append(dot["content"])
                else:
                    last[0] = {'$last := ""': "", "$last = .Role": dot and dot["role"]}[action]
            i += 1
        return i, ""

    def test(action: str, dot, last: list[str]) -> bool:
        name, want = re.fullmatch(r'if eq (\S+) "(\w+)"', action).groups()
        return {".Role": dot["role"], "$last": last[0]}[name] == want

    out: list[str] = []
    block(0, None, [""], out)
    return "".join(out)


@pytest.mark.parametrize("name", [*WRITTEN, *SHIPPED])
def test_go_and_jinja_give_the_same_text(name):
    source = template(name)
    turns = modelfile.measure(source, TEXTS, adds_bos=True)
    assert turns is not None
    go = modelfile.go_template(turns)
    for roles in ("u", "uau", "su", "suau", "uauauauau", "suauauauau"):
        if "s" in roles and turns.before_system is None:
            continue
        messages = dialogue(roles)
        want = render(source.replace("strftime_now", "nothing"), messages, TEXTS).removeprefix("<s>")
        assert run_go(go, messages) == want == turns.render(messages)


def test_a_template_without_system_messages_opens_the_first_turn_with_them():
    turns = modelfile.measure(template("google-gemma-2-2b-it"), TEXTS, adds_bos=True)
    assert turns.before_system is None
    text = run_go(modelfile.go_template(turns), dialogue("su"))
    s, u = (m["content"] for m in dialogue("su"))
    assert (
        text == f"<start_of_turn>user\n{s}\n\n{u}<end_of_turn>\n<start_of_turn>model\n" == turns.render(dialogue("su"))
    )


@pytest.mark.parametrize("name", ["mistralai-Mistral-Nemo-Instruct-2407", "ibm-granite-granite-3.3-2B-Instruct"])
def test_what_is_more_than_turns_gets_no_template(name):
    """The first puts the system message before the last user's; the second writes today's date."""
    assert modelfile.measure(template(name), TEXTS, adds_bos=True) is None
    text = modelfile.modelfile("m.gguf", None, ["</s>"], 512, None)
    assert text.startswith("# ") and 'TEMPLATE "' not in text and 'PARAMETER stop "</s>"' in text


def test_bos_is_left_to_the_runtime_that_puts_it():
    source = "{{ bos_token }}" + WRITTEN["Zephyr"]
    with_bos, without = (modelfile.measure(source, TEXTS, adds_bos=a) for a in (False, True))
    assert with_bos.before_user == "<s>" + without.before_user == "<s><|user|>\n"


def test_a_modelfile_in_full():
    turns = modelfile.measure(WRITTEN["Zephyr"], TEXTS, adds_bos=True)
    text = modelfile.modelfile("x-Q8_0.gguf", turns, modelfile.stops(turns, ["</s>", "<|eot|>"]), 512, "mit\n")
    assert text.splitlines()[1] == "FROM ./x-Q8_0.gguf"
    assert re.findall(r'^PARAMETER stop "(.*)"$', text, re.M) == ["</s>", "<|eot|>"]
    assert "\nPARAMETER num_ctx 512\n" in text and text.endswith('LICENSE """mit"""\n')
    assert re.search(r'^TEMPLATE """(.*?)"""$', text, re.M | re.S)[1] == modelfile.go_template(turns)


def test_a_planned_cache_is_named_and_ollama_s_own_is_not():
    plain, planned = (modelfile.modelfile("m.gguf", None, [], 512, None, kv) for kv in (None, "q8_0"))
    assert "KV_CACHE" not in plain and "OLLAMA_KV_CACHE_TYPE=q8_0" in planned
    asked = [line for line in planned.splitlines() if not line.startswith("#")]
    assert asked == [line for line in plain.splitlines() if not line.startswith("#")]  # a remark, no parameter
