"""Depth against width, the published study: speed at realistic sizes, and a small real model with its quality.

    python benchmarks/depth_vs_width/run.py             # all; --only NAME: one
    python benchmarks/depth_vs_width/run.py --help

Each is `edgeprune study` with the arguments below; design, raw samples and report stay in a folder of its name, and the same
command goes on where it was stopped. Nothing else should run on the machine meanwhile. `edgeprune report` on such a folder
draws its page again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
STUDIES = {
    "speed": "tinyllama-1.1b --speed-only --ratios 0.2 --quants Q4_K_M,Q4_0,Q8_0 --round 1,32,256 --contexts 0,2000 "
    "-p 128 -n 16 --max-disk 8GB --max-memory 11GB",
    "larger": "qwen2.5-1.5b --speed-only --ratios 0.2 --quants Q4_K_M --round 1,32,256 --contexts 0 -p 64 -n 16 --max-memory 11GB",
    "largest": "llama-3.2-3b --speed-only --ratios 0.2 --quants Q4_K_M --round 1,32,256 --contexts 0 -p 64 -n 16 "
    "--max-disk 12GB --max-memory 14GB",
    "runtimes": "tinyllama-1.1b --speed-only --ratios 0.2 --quants F16,int8,int4 --round 1,32,256 --contexts 0 -p 64 -n 16 -r 4 "
    "--max-disk 14GB --max-memory 16GB",
    "long": "smollm2-135m --speed-only --ratios 0.2 --quants Q4_0 --round 32 --contexts 0,4000,8000 -p 64 -n 16 -r 6",
    "methods": "smollm2-135m-instruct --ratios 0.2 --quants Q4_0 --width flap --width taylor --width wanda_sp --width slicegpt "
    "--round 32 --contexts 0 -p 128 -n 16 --threads 1,2",
    "real": "smollm2-135m-instruct --ratios 0.1,0.2,0.3 --quants Q4_0,int8 --round 0,32 --contexts 0 -p 128 --heal",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=STUDIES)
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="folder for the results")
    parser.add_argument("--force", action="store_true", help="begin again where a result is of another machine")
    args, more = parser.parse_known_args()
    for name in [args.only] if args.only else STUDIES:
        out = str(args.output / name)
        command = [sys.executable, "-m", "edgeprune.cli", "study", *STUDIES[name].split(), "-o", out]
        started = time.monotonic()
        done = subprocess.run([*command, *(["--force"] if args.force else []), *more], cwd=HERE.parents[1])
        if done.returncode:
            raise SystemExit(done.returncode)
        sys.stderr.write(f"{name}: {time.monotonic() - started:.0f} s\n")


if __name__ == "__main__":
    main()
