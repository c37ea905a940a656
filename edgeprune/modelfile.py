"""A Modelfile for Ollama: the GGUF file, its chat template in Go's template syntax, stops, context, licence.

Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.md; template variables: docs/template.md there.
A chat template is a program and Ollama runs another language, so it is not translated but measured: dialogues are
rendered, and what stands between their contents gives the Go template, if it is the same wherever it should be.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from edgeprune.chat import Message, render
from edgeprune.errors import InputRejected

_SYSTEM, _USER, _ASSISTANT = "system", "user", "assistant"
# Roles of the dialogues that are rendered; every one ends with the user, as a request does.
_PROBES = ("u", "uau", "uauau", "su", "suau", "suauau")
_ROLE = {"s": _SYSTEM, "u": _USER, "a": _ASSISTANT}


class Turns(NamedTuple):
    """What a chat template puts between contents, by who speaks before and after."""

    before_system: str | None  # None: the template takes no system message
    system_user: str | None
    before_user: str  # without a system message; holds the template's default one, if it has any
    user_assistant: str
    assistant_user: str
    end: str  # after the last user's content, up to where the assistant goes on

    def render(self, messages: Sequence[Message]) -> str:
        """The dialogue as the Go template gives it."""
        out, last = "", ""
        for m in messages:
            out += self._between(last, m["role"]) + m["content"]
            last = m["role"]
        return out + self.end

    def _between(self, last: str, role: str) -> str:
        if role == _SYSTEM:
            return self.before_system if self.before_system is not None else self.before_user
        if role == _ASSISTANT:
            return self.user_assistant
        if last == _SYSTEM:
            return self.system_user if self.system_user is not None else "\n\n"
        return self.assistant_user if last == _ASSISTANT else self.before_user


def measure(template: str, special_texts: dict[str, str], adds_bos: bool) -> Turns | None:
    """The turns of a chat template, or None where its text is more than turns.

    `adds_bos`: the runtime puts BOS first by itself, so the template must not.
    """
    # Without the clock, a template that writes the date falls back on its own default or is given up.
    template = template.replace("strftime_now", "strftime_not_given")
    found: dict[str, set[str]] = {}
    for n, probe in enumerate(_PROBES):
        messages = _dialogue(probe, n)
        try:
            text = _without_bos(render(template, messages, special_texts), special_texts, adds_bos)
        except InputRejected:
            if "s" in probe:
                continue
            return None
        pieces = _split(text, messages)
        if pieces is None:
            return None
        for pair, piece in zip(zip("^" + probe, probe + "$", strict=True), pieces, strict=True):
            found.setdefault("".join(pair), set()).add(piece)
    if any(len(pieces) > 1 or "{{" in min(pieces) or '"""' in min(pieces) for pieces in found.values()):
        return None
    one = {pair: pieces.pop() for pair, pieces in found.items()}
    return Turns(one.get("^s"), one.get("su"), one["^u"], one["ua"], one["au"], one["u$"])


def go_template(turns: Turns) -> str:
    """The same as a Go template over Ollama's .Messages."""
    system = turns.before_system if turns.before_system is not None else turns.before_user
    after_system = turns.system_user if turns.system_user is not None else "\n\n"
    return (
        '{{ $last := "" }}{{ range .Messages }}'
        f'{{{{ if eq .Role "system" }}}}{system}{{{{ else if eq .Role "assistant" }}}}{turns.user_assistant}'
        f'{{{{ else if eq $last "system" }}}}{after_system}{{{{ else if eq $last "assistant" }}}}{turns.assistant_user}'
        f"{{{{ else }}}}{turns.before_user}{{{{ end }}}}"
        f"{{{{ .Content }}}}{{{{ $last = .Role }}}}{{{{ end }}}}{turns.end}"
    )


def stops(turns: Turns | None, ends: Sequence[str]) -> list[str]:
    """`ends` (texts of the model's own end tokens), and the marker that closes an assistant's turn."""
    marker = re.match(r"\s*(<[^<>\s]+>|\[[^\[\]\s]+\])", turns.assistant_user) if turns else None
    return list(dict.fromkeys([*ends, *([marker[1]] if marker else [])]))


def modelfile(
    file: str, turns: Turns | None, stop: Sequence[str], n_ctx: int, licence: str | None, kv_type: str | None = None
) -> str:
    """The Modelfile's text. `file` stands beside it; `kv_type`: of the planned cache, where it is not Ollama's own f16."""
    lines = [f"# ollama create NAME -f Modelfile, in this folder\nFROM ./{file}"]
    if kv_type:  # a setting of the server: docs/faq.md there
        lines.append(
            f"# Planned with a KV cache of type {kv_type}: OLLAMA_FLASH_ATTENTION=1 OLLAMA_KV_CACHE_TYPE={kv_type} ollama serve"
        )
    if turns is None:
        lines.append(
            "# No TEMPLATE: the chat template is more than turns. Ollama looks for one it knows in the GGUF file itself."
        )
    else:
        if turns.before_system is None:
            lines.append("# The chat template takes no system message; here it opens the first user's turn.")
        lines.append(f'TEMPLATE """{go_template(turns)}"""')
    lines += [f'PARAMETER stop "{text}"' for text in stop if '"' not in text and "\n" not in text]
    lines.append(f"PARAMETER num_ctx {n_ctx}")
    if licence and '"""' not in licence:
        lines.append(f'LICENSE """{licence.strip()}"""')
    return "\n".join(lines) + "\n"


def _dialogue(roles: str, n: int) -> list[Message]:
    """Contents that no template can mistake for its own text; some of several lines."""
    return [
        {"role": _ROLE[r], "content": f"Qx{n}{i}{r}" + "\nand more" * (i % 2) + " end."} for i, r in enumerate(roles)
    ]


def _split(text: str, messages: Sequence[Message]) -> list[str] | None:
    """What stands before, between and after the contents; None unless each is there once, whole and in order."""
    pieces = []
    for m in messages:
        before, found, text = text.partition(m["content"])
        if not found:
            return None
        pieces.append(before)
    pieces.append(text)
    return None if any(m["content"] in p for m in messages for p in pieces) else pieces


def _without_bos(text: str, special_texts: dict[str, str], adds_bos: bool) -> str:
    bos = special_texts.get("bos_token")
    return text.removeprefix(bos) if adds_bos and bos else text
