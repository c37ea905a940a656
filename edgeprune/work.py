"""Long work: done piece by piece, dealt over processes, remembered across kills. The answer is the same each way.

`accelerate launch` or `torchrun` start several processes of the same command; each does its share of every `each`, and
all get all results. With a log, results are kept as they come, and the same work started again replays them: a program
that asks the same questions in the same order needs to remember only the answers.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from edgeprune.errors import UsageError
from edgeprune.files import disk_errors

T = TypeVar("T")

Progress = Callable[[int, int], None]  # done, total


class Log:
    """Answers in the order they were given, one line of JSON each, in a file whose first line is a hash of what they answer."""

    def __init__(self, path: Path, question: dict[str, Any]):
        """Takes up the answers of a file that is of the same question; else begins it anew.

        Raises UsageError while another process writes to it.
        """
        key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        claim(self._file, path)
        self._file.seek(0)
        lines, n_bytes = whole_lines(self._file)
        if lines[:1] != [key]:
            lines, n_bytes = [], 0
        self._file.truncate(n_bytes)
        self.answers = lines[1:]
        if not lines:
            self._write(key)

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, path: Path | None, question: dict[str, Any], say: Callable[[str], None] = lambda _: None
    ) -> Iterator[Log | None]:
        """None without a path; of several processes only the first keeps one. To be removed once the result is safe.

        `say` is told when there are answers to go on from.
        """
        if path is None or ranks()[0]:
            yield None
            return
        log = cls(path, question)
        try:
            if log.answers:
                say(f"going on where it stopped: {path} holds {len(log.answers)} pieces that are done")
            yield log
        finally:
            log._file.close()

    def add(self, answer: Any) -> None:
        self.answers.append(answer)
        self._write(answer)

    def _write(self, x: Any) -> None:
        self._file.write(json.dumps(x).encode() + b"\n")
        self._file.flush()


def whole_lines(file: IO[bytes]) -> tuple[list[Any], int]:
    """The JSON lines from here on, and how many bytes they take; up to one that a kill or a crash cut short."""
    found, n_bytes = [], 0
    for line in file:
        if not line.endswith(b"\n"):
            break
        try:
            found.append(json.loads(line))
        except ValueError:
            break
        n_bytes += len(line)
    return found, n_bytes


def claim(file: IO[bytes], path: Path) -> None:
    """Until it is closed, where the system can tell (POSIX)."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{path} is being written to: the same work is going on already; wait for it") from None
    except OSError:
        pass  # a file system without locks


class Work:
    """How the pieces of a long job are done. `progress` may be set at any time."""

    def __init__(self, log: Log | None = None, max_bytes: int | None = None):
        self.progress: Progress = lambda *_: None
        self.rank, self.world = ranks()
        self._log, self._asked = log, 0
        self._limit = max_bytes

    @functools.cached_property
    def max_bytes(self) -> int:
        """What weights and activations of a process may take together: as it was said, else what was free at the start."""
        from edgeprune.torch_model import free_bytes

        free = self.once(free_bytes)
        return self._limit or free

    def each(
        self, pieces: Sequence[T], do: Callable[[T], Any], tick: Callable[[int], None] = lambda _: None
    ) -> list[Any]:
        """[do(piece), …], in order. Results are what JSON can hold, floats included to the last bit.

        Processes take a piece each, turn by turn. `tick` is told how many pieces are done.
        """
        answers = self._known(len(pieces))
        while len(answers) < len(pieces):
            mine = len(answers) + self.rank
            found = self._gathered(do(pieces[mine]) if mine < len(pieces) else None)
            for answer in found[: len(pieces) - len(answers)]:
                self._remember(answer)
                answers.append(answer)
            tick(len(answers))
        tick(len(pieces))
        return answers

    def once(self, do: Callable[[], Any]) -> Any:
        """do(), which all processes do together; the answer of the first one is everyone's."""
        known = self._known(1)
        if not known:
            known = [self._told(do())]
            self._remember(known[0])
        return known[0]

    def add_up(self, tensor: Any) -> None:
        """The sum of all processes' tensors, in place."""
        if self.world > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)

    def _known(self, n: int) -> list[Any]:
        """The remembered answers to the next `n` questions, as far as there are any; only the first process has a log."""
        first, self._asked = self._asked, self._asked + n
        return self._told(self._log.answers[first : first + n] if self._log else [])

    def _remember(self, answer: Any) -> None:
        if self._log:
            self._log.add(answer)

    def _gathered(self, answer: Any) -> list[Any]:
        """Of every process."""
        if self.world == 1:
            return [answer]
        import torch.distributed as dist

        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, answer)
        return found

    def _told(self, answer: Any) -> Any:
        """What the first process says."""
        if self.world == 1:
            return answer
        import torch.distributed as dist

        box = [answer]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def ranks() -> tuple[int, int]:
    """(this process, how many) of a run started by accelerate launch or torchrun; (0, 1) of any other."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join() -> None:
    """Meet the other processes of this run, if there are any. Call once, before work."""
    if ranks()[1] > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
