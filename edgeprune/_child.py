"""A fresh process with one model open: gets a request, then does one step per line and answers each with a line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from edgeprune.errors import EdgepruneError, InputRejected, OutOfResources, UsageError

Answer = Callable[..., None]  # with the fields of an answer


class Child:
    """`module` is run with -m and calls `serve`. `doing` begins what is said when it fails, `remedy` ends it when it is
    out of memory."""

    def __init__(self, module: str, request: dict[str, Any], runtime: str, doing: str, remedy: str = ""):
        self.runtime, self.doing, self.remedy = runtime, doing, remedy
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process = subprocess.Popen([sys.executable, "-m", module], text=True, **pipes)
        self._errors: list[str] = []
        threading.Thread(target=lambda: self._errors.extend(self._process.stderr or ()), daemon=True).start()
        self._send({**request, "doing": doing})

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, step: str) -> dict[str, Any]:
        """Raises what was raised there; OutOfResources when it was killed."""
        self._send(step)
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise self._died()
        answer = json.loads(line)
        if "error" in answer:
            kind = {2: UsageError, 4: InputRejected, 6: OutOfResources}.get(answer["exit_code"], EdgepruneError)
            raise kind(answer["error"])
        return answer

    def _send(self, value: Any) -> None:
        try:
            assert self._process.stdin
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; the next answer tells how

    def _died(self) -> EdgepruneError:
        code = self._process.wait()
        if code in (-9, 137):
            return OutOfResources(f"{self.doing}: its process was killed, most likely out of memory{self.remedy}")
        tail = " ".join("".join(self._errors[-3:]).split())[-300:]
        return EdgepruneError(f"{self.doing}: the {self.runtime} process ended with code {code}: {tail}")


def serve(work: Callable[[dict[str, Any], Iterator[str], Answer], None]) -> None:
    """The other end: work(request, steps, answer) in this process, which an interrupt ends with 130."""

    def answer(**fields: Any) -> None:
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()

    try:
        request = json.loads(sys.stdin.readline())
        try:
            work(request, map(json.loads, sys.stdin), answer)
        except EdgepruneError as e:
            answer(error=str(e), exit_code=e.exit_code)
        except MemoryError:
            answer(error=f"{request['doing']}: out of memory", exit_code=6)
    except KeyboardInterrupt:
        sys.exit(130)
