"""The house rules of the design, enforced: who may import whom, file sizes, lean imports."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("edgeprune/**/*.py"), *ROOT.glob("exporters/**/*.py")])
BASE = {"edgeprune"} | {f"edgeprune.{m}" for m in ("types", "errors", "blocks", "catalog", "families")}
FILE_LAYER = {"edgeprune.files", "edgeprune.checkpoint", "edgeprune.gguf_file"}
LEAVES = ("edgeprune.metrics", "edgeprune.healers", "edgeprune.widths", "edgeprune.runtimes", "exporters")
TORCH_FREE = (
    "types",
    "errors",
    "catalog",
    "families",
    "devices",
    "cost",
    "plan",
    "score",
    "score_gguf",
    "width_plan",
    "width",
    "checkpoint",
    "gguf_file",
    "model",
    "report",
    "cli",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


OURS = {module_name(p) for p in SOURCES}


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> set[str]:
    """Our own modules a file imports, anywhere in it. A name imported from a package counts as a module if it is one."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return found & OURS


def test_types_and_errors_import_nothing_of_ours():
    assert imports(ROOT / "edgeprune" / "errors.py") == set()
    for path in (ROOT / "edgeprune" / "types").glob("*.py"):
        assert not {m for m in imports(path) if not m.startswith("edgeprune.types.")}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_who_imports_whom(path):
    name, found = module_name(path), imports(path)
    if not name.startswith("edgeprune.cli"):
        assert not {f for f in found if f.startswith("edgeprune.cli")}, "nothing imports cli"
    leaf = next((leaf for leaf in LEAVES if name.startswith(leaf + ".")), None)
    if leaf:
        allowed = BASE | FILE_LAYER | {"edgeprune.divergence"}
        strangers = {f for f in found if f not in allowed and not f.startswith((leaf, "edgeprune.families"))}
        assert not strangers, f"{name} is a leaf and imports {sorted(strangers)}"


@pytest.mark.parametrize("path", [*SOURCES, *sorted(ROOT.glob("tests/*.py"))], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_only_the_command_line_prints(path):
    calls = [n for n in ast.walk(tree(path)) if isinstance(n, ast.Call)]
    assert not [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


def test_lean_imports_load_no_torch():
    heavy = "torch transformers onnxruntime llama_cpp onnx matplotlib"
    code = "import sys\n" + "\n".join(f"import edgeprune.{m}" for m in TORCH_FREE)
    code += f"\nbad = [m for m in {heavy.split()!r} if m in sys.modules]\nassert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


COMMAND = """
import contextlib, io, sys
from edgeprune import cli
sys.argv[1:] = {arguments!r}
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
    cli.main()
for name in sys.modules:
    print(name)
"""


@pytest.mark.parametrize("arguments", [["--version"], ["devices", "m4"], ["--help"]], ids=" ".join)
def test_the_command_line_imports_the_verb_that_is_asked_for(arguments):
    code = COMMAND.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    found = set(done.stdout.split())
    verbs = {m for m in OURS if m.startswith("edgeprune.cli.") and "._" not in m}
    assert verbs & found == (verbs if arguments == ["--help"] else {f"edgeprune.cli.{a}" for a in arguments} & verbs)
    assert not {"numpy", "torch", "transformers"} & found


def test_every_registry_entry_keeps_its_contract():
    from edgeprune.catalog import load_all

    wanted = {
        "edgeprune.families": (
            "MODEL_TYPES",
            "GGUF_ARCH",
            "ATTN",
            "FFN",
            "GLOBALS",
            "LAYER",
            "OUTPUTS",
            "per_layer",
            "decoder",
            "TINY",
        ),
        "edgeprune.metrics": ("SOURCE",),
        "edgeprune.healers": ("SOURCE",),
        "edgeprune.widths": ("SOURCE",),
        "edgeprune.runtimes": ("reads", "version", "quant", "open_session"),
        "exporters": ("SUFFIX", "RUNTIME", "QUANTS", "check", "export"),
    }
    for package, fields in wanted.items():
        modules = load_all(package)
        assert modules
        for name, module in modules.items():
            missing = [f for f in fields if not hasattr(module, f)]
            assert not missing, f"{package}.{name} lacks {missing}"
    for name, module in load_all("edgeprune.widths").items():
        rates = all(hasattr(module, field) for field in ("rate", "SPREAD", "COMPENSATES"))
        assert rates != hasattr(module, "rotation"), f"{name} must have one of rate and rotation"
    for name, module in load_all("edgeprune.metrics").items():
        ways = [way for way in ("rate", "path", "children") if hasattr(module, way)]
        assert len(ways) == 1, f"{name} must have one of rate, path and children"
    ways = [("SCOPES", "BIASES"), ("RECIPE", "OPTIONS", "JUDGE", "prepare")]
    for name, module in load_all("edgeprune.healers").items():
        assert sum(all(hasattr(module, f) for f in way) for way in ways) == 1, f"{name} must have one of {ways}"
