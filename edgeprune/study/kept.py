"""The folder of a study: what was asked, and all that its samples need to be understood. Its page can be drawn again from
there on any machine, with nothing measured and no model at hand.

design.json     Kept
samples.jsonl   every timing; quality.jsonl: every judgement; llama-bench.jsonl: its rates
study.json      what they say, once all is measured; report.md, report.html
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune import _host
from edgeprune.errors import InputRejected, UsageError
from edgeprune.files import write_text
from edgeprune.run import environment
from edgeprune.study.design import Design, Task, Variant
from edgeprune.study.measure import Limits, Protocol
from edgeprune.types import DeviceProfile, Plan, Record
from edgeprune.width_plan import Widths
from edgeprune.work import whole_lines

DESIGN, SAMPLES, QUALITY, RESULT = "design.json", "samples.jsonl", "quality.jsonl", "study.json"
STOCK = "llama-bench.jsonl"


class Kept(Record):
    asked: dict[str, Any]  # what samples depend on: the model, what to make of it, Protocol's and Limits' fields
    here: dict[str, Any]  # and the machine and the versions that they were measured with
    host: DeviceProfile
    begun: str
    command: str
    model: str
    variants: tuple[Variant, ...]  # of all tasks, the whole model first
    tasks: tuple[tuple[int, str, str], ...]  # (variant, runtime, quantisation)
    refused: tuple[str, ...]
    plans: dict[str, Plan] = {}  # of a real model: depth variant -> plan
    widths: dict[str, Widths] = {}  # width variant -> what stays

    @property
    def design(self) -> Design:
        tasks = tuple(Task(self.variants[i], runtime, quant) for i, runtime, quant in self.tasks)
        return Design(self.model, self.variants[0], self.variants, tasks, self.refused)

    @property
    def protocol(self) -> Protocol:
        return Protocol(*(tuple(x) if isinstance(x, list) else x for x in (self.asked[f] for f in Protocol._fields)))

    @property
    def limits(self) -> Limits:
        return Limits(*(self.asked[f] for f in Limits._fields))

    @property
    def key(self) -> dict[str, Any]:
        """What the folder's samples are of."""
        return {"asked": self.asked, "here": self.here, "begun": self.begun}


class Found(NamedTuple):
    kept: Kept
    finished: bool  # all is measured


def find(out: Path, asked: dict[str, Any], force: bool) -> Found | None:
    """What `out` holds of this study; None where it is to be begun. A finished one may be of any machine.

    Raises UsageError when it holds another study, or one that another machine or version began. With `force` those, and a
    finished one, are begun again.
    """
    if not is_study(out):
        return None
    finished = (out / RESULT).exists()
    try:
        kept = read(out)
    except InputRejected:
        kept = None
    same = kept is not None and kept.asked == _plain(asked)
    if same and (not force if finished else kept.here == here()):
        return Found(kept, finished)
    if force:
        return None
    what = "one begun on another machine or version" if same else "another study"
    raise UsageError(f"{out} holds {what}; choose another -o, or pass --force to begin again there")


def is_study(out: Path) -> bool:
    return (out / DESIGN).is_file()


def read(out: Path) -> Kept:
    """Raises InputRejected where there is no such record."""
    try:
        return Kept.from_json((out / DESIGN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputRejected(f"{out / DESIGN}: {e}; a study of this version keeps its design there") from None


def begin(
    out: Path, asked: dict[str, Any], host: DeviceProfile, d: Design, plans: dict[str, Plan], widths: dict[str, Widths],
    command: str,
) -> Kept:  # fmt: skip
    variants: list[Variant] = []
    for t in d.tasks:
        variants += [t.variant] if t.variant not in variants else []
    kept = Kept(
        asked=_plain(asked), here=here(), host=host, model=d.model, variants=tuple(variants), refused=d.refused,
        begun=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        tasks=tuple((variants.index(t.variant), t.runtime, t.quant) for t in d.tasks), plans=plans, widths=widths,
        command=command,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULT).unlink(missing_ok=True)
    write_text(out / DESIGN, kept.to_json(), force=True)
    return kept


def read_log(path: Path) -> list[Any]:
    """The answers of a log that edgeprune.work keeps; none where it is not there."""
    if not path.exists():
        return []
    with path.open("rb") as f:
        return whole_lines(f)[0][1:]


def here() -> dict[str, Any]:
    return _plain({"host": _host.read_facts(), "versions": environment()})


def _plain(x: Any) -> Any:
    return json.loads(json.dumps(x))
