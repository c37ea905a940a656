"""Predictions of this machine after calibration, on models, depths, quantisations and contexts that it did not see.

    python benchmarks/prediction/host.py                # about 15 minutes on two idle cores
    python benchmarks/prediction/host.py --quick        # tiny counts, to see that it works; its figures mean nothing
    python benchmarks/prediction/host.py --again        # fit and foretell anew from the samples in host.json; seconds

The models of the calibration and those foretold take turns, so that a machine's moods fall on both alike. Writes host.md,
host.json (raw samples) and host.png beside this file, or into --output.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import _host_page as page  # noqa: E402

from edgeprune import _calibrate_write, _generated, _host_runs, calibrate, devices, model, plan, what_if  # noqa: E402
from edgeprune._generated import Geometry  # noqa: E402
from edgeprune._host_runs import Job, Pass, Runs  # noqa: E402
from edgeprune._profile_toml import parse, toml  # noqa: E402
from edgeprune._profile_write import toml_text  # noqa: E402
from edgeprune._rates import find  # noqa: E402
from edgeprune._sizes import Shapes, Sizes, sizes  # noqa: E402
from edgeprune.bench import physical_cores  # noqa: E402
from edgeprune.blocks import whole  # noqa: E402
from edgeprune.cost import Predictor, decode_times, prefill_times  # noqa: E402
from edgeprune.export import export  # noqa: E402
from edgeprune.files import tree_bytes  # noqa: E402
from edgeprune.materialise import materialise  # noqa: E402
from edgeprune.prune import prune  # noqa: E402
from edgeprune.types import Block, Blocks, Budget, DeviceProfile, ModelSpec  # noqa: E402

PASSES = (Pass(96, 16), Pass(300, 16), Pass(700, 16))
QUICK = (Pass(24, 3), Pass(60, 3))
# Widths, depths and heads that calibration does not run; 640 is no multiple of 256, so other types stand in.
MIDDLE = Geometry(hidden=1024, ffn=2816, heads=16, kv_heads=4, n_blocks=7, vocab=24000)
DEEP = Geometry(hidden=640, ffn=1792, heads=10, kv_heads=5, n_blocks=16, vocab=16000)
BROAD = Geometry(hidden=2048, ffn=5632, heads=32, kv_heads=8, n_blocks=2, vocab=12000)
GENERATED = (
    (MIDDLE, "llamacpp", "Q4_K_M"), (MIDDLE, "llamacpp", "Q5_K_M"), (DEEP, "llamacpp", "Q4_K_M"),
    (DEEP, "llamacpp", "Q8_0"), (BROAD, "llamacpp", "Q3_K_M"), (BROAD, "llamacpp", "Q4_K_S"),
    (MIDDLE, "onnxruntime", "int4-mixed"), (DEEP, "onnxruntime", "int8"), (BROAD, "onnxruntime", "int4"),
)  # fmt: skip
# SmolLM2-135M-Instruct, exported as users export: blocks left, runtime, quantisation
REAL = (
    (30, "llamacpp", "Q4_K_M"),
    (20, "llamacpp", "Q6_K"),
    (20, "onnxruntime", "int4-mixed"),
    (25, "onnxruntime", "int8"),
)


class Case(NamedTuple):
    name: str
    spec: ModelSpec  # of the whole model
    blocks: Blocks
    runtime: str
    quant: str
    path: Path


class Settings(NamedTuple):
    """What is run, beside the cases."""

    types: tuple[str, ...]  # of the calibration's models; () for all
    repetitions: int
    threads: int
    calibration: tuple[Pass, ...]
    passes: tuple[Pass, ...]  # of the cases

    def plan(self) -> calibrate.Plan:
        return calibrate.make_plan(
            types=self.types, repetitions=self.repetitions, threads=self.threads, passes=self.calibration
        )


class Kept(NamedTuple):
    """All that was measured: enough to fit and foretell anew."""

    settings: Settings
    when: str
    versions: dict[str, str]
    host: DeviceProfile  # its facts
    calibration: list[Runs]
    cases: list[Case]
    runs: list[Runs]
    file_bytes: list[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--folder", type=Path, help="where models are made; needs 4 GB")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, help="folder of the three files")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--again", action="store_true", help="measure nothing: take the samples of host.json in --output"
    )
    args = parser.parse_args()
    kept = read(args.output / "host.json") if args.again else measure(args)
    calibration = kept.settings.plan()
    if [i.name for i in calibration.items] != [r.name for r in kept.calibration]:
        parser.error(f"{args.output}/host.json is of other calibration models than are run now; measure anew")
    result = calibrate.calibrate_host(calibration, kept.calibration, "host-calibrated", kept.when, kept.host)
    device = parse(toml(toml_text(result.document)))
    rows = [
        row
        for case, r, n in zip(kept.cases, kept.runs, kept.file_bytes, strict=True)
        for row in compare(case, r, n, kept.settings.passes, device)
    ]
    summary = _calibrate_write.summary(result.document, result.fitted, result.memory)
    results: dict[str, Any] = {
        "when": kept.when, "threads": kept.settings.threads, "host": kept.host.name,
        "repetitions": kept.settings.repetitions, "versions": kept.versions, "rows": rows,
        "calibration": {k: summary[k] for k in ("calibrations", "errors", "unclear", "memory")}, "kept": plain(kept),
    }  # fmt: skip
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "host.json").write_text(json.dumps(results) + "\n", encoding="utf-8")
    (args.output / "host.md").write_text(page.text(results), encoding="utf-8")
    page.draw(rows, args.output / "host.png")
    sys.stdout.write(page.text(results))


def measure(args: argparse.Namespace) -> Kept:
    from edgeprune.run import environment

    types = ("Q8_0", "Q4_K", "Q6_K", "int8", "int4") if args.quick else ()
    passes = (QUICK, QUICK) if args.quick else (calibrate.PASSES, PASSES)
    settings = Settings(types, 1 if args.quick else args.repetitions, args.threads, *passes)
    host = devices.load(devices.HOST)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="host-") as temporary:
        work = Path(temporary)
        jobs = calibrate.make(settings.plan(), work / "calibrate", progress=tell)
        cases = make(work, host, args.quick)
        every = [*jobs, *(Job(c.name, c.path, c.runtime, settings.passes) for c in cases)]
        runs = _host_runs.measure(every, settings.repetitions, settings.threads, tell)
        file_bytes = [tree_bytes(c.path) for c in cases]
    when, n = time.strftime("%Y-%m-%d", time.gmtime()), len(jobs)
    return Kept(settings, when, environment(), host, runs[:n], cases, runs[n:], file_bytes)


def plain(kept: Kept) -> dict[str, Any]:
    """As JSON; a model's shape once."""
    specs = {c.spec.fingerprint: c.spec.model_dump(mode="json") for c in kept.cases}
    cases = [
        {"name": c.name, "spec": c.spec.fingerprint, "blocks": [[b.attn, b.ffn] for b in c.blocks], "runtime": c.runtime, "quant": c.quant}
        for c in kept.cases
    ]  # fmt: skip
    return kept._asdict() | {
        "host": kept.host.model_dump(mode="json"), "cases": cases, "specs": specs,
        "calibration": [r._asdict() for r in kept.calibration], "runs": [r._asdict() for r in kept.runs],
    }  # fmt: skip


