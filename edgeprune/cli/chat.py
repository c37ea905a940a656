"""edgeprune chat"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeprune.cli._app import verb
from edgeprune.cli._options import CacheType, Json
from edgeprune.cli._terminal import emit, note
from edgeprune.errors import UsageError

if TYPE_CHECKING:
    from edgeprune.chat import Chat, Reply, Sampling


@verb('edgeprune chat model-Q4_K_M.gguf "Why is the sky blue?"')
def chat(
    artifact: Annotated[str, typer.Argument(metavar="ARTIFACT", help="A .gguf, an ONNX folder, or any MODEL.")],
    prompt: Annotated[str | None, typer.Argument(help="'-' reads stdin; left out on a terminal: a dialogue.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int, typer.Option("-n", "--max-tokens", min=1, help="Longest answer, tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus to sample from.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Likeliest tokens to sample from; 0 = all.")] = 0,
    seed: Annotated[int | None, typer.Option(min=0, help="For the same sample again.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: physical cores.")] = None,
    context: Annotated[int, typer.Option(min=1, help="Context, tokens.")] = 2048,
    kv_type: CacheType = None,
    raw: Annotated[bool, typer.Option("--raw", help="Go on with the text itself, without the chat template.")] = False,
    json: Json = False,
) -> None:
    """Generate in the artifact's own runtime, with its chat template; the answer streams to stdout."""
    from edgeprune import chat as chatting
    from edgeprune import model as models

    text = _prompt(prompt)
    if text is None and json:
        raise UsageError("--json answers one prompt; name it, or pipe it in")
    path = models.resolve(artifact)
    sampling = chatting.Sampling(temperature, top_k, top_p, seed)
    with chatting.Chat(path, n_ctx=context, n_threads=threads, kv_type=kv_type) as session:
        if not raw and not session.has_template:
            note(f"{Path(artifact).name} has no chat template: going on with the text itself")
            raw = True
        if raw and system is not None:
            raise UsageError("--system needs a chat template; put its words into the prompt")
        messages = [] if system is None else [{"role": "system", "content": system}]
        if text is None:
            _dialogue(session, messages, raw, max_tokens, sampling)
            return
        tokens = session.completion(text) if raw else session.prompt([*messages, {"role": "user", "content": text}])
        reply = session.generate(
            tokens, max_tokens=max_tokens, sampling=sampling, emit=(lambda part: None) if json else _stream
        )
        if json:
            emit(chatting.as_json(artifact, session.runtime, reply))
        else:
            _end(reply)


def _prompt(prompt: str | None) -> str | None:
    """The prompt named or piped in; None for a dialogue."""
    if prompt is None and sys.stdin.isatty():
        return None
    text = sys.stdin.read() if prompt in (None, "-") else prompt
    if not text:
        raise UsageError("there is no prompt; name one, pipe one in, or run on a terminal for a dialogue")
    return text


def _dialogue(session: Chat, messages: list[dict[str, str]], raw: bool, max_tokens: int, sampling: Sampling) -> None:
    """Turns until /exit or the end of input. Ctrl-C ends an answer; at the prompt, the dialogue."""
    note("a dialogue: /exit or Ctrl-D ends it, Ctrl-C ends an answer")
    while True:
        sys.stderr.write("> ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line or line.strip() == "/exit":
            return
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line.rstrip("\n")})
        tokens = session.completion(line.rstrip("\n")) if raw else session.prompt(messages)
        parts: list[str] = []

        def hear(part: str, parts: list[str] = parts) -> None:
            parts.append(part)
            _stream(part)

        try:
            _end(session.generate(tokens, max_tokens=max_tokens, sampling=sampling, emit=hear))
        except KeyboardInterrupt:
            sys.stdout.write("\n")
        messages.append({"role": "assistant", "content": "".join(parts)})


def _stream(part: str) -> None:
    """Text of a model; on a terminal, without the control characters that would steer it."""
    if sys.stdout.isatty():
        part = "".join(c for c in part if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))
    sys.stdout.write(part)
    sys.stdout.flush()


def _end(reply: Reply) -> None:
    sys.stdout.write("\n")
    sys.stdout.flush()
    why = {"end": "", "length": "; stopped at --max-tokens", "context": "; stopped, the context is full"}[reply.stop]
    speed = f", {reply.decode_tok_per_s:.1f} tokens/s" if reply.decode_tok_per_s else ""
    note(f"{reply.prompt_tokens} tokens read, {reply.generated_tokens} written{speed}{why}")
