"""Fit the decode and prefill terms to public rates, and measure how well they foretell what they have not seen.

    python benchmarks/prediction/public.py                    print, and write results.json, README.md, public.png
    python benchmarks/prediction/public.py --write-profiles   and write the terms into device_profiles/

The rates are not part of the project: `--rates` names them. About a minute.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

import _page  # noqa: E402
import _profiles  # noqa: E402
from _learn import devices  # noqa: E402
from _rows import read  # noqa: E402

RATES = HERE.parent.parent.parent / "shared" / "data" / "rates" / "measured_rates.csv"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=Path, default=RATES, help="CSV of measured rates (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json, README.md and public.png")
    parser.add_argument("--write-profiles", action="store_true", help="write the terms into device_profiles/")
    options = parser.parse_args()
    if not options.rates.is_file():
        sys.stderr.write(f"no rates at {options.rates}; name them with --rates\n")
        return 2
    digest = hashlib.sha256(options.rates.read_bytes()).hexdigest()
    lines, left_out = read(options.rates)
    found, priors = devices(lines, lambda text: sys.stderr.write(text + "\n"))
    version = f"benchmarks/prediction/public.py on {len(lines)} public rates, SHA-256 {digest[:16]}"
    changed = _profiles.outdated(found, priors, version)
    if options.write_profiles:
        for path, text in changed.items():
            path.write_text(text, encoding="utf-8")
    options.out.mkdir(parents=True, exist_ok=True)
    results = _page.results(found, priors, lines, left_out, options.rates.name, digest)
    said = list(_page.write(options.out, results))
    names = ", ".join(p.name for p in changed)
    if not changed:
        said.append("profiles up to date")
    elif options.write_profiles:
        said.append(f"wrote {names}")
    else:
        said.append(f"profiles differ from this fit: {names}; --write-profiles writes them")
    sys.stdout.write("\n".join(said) + "\n")
    return 1 if changed and not options.write_profiles else 0


if __name__ == "__main__":
    sys.exit(main())
