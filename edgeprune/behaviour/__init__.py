"""What a model does beyond next tokens, asked in its own runtime: lm-eval's tasks, and text it writes.

tasks          names -> definitions; a subject -> scores, with lm-eval's own table and record
harness_model  an opened artifact as lm-eval's language model
generation     greedy continuations, how much they repeat, and small tasks with one right answer

The records are edgeprune.evaluation's.
"""

from __future__ import annotations

from pathlib import Path

from edgeprune.behaviour.generation import generate
from edgeprune.behaviour.tasks import Progress, Suite, score
from edgeprune.chat import Chat
from edgeprune.evaluation import Behaviour


def behaviour(ready: Suite, name: str, path: Path, sha256: str, progress: Progress) -> Behaviour:
    """All that the suite asks of one subject. Raises what `tasks.score` and `generation.generate` raise."""
    asked = ready.asked
    found = score(ready, name, path, sha256, progress) if ready.names else None
    if not asked.generate:
        return Behaviour(tasks=found)
    with Chat(path, n_ctx=1024, n_threads=asked.n_threads, precise=asked.precise, kv_type=asked.kv_type) as chat:
        told = lambda done, total: progress(f"{name}: generating", done, total)  # noqa: E731
        return Behaviour(tasks=found, generation=generate(chat, chat_template=asked.chat_template, tick=told))
