"""Predictions of this machine after calibration, on models, depths, quantisations and contexts that it did not see.

    python benchmarks/prediction/host.py                # calibrate, then measure; about 12 minutes on two idle cores
    python benchmarks/prediction/host.py --quick        # tiny counts, to see that it works; its figures mean nothing

Writes host.md, host.json (raw samples) and host.png beside this file, or into --output.
"""

from __future__ import annotations

import argparse
import json
import statistics
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
from edgeprune.types import Blocks, Budget, DeviceProfile, ModelSpec  # noqa: E402

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--profile", type=Path, help="a profile that `edgeprune calibrate` wrote; default: calibrate now"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--folder", type=Path, help="where models are made; needs 4 GB")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="host-") as temporary:
        work = Path(temporary)
        profile = args.profile or calibrated(work, args)
        device = devices.load(profile)
        cases = make(work, device, args.quick)
        passes = QUICK if args.quick else PASSES
        jobs = [Job(c.name, c.path, c.runtime, passes) for c in cases]
        runs = _host_runs.measure(jobs, 1 if args.quick else args.repetitions, args.threads, tell)
        rows = [row for case, r in zip(cases, runs, strict=True) for row in compare(case, r, passes, device)]
    from edgeprune.run import environment

    results: dict[str, Any] = {
        "when": time.strftime("%Y-%m-%d", time.gmtime()), "threads": args.threads, "host": device.name,
        "repetitions": args.repetitions, "versions": environment(), "rows": rows,
        "calibration": [c.model_dump(mode="json", exclude_none=True) for c in device.calibrations],
    }  # fmt: skip
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "host.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.output / "host.md").write_text(page.text(results))
    page.draw(rows, args.output / "host.png")
    sys.stdout.write(page.text(results))


def tell(what: str, done: int, total: int) -> None:
    sys.stderr.write(f"{what} {done}/{total}\n")


def calibrated(work: Path, args: argparse.Namespace) -> Path:
    """What `edgeprune calibrate -o host.toml` does."""
    repetitions, passes = (1, QUICK) if args.quick else (args.repetitions, calibrate.PASSES)
    types = ("Q8_0", "Q4_K", "Q6_K", "int8", "int4") if args.quick else ()
    todo = calibrate.make_plan(types=types, repetitions=repetitions, threads=args.threads, passes=passes)
    runs = calibrate.run(todo, work / "calibrate", progress=tell)
    result = calibrate.calibrate_host(todo, runs, "host-calibrated", time.strftime("%Y-%m-%d", time.gmtime()))
    sys.stderr.write(json.dumps(_calibrate_write.summary(result.document, result.fitted, [])["errors"]) + "\n")
    out = work / "host-calibrated.toml"
    out.write_text(toml_text(result.document), encoding="utf-8")
    return out


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


def compare(case: Case, r: Runs, passes: tuple[Pass, ...], device: DeviceProfile) -> list[dict[str, Any]]:
    """Rows of what was measured beside what was foretold, with raw samples."""
    spec, blocks, runtime, quant = case.spec, case.blocks, case.runtime, case.quant
    rates, size = find(device, runtime, r.backend, None, quant), _size(case, device)
    assert rates
    shared = {"model": case.name, "runtime": runtime, "quant": quant, "build": r.build}
    rows = []

    def add(what: str, tokens: int, predicted: float, measured: float, samples: list[int]) -> None:
        ends = {"what": what, "tokens": tokens, "predicted": predicted, "measured": measured, "samples_ns": samples}
        rows.append(shared | ends)

    for p, prefill, tokens in zip(passes, r.prefill_ns, r.token_ns, strict=True):
        every = [ns for repetition in tokens for ns in repetition]
        depth = p.prompt + (p.gen + 1) // 2
        s = decode_times(spec, blocks, size, quant, runtime, rates, depth)[1]
        add("decode", depth, s, statistics.median(every) / 1e9, every)
        s = prefill_times(spec, blocks, size.matrices, runtime, rates, p.prompt)[1]
        add("prefill", p.prompt, s, statistics.median(prefill) / 1e9, prefill)
    context, prompt = max(p.prompt + p.gen for p in passes), max(p.prompt for p in passes)
    foretold = Predictor(spec, device, runtime, r.backend)(blocks, quant, context, prompt)
    add("memory", context, foretold.memory_bytes, r.memory["peak"] - r.memory["before"], [])
    add("file", 0, foretold.file_bytes, tree_bytes(case.path), [])
    return rows


def _size(case: Case, device: DeviceProfile) -> Sizes:
    isa = frozenset((device.isa or "").split()) if case.runtime == "llamacpp" else frozenset()
    return sizes(Shapes(case.spec), case.blocks, case.runtime, case.quant, isa)


if __name__ == "__main__":
    main()