def read(path: Path) -> Kept:
    found = json.loads(path.read_text(encoding="utf-8"))["kept"]
    types, repetitions, threads, *passes = found["settings"]
    specs = {k: ModelSpec.model_validate(v) for k, v in found["specs"].items()}
    cases = [
        Case(c["name"], specs[c["spec"]], tuple(Block(attn=a, ffn=f) for a, f in c["blocks"]), c["runtime"], c["quant"], Path())
        for c in found["cases"]
    ]  # fmt: skip
    return Kept(
        Settings(tuple(types), repetitions, threads, *(tuple(Pass(*p) for p in each) for each in passes)),
        found["when"], found["versions"], DeviceProfile.model_validate(found["host"]),
        [Runs(**r) for r in found["calibration"]], cases, [Runs(**r) for r in found["runs"]], found["file_bytes"],
    )  # fmt: skip


def tell(what: str, done: int, total: int) -> None:
    sys.stderr.write(f"{what} {done}/{total}\n")


def make(work: Path, device: DeviceProfile, quick: bool) -> list[Case]:
    """The models of the comparison, generated ones first."""
    cases = []
    for g, runtime, quant in GENERATED[:: 4 if quick else 1]:
        tell(f"making {g.name} {quant}", len(cases) + 1, len(GENERATED) + len(REAL))
        path = work / f"{g.name}-{quant}{'.gguf' if runtime == 'llamacpp' else ''}"
        if runtime == "llamacpp":
            _generated.make_gguf(g, quant, path, mixed=True)
        else:
            source = work / g.name
            if not source.exists():
                _generated.make_folder(g, source)
            export(source, "onnx", quant, path, verify=False)
        spec = model.inspect(path) if runtime == "llamacpp" else model.inspect(work / g.name)
        cases.append(Case(f"{g.name} {quant}", spec, whole(g.n_blocks), runtime, quant, path))
    base = work / "SmolLM2-135M-Instruct"
    materialise(model.builtin_gguf(), base)
    spec = model.inspect(base)
    for n, runtime, quant in REAL[:: 3 if quick else 1]:
        tell(f"making SmolLM2, {n} blocks, {quant}", len(cases) + 1, len(GENERATED) + len(REAL))
        blocks, source = what_if.typical_removal(spec.n_blocks, spec.n_blocks - n), work / f"smol-{n}"
        if not source.exists():
            empty = plan.make_plan(spec, None, device, Budget(context_tokens=512))
            prune(base, spec, empty.model_copy(update={"blocks": blocks}), source, base_model=spec.name, command="")
        path = work / f"smol-{n}-{quant}{'.gguf' if runtime == 'llamacpp' else ''}"
        export(source, "gguf" if runtime == "llamacpp" else "onnx", quant, path, verify=False)
        cases.append(Case(f"SmolLM2-135M {n} blocks {quant}", spec, blocks, runtime, quant, path))
    return cases


