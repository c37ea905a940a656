"""Device × quantisation × blocks to remove: at a glance, where a model fits whole and what would have to go elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune._candidates import LADDER, RUNTIMES
from edgeprune._depth_prior import MOST
from edgeprune._limits import Limits
from edgeprune._rates import backends
from edgeprune._sizes import Shapes, named
from edgeprune.errors import UsageError
from edgeprune.types import Budget, DeviceProfile, ModelSpec, Record
from edgeprune.what_if import Need, needs


class Column(Record):
    runtime: str
    quant: str


class Cell(Record):
    blocks_to_remove: int | None  # None: not even one block fits
    kv_type: str
    memory_bytes: int  # of what is left, or of one block when nothing is enough
    whole_memory_bytes: int
    decode_tok_per_s: float | None


class Row(Record):
    device: str
    name: str
    memory_limit_bytes: int
    cells: tuple[Cell | None, ...]  # by column; None where the device has no such runtime


class FitTable(Record):
    model: str
    source: str | None
    n_blocks: int
    params: int
    budget: Budget
    most_published: float  # the largest share of blocks whose removal was published
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]  # least memory first


def fit_table(spec: ModelSpec, devices: Sequence[DeviceProfile], budget: Budget, source: str | None = None) -> FitTable:
    """Raises UsageError for a runtime or quantisation that no device here has, and what else can't be asked."""
    shapes = Shapes(spec)
    columns = _columns(budget)
    rows = []
    for device in sorted(devices, key=lambda d: (d.memory_available.value, d.id)):
        there = {c.runtime for c in columns if backends(device, c.runtime)}
        asked = [c for c in columns if c.runtime in there]
        found = {(n.runtime, n.quant): n for n in _needs(spec, device, budget, shapes)} if asked else {}
        cells = tuple(_cell(found.get((c.runtime, c.quant))) for c in columns)
        rows.append(
            Row(
                device=device.id,
                name=device.name,
                memory_limit_bytes=Limits.of(budget, device).memory_bytes,
                cells=cells,
            )
        )
    if not any(cell for row in rows for cell in row.cells):
        names = ", ".join(d.id for d in devices)
        raise UsageError(f"none of {names} runs {' or '.join(dict.fromkeys(c.runtime for c in columns))}")
    return FitTable(
        model=spec.name,
        source=source,
        n_blocks=spec.n_blocks,
        params=shapes.total,
        budget=budget,
        most_published=MOST,
        columns=columns,
        rows=tuple(rows),
    )


def _columns(budget: Budget) -> tuple[Column, ...]:
    runtimes = RUNTIMES if budget.runtime == "auto" else (budget.runtime,)
    if not set(runtimes) <= set(RUNTIMES):
        raise UsageError(f"no export for runtime {budget.runtime!r}; known: {', '.join(RUNTIMES)}")
    found = [
        Column(runtime=r, quant=q)
        for r in runtimes
        for q in (LADDER[r] if budget.quant == "auto" else named(r, budget.quant))
    ]
    if not found:
        raise UsageError(f"no quantisation called {budget.quant!r} in {' or '.join(runtimes)}")
    return tuple(found)


def _needs(spec: ModelSpec, device: DeviceProfile, budget: Budget, shapes: Shapes) -> list[Need]:
    """As the budget asks, but for a KV cache type only where there is one to choose."""
    try:
        return needs(spec, device, budget, shapes=shapes)
    except UsageError:
        if budget.kv_type in ("auto", "f16") and budget.quant == "auto":
            raise
        return []


def _cell(need: Need | None) -> Cell | None:
    if need is None:
        return None
    return Cell(
        blocks_to_remove=need.blocks_to_remove,
        kv_type=need.kv_type,
        memory_bytes=need.prediction.memory_bytes,
        whole_memory_bytes=need.whole_memory_bytes,
        decode_tok_per_s=need.prediction.decode_tok_per_s,
    )
