"""Long work: done piece by piece, dealt over processes, remembered across kills. The answer is the same each way.

`accelerate launch` or `torchrun` start several processes of the same command; each does its share of every `each`, and
all get all results. With a log, results are kept as they come, and the same work started again replays them: a program
that asks the same questions in the same order needs to remember only the answers.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

Progress = Callable[[int, int], None]  # done, total
MAX_BYTES = 4 * 10**9


class Log:
    """Answers in the order they were given, in a file of JSON lines whose first line says what they answer."""

    def __init__(self, path: Path, identity: dict[str, Any]):
        """Takes up the file where it is of the same identity; else begins it anew."""
        self.path = path
        lines = _lines(path)
        self.answers: list[Any] = lines[1:] if lines[:1] == [identity] else []
        self._file = path.open("a" if self.answers else "w", encoding="utf-8")
        if self.answers:  # a line cut short by a kill is cut off
            self._file.truncate(sum(len(json.dumps(x)) + 1 for x in lines))
        else:
            self._write(identity)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path | None, identity: dict[str, Any]) -> Iterator[Log | None]:
        """Only the first process of several keeps one. Removed when the work is finished, kept when it fails."""
        if path is None or ranks()[0]:
            yield None
            return
        log = cls(path, identity)
        try:
            yield log
            log.path.unlink(missing_ok=True)
        finally:
            log._file.close()

    def add(self, answer: Any) -> None:
        self.answers.append(answer)
        self._write(answer)

    def _write(self, x: Any) -> None:
        self._file.write(json.dumps(x) + "\n")
        self._file.flush()


def _lines(path: Path) -> list[Any]:
    found = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            found.append(json.loads(line))
    except (OSError, ValueError):
        pass  # none, or one cut short: what came before it counts
    return found


class Work:
    """How the pieces of a long job are done. `progress` may be set at any time.

    max_bytes: what the streams (activations) of one piece may take.
    """

    def __init__(self, log: Log | None = None, max_bytes: int | None = None):
        self.progress: Progress = lambda *_: None
        self.max_bytes = max_bytes or MAX_BYTES
        self._log, self._asked = log, 0
        self.rank, self.world = ranks()

    def each(
        self, pieces: Sequence[T], do: Callable[[T], Any], tick: Callable[[int], None] = lambda _: None
    ) -> list[Any]:
        """[do(piece), …], in order. Results are what JSON can hold, floats included to the last bit.

        `tick` is told how many pieces are done, those of other processes counted at the end.
        """
        known = self._known(len(pieces))
        done = dict(enumerate(known))
        mine = range(len(known), len(pieces))[self.rank :: self.world]
        for i in mine:
            done[i] = do(pieces[i])
            if self.world == 1 and self._log:
                self._log.add(done[i])
            tick(i + 1)
        if self.world > 1 and len(known) < len(pieces):
            done = _gathered(done)
            if self._log:
                for i in range(len(known), len(pieces)):
                    self._log.add(done[i])
        tick(len(pieces))
        return [done[i] for i in range(len(pieces))]

    def _known(self, n: int) -> list[Any]:
        """The remembered answers to the next `n` questions, as far as there are any."""
        first, self._asked = self._asked, self._asked + n
        known = self._log.answers[first : first + n] if self._log else []
        return _told(known) if self.world > 1 else known


def ranks() -> tuple[int, int]:
    """(this process, how many) of a run started by accelerate launch or torchrun; (0, 1) of any other."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join() -> None:
    """Meet the other processes of this run, if there are any. Call once, before work."""
    if ranks()[1] > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def _gathered(done: dict[int, Any]) -> dict[int, Any]:
    import torch.distributed as dist

    all_of_them: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(all_of_them, done)
    return {i: answer for each in all_of_them for i, answer in each.items()}


def _told(known: list[Any]) -> list[Any]:
    """What the first process remembers; it alone keeps a log."""
    import torch.distributed as dist

    box = [known]
    dist.broadcast_object_list(box, src=0)
    return box[0]
