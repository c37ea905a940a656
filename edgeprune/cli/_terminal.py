"""What the command line shares: results on stdout, progress and notes on stderr, one line per failure."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from edgeprune.errors import EdgepruneError, OutOfResources
from edgeprune.types import Record
from edgeprune.work import ranks

# Of several processes the first speaks.
err = Console(stderr=True, highlight=False, soft_wrap=True, quiet=ranks()[0] > 0)
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
INTERRUPTED, TERMINATED = 130, 143


def note(text: str) -> None:
    """A line for the person watching, on stderr."""
    err.print(text, markup=False, style="dim")


def emit(value: Any) -> None:
    """JSON on stdout."""
    sys.stdout.write(json.dumps(_plain(value), indent=1, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.model_dump(mode="json")
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def table(title: str | None, columns: list[str], rows: list[list[str]], right: tuple[int, ...] = ()) -> None:
    """A table on stdout; names from models are shown as plain text, never as markup."""
    from rich.text import Text

    t = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    t.show_header = any(columns)
    for i, column in enumerate(columns):
        t.add_column(column, justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        t.add_row(*(Text(clean(cell)) for cell in row))
    out.print(t)


def clean(text: str) -> str:
    """Without control characters: a model's name can't move the cursor."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def say(text: str) -> None:
    """A line of the result, on stdout."""
    out.print(clean(text), markup=False)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr while on a terminal; off one, nothing. Called as progress(what, done, total)."""
    if not err.is_terminal or err.quiet:
        yield lambda what, done, total: None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for old in list(tasks.values()):
                    bars.remove_task(old)
                tasks.clear()
                tasks[what] = bars.add_task(clean(what), total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield update


def guarded(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Errors as one line on stderr and a documented exit code; EDGEPRUNE_DEBUG=1 shows the traceback."""

    @functools.wraps(verb)
    def inner(*args: Any, **kwargs: Any) -> Any:
        signal.signal(signal.SIGTERM, _terminate)
        sys.unraisablehook = _unraisable
        started = time.monotonic()
        try:
            return verb(*args, **kwargs)
        except EdgepruneError as e:
            if kwargs.get("json") and not err.quiet:
                emit(
                    {
                        "error": str(e),
                        "exit_code": e.exit_code,
                        **({"nearest": e.nearest, "nearest_plan": e.nearest_plan} if hasattr(e, "nearest") else {}),
                    }
                )
            raise _fail(str(e), e.exit_code, e) from None
        except KeyboardInterrupt as e:
            # An interrupt inside some library's exec("…") makes CPython end itself by the signal, whatever is raised
            # after it; another exec makes it forget (run_eval_code_obj in Python/pythonrun.c).
            exec("")
            raise _fail(
                f"interrupted after {time.monotonic() - started:.0f} s; nothing half-written is left", INTERRUPTED, e
            ) from None
        except BrokenPipeError:
            os._exit(0)
        except (typer.Exit, SystemExit, typer.BadParameter):
            raise
        except Exception as e:
            if full_disk(e):
                raise _fail(
                    "no space left on the disk; free some or choose another output", OutOfResources.exit_code, e
                ) from None
            if no_memory(e):
                raise _fail(
                    "out of memory; use a smaller model, fewer windows or a shorter context",
                    OutOfResources.exit_code,
                    e,
                ) from None
            text = f"internal error: {type(e).__name__}: {e}; set EDGEPRUNE_DEBUG=1 to see where, and please report it"
            raise _fail(text, 1, e) from None

    return inner


def full_disk(e: BaseException | None) -> bool:
    """Whether a full disk is what some library's exception is about."""
    while e is not None:
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(e):
            return True
        e = e.__cause__ or e.__context__
    return False


def no_memory(e: BaseException) -> bool:
    """Whether want of memory is what an exception is about: Python's own, or what torch and onnxruntime raise."""
    said = str(e).lower()
    return isinstance(e, MemoryError) or "out of memory" in said or "allocate memory" in said


def _fail(text: str, code: int, e: BaseException) -> typer.Exit:
    if os.environ.get("EDGEPRUNE_DEBUG"):
        import traceback

        traceback.print_exception(e)
    one_line = " ".join(clean(text).split())
    rank, world = ranks()
    sys.stderr.write(f"edgeprune{f', process {rank} of {world}' if rank else ''}: {one_line}\n")
    return typer.Exit(code)


def _terminate(_signum: int, _frame: Any) -> None:
    raise SystemExit(TERMINATED)


def _unraisable(ignored: Any) -> None:
    """Where Python drops an exception, in a finaliser or a callback from C, a signal's must not be lost: it is sent again."""
    of_signal = {SystemExit: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}.get(ignored.exc_type)
    if of_signal is None:
        sys.__unraisablehook__(ignored)
        return
    again = threading.Timer(0.01, os.kill, (os.getpid(), of_signal))
    again.daemon = True
    again.start()
