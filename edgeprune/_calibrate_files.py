"""Calibration from benchmark files of a device: its profile with the terms that the files' rows say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeprune import _bench_files, model
from edgeprune import _profile_write as profile_write
from edgeprune._bench_files import BenchRow
from edgeprune._rates import counted
from edgeprune._sizes import named
from edgeprune._terms import Fitted, Observation, fit_all, matrices_of
from edgeprune.errors import EdgepruneError, InputRejected, UsageError
from edgeprune.types import Calibration, DeviceProfile, ModelSpec

SAME_PARAMS = 0.01  # how far a file's number of parameters may be from a model's to be taken for it


def observations(files: Sequence[Path], specs: Sequence[ModelSpec]) -> list[Observation]:
    """Rows of the files whose model is known: one of `specs`, or the file that the row names, if it lies here.

    Raises InputRejected for a file that is not a benchmark's, a model that is not known, or nothing to use.
    """
    found = []
    for path in files:
        rows = [
            r for r in _bench_files.read(path) if r.token_s is not None or (r.prompt_s is not None and not r.n_depth)
        ]
        found += [_observation(r, _shape(r, specs)) for r in rows]
    if not found:
        raise InputRejected(f"{', '.join(map(str, files))}: no test of a prompt or of generation alone at batch 1")
    return found


def calibrate_files(
    files: Sequence[Path], specs: Sequence[ModelSpec], base: DeviceProfile, document: dict[str, Any], device_id: str,
    mode: str | None = None,
) -> tuple[dict[str, Any], list[Fitted], list[str]]:  # fmt: skip
    """(the profile's document with what the files say, the fits, sentences on what they were joined with).

    `mode`: the power mode that the files are of; None: the profile's first. Raises as `observations`, and UsageError for
    a mode that the profile does not have.
    """
    modes, said = [m.name for m in base.modes], []
    if mode is not None and mode not in modes:
        raise UsageError(f"{base.id} has no power mode {mode!r}; known: {', '.join(modes) or 'none'}")
    if mode is None and modes:
        mode = modes[0]
        said.append(f"the files are taken as of power mode {mode}, the profile's first; --mode names another")
    rows = observations(files, specs)
    known = {key: c for key in {(o.runtime, o.backend) for o in rows} if (c := _known(base, *key, mode))}
    for (runtime, backend), c in sorted(known.items()):
        n = sum((o.runtime, o.backend) == (runtime, backend) for o in rows)
        said.append(
            f"{runtime} on {backend}: the profile rests on {counted(c)} already; the files' {n} adjust that fit, they do "
            "not replace it"
        )
    source = f"edgeprune calibrate --from {', '.join(p.name for p in files)}, on {base.name}"
    if known:
        source += ", beside " + ", ".join(
            f"{c.n_rows} rows known of {k[0]} on {k[1]}" for k, c in sorted(known.items())
        )
    fitted = fit_all(rows, base.bandwidth.value, "fitted", source, {}, known, mode)
    document = profile_write.with_calibrations(document, [f.calibration for f in fitted], source)
    return {**document, "id": device_id, "aliases": [], "siblings": []}, fitted, said


def _known(base: DeviceProfile, runtime: str, backend: str, mode: str | None) -> Calibration | None:
    """The profile's own fit for this, of all quantisations, the mode's before one of no mode."""
    there = [
        c
        for c in base.calibrations
        if (c.runtime, c.backend, c.quant) == (runtime, backend, None) and c.mode in (mode, None) and c.efficiency
    ]
    return max(there, key=lambda c: (c.mode == mode, c.n_rows), default=None)


def _observation(r: BenchRow, spec: ModelSpec) -> Observation:
    known = named(r.runtime, r.quant)
    if not known:
        raise InputRejected(f"{r.where}: {r.runtime} has no quantisation {r.quant!r} that edgeprune knows")
    what, tokens, seconds = ("prefill", r.n_prompt, r.prompt_s) if r.prompt_s else ("decode", 0, r.token_s)
    if what == "decode":
        tokens = r.n_depth + (r.n_gen + 1) // 2
    assert seconds
    return Observation(
        spec.name,
        spec,
        r.runtime,
        r.backend,
        r.build,
        known[0],
        matrices_of(spec, r.runtime, known[0]),
        what,
        tokens,
        seconds,
    )


def _shape(r: BenchRow, specs: Sequence[ModelSpec]) -> ModelSpec:
    for spec in specs:
        if r.n_params is None or abs(spec.params / r.n_params - 1) <= SAME_PARAMS:
            return spec
    if r.file and Path(r.file).is_file():
        try:
            return model.inspect(r.file)
        except EdgepruneError:
            pass  # told below: the person names it
    what = f"{r.n_params:,} parameters" if r.n_params else f"the name {r.model!r}"
    raise InputRejected(
        f"{r.where}: which model is it? Of {what} none is known here; name its folder, its .gguf or a well-known model as MODEL"
    )


def base_document(name: str) -> dict[str, Any]:
    """The tables of the profile that a name, an alias, a path or "host" stands for."""
    from edgeprune import _host, devices

    if name.endswith(".toml"):
        return devices.read_document(Path(name).expanduser())
    profile = devices.load(name)
    if profile.id == devices.HOST:
        return profile_write.host_document(_host.profile(), profile.id)
    return devices.document_of(profile)