def compare(
    case: Case, r: Runs, file_bytes: int, passes: tuple[Pass, ...], device: DeviceProfile
) -> list[dict[str, Any]]:
    """Rows of what was measured beside what was foretold."""
    spec, blocks, runtime, quant = case.spec, case.blocks, case.runtime, case.quant
    rates, size = find(device, runtime, r.backend, None, quant), _size(case, device)
    assert rates
    shared = {"model": case.name, "runtime": runtime, "quant": quant, "build": r.build}
    rows = []

    def add(what: str, tokens: int, predicted: float, measured: float, apart: float | None = None) -> None:
        told = {"what": what, "tokens": tokens, "predicted": predicted, "measured": measured, "halves_apart": apart}
        rows.append(shared | told)

    for p, prefill, tokens in zip(passes, r.prefill_ns, r.token_ns, strict=True):
        depth = p.prompt + (p.gen + 1) // 2
        s = decode_times(spec, blocks, size, quant, runtime, rates, depth)[1]
        add("decode", depth, s, *_measured(tokens))
        s = prefill_times(spec, blocks, size.matrices, runtime, rates, p.prompt)[1]
        add("prefill", p.prompt, s, *_measured([[ns] for ns in prefill]))
    context, prompt = max(p.prompt + p.gen for p in passes), max(p.prompt for p in passes)
    foretold = Predictor(spec, device, runtime, r.backend)(blocks, quant, context, prompt)
    add("memory", context, foretold.memory_bytes, r.memory["peak"] - r.memory["before"])
    add("file", 0, foretold.file_bytes, file_bytes)
    return rows


def _measured(repetitions: list[list[int]]) -> tuple[float, float | None]:
    """(seconds, by what share two halves of the repetitions differ, first, third, … against second, fourth, …)."""

    def seconds(some: list[list[int]]) -> float:
        return _host_runs.undisturbed([ns for repetition in some for ns in repetition]) / 1e9

    if len(repetitions) < 2:
        return seconds(repetitions), None
    return seconds(repetitions), abs(seconds(repetitions[::2]) / seconds(repetitions[1::2]) - 1)


def _size(case: Case, device: DeviceProfile) -> Sizes:
    isa = frozenset((device.isa or "").split()) if case.runtime == "llamacpp" else frozenset()
    return sizes(Shapes(case.spec), case.blocks, case.runtime, case.quant, isa)


if __name__ == "__main__":
    main()
