"""This machine as a DeviceProfile: facts from the system, memory bandwidth from a short read of it.

The reading is kept in $XDG_CACHE_HOME/edgeprune/host.json under a key made of the machine's facts, so that plans on
one machine stay the same until its hardware or its limits change. Delete the file to measure again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgeprune.types import DeviceProfile, Figure

PROBE_MIB = 128  # per thread: past the last-level cache of common parts, and 0.1 s to fill
PROBE_ROUNDS = 4
USABLE_SHARE = 0.9  # what is left to a model process when the system keeps a tenth
_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
    "fphp",
    "i8mm",
    "sve2",
)
# /proc/cpuinfo's words -> the profiles'
_NAMES = {"avx512f": "avx512", "avx512_vnni": "avx512-vnni", "avx_vnni": "avx-vnni", "amx_int8": "amx"}
_NAMES |= {"asimd": "neon", "asimddp": "dotprod", "fphp": "fp16"}


def profile() -> DeviceProfile:
    """Never fails for lack of a fact: what the system does not tell stays None."""
    facts = read_facts()
    bandwidth = _cached_bandwidth(facts)
    memory = facts["memory_bytes"]
    limit = facts["memory_limit_bytes"]
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    told = "read from the system" if limit is None else "read from the system, capped by the cgroup"
    available = round(USABLE_SHARE * min(memory, limit or memory))
    cores = facts["physical_cores"]
    note = "its GPU's bandwidth is not known: take a profile of it, or write one" if facts["gpu"] else None
    return DeviceProfile(
        id="host",
        vendor=platform.system() or "unknown",
        name=f"this machine ({facts['cpu']})",
        memory_total=Figure(value=memory, unit="bytes", source="operating system", kind="measured"),
        memory_available=Figure(
            value=available, unit="bytes", source=told, kind="computed", note=f"{USABLE_SHARE:g} of what is there"
        ),
        unified_memory=True,
        bandwidth=Figure(
            value=bandwidth["bytes_per_s"],
            unit="bytes/s",
            source=f"read probe, {bandwidth['threads']} threads × {PROBE_MIB} MiB, best of {PROBE_ROUNDS}",
            kind="measured",
            note=f"measured {bandwidth['when']}",
        ),
        cpu=f"{cores} cores, {facts['cpu']}" if cores else facts["cpu"],
        isa=" ".join(facts["isa"]) or None,
        gpu=facts["gpu"],
        runtimes={"llamacpp": ("metal", "cpu") if apple else ("cpu",), "onnxruntime": ("cpu",)},
        note=note,
    )


def read_facts() -> dict[str, Any]:
    """CPU name, physical cores, usable threads, instruction sets, memory and its cgroup limit, GPU; the cache key."""
    info = _cpuinfo()
    import psutil

    return {
        "cpu": info.get("name") or platform.processor() or platform.machine(),
        "physical_cores": psutil.cpu_count(logical=False),
        "threads": _threads(),
        "isa": info.get("isa", []),
        "memory_bytes": psutil.virtual_memory().total,
        "memory_limit_bytes": cgroup_limit(),
        "gpu": _gpu(),
    }


def cgroup_limit(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes this process may use: the tightest limit on the way up from its own group (cgroup v2, else v1)."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        here = base / group.lstrip("/")
        for folder in (here, *here.parents):
            found.append(_int_file(folder / name))
            if folder == base:
                break
    limits = [n for n in found if n is not None and n < 1 << 60]
    return min(limits, default=None)


def read_bandwidth(threads: int) -> float:
    """Bytes/s that `threads` threads read together, best round. About 0.3 s."""
    import threading

    import numpy as np

    arrays = [np.zeros(PROBE_MIB << 20, np.uint8) for _ in range(threads)]
    for a in arrays:
        a.fill(1)  # a page that was never written is not in memory
    best = 0.0
    for _ in range(PROBE_ROUNDS):
        gate = threading.Barrier(threads + 1)

        def read(a: Any, gate: threading.Barrier = gate) -> None:
            gate.wait()
            np.max(a)
            gate.wait()

        workers = [threading.Thread(target=read, args=(a,)) for a in arrays]
        for w in workers:
            w.start()
        gate.wait()
        start = time.perf_counter()
        gate.wait()
        best = max(best, threads * (PROBE_MIB << 20) / (time.perf_counter() - start))
        for w in workers:
            w.join()
    return best


def _cached_bandwidth(facts: dict[str, Any]) -> dict[str, Any]:
    key = hashlib.sha256(json.dumps([facts, PROBE_MIB, PROBE_ROUNDS], sort_keys=True).encode()).hexdigest()
    path = _cache_file()
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key and kept["bytes_per_s"] > 0:
            return kept
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or damaged: measure
    threads = min(facts["threads"], facts["physical_cores"] or facts["threads"], 32)
    # three significant digits: more would be noise
    found = {"key": key, "bytes_per_s": float(f"{read_bandwidth(threads):.3g}"), "threads": threads}
    found["when"] = time.strftime("%Y-%m-%d", time.gmtime())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError:
        pass  # a read-only home costs a new probe per call, nothing else
    return found


def _cache_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgeprune" / "host.json"


def _threads() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo() -> dict[str, Any]:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
    except OSError:
        return _sysctl()
    fields = dict((p.strip() for p in line.split(":", 1)) for line in text.splitlines() if ":" in line)
    words = set((fields.get("flags") or fields.get("Features") or "").split())
    isa = [_NAMES.get(f, f) for f in _FLAGS if f in words]
    return {"name": fields.get("model name") or fields.get("Model"), "isa": isa}


def _sysctl() -> dict[str, Any]:
    if sys.platform != "darwin":
        return {}
    name = _run(["sysctl", "-n", "machdep.cpu.brand_string"])
    arm = [
        ("neon", "AdvSIMD"),
        ("fp16", "FEAT_FP16"),
        ("dotprod", "FEAT_DotProd"),
        ("i8mm", "FEAT_I8MM"),
        ("bf16", "FEAT_BF16"),
    ]
    isa = [n for n, f in arm if _run(["sysctl", "-n", f"hw.optional.arm.{f}"]) == "1"]
    return {"name": name, "isa": isa}


def _gpu() -> str | None:
    """ "NVIDIA …, 24576 MiB" for each CUDA device, without torch."""
    if shutil.which("nvidia-smi") is None:
        return None
    text = _run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    return "; ".join(line.strip() for line in text.splitlines() if line.strip()) or None if text else None


def _run(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=3, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _int_file(path: Path) -> int | None:
    try:
        return int(path.read_text().strip())  # "max" is no number: no limit
    except (OSError, ValueError):
        return None
