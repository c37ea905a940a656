"""llama.cpp's quantisations: byte-equal to its quantiser run plainly, with importance matrices and from .gguf files."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from _llama import contents, llama, quantise

from edgeprune import devices
from edgeprune.blocks import from_text
from edgeprune.errors import EdgepruneError, InputRejected, OutOfResources, UsageError
from edgeprune.export import export
from edgeprune.gguf_file import read_header
from edgeprune.model import inspect
from edgeprune.plan import make_plan
from edgeprune.prune import prune
from edgeprune.types import Budget
from exporters import Options, gguf

__all__ = ["llama"]  # a fixture
WIDTH, N_BLOCKS = 256, 5
ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
KEPT = {"kept": "0 1:2 4", "blocks_whole": str(N_BLOCKS)}
SOURCES = {"attn": (0, 1, 4), "ffn": (0, 2, 4)}  # what KEPT says, spelt out


def quiet(*_) -> None:
    pass


def random_matrix(n_blocks: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"blk.{i}.{r}.weight": rng.random(WIDTH, np.float32) + 0.01 for i in range(n_blocks) for r in ROLES}


def write_imatrix(path: Path, weights: dict[str, np.ndarray], counts: int = 4) -> Path:
    """llama-imatrix's GGUF (tools/imatrix/imatrix.cpp, save_imatrix), or its older .dat. Powers of two divide exactly."""
    if path.suffix == ".dat":
        out = struct.pack("<i", len(weights))
        for name, v in weights.items():
            out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", counts, v.size)
            out += (v * np.float32(counts)).tobytes()
        path.write_bytes(out + struct.pack("<ii", 8, 5) + b"a.txt")
        return path
    import gguf as gguf_py

    w = gguf_py.GGUFWriter(str(path), "")
    w.add_type("imatrix")
    w.add_array("imatrix.datasets", ["a.txt"])
    w.add_uint32("imatrix.chunk_count", 8)
    w.add_uint32("imatrix.chunk_size", 512)
    for name, v in weights.items():
        w.add_tensor(f"{name}.in_sum2", (v * np.float32(counts))[None])
        w.add_tensor(f"{name}.counts", np.full((1, 1), counts, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


@pytest.fixture(scope="module")
def folder(tiny_folder):
    """Three blocks: what KEPT leaves of five. Rows of 256, so that no type falls back."""
    return tiny_folder("llama", n_blocks=3, hidden_size=WIDTH, intermediate_size=WIDTH, head_dim=64)


@pytest.fixture(scope="module")
def lossless(folder, tmp_path_factory):
    """The same as F32 GGUF that knows where it comes from."""
    out = tmp_path_factory.mktemp("f32") / "f32.gguf"
    gguf.export(folder, out, "F32", KEPT, quiet)
    return out


# --- importance matrices --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quant", "suffix"),
    [("Q2_K_S", ".gguf"), ("Q4_K_M", ".dat"), pytest.param("IQ2_XXS", ".gguf", marks=pytest.mark.slow)],
)
def test_matrix_of_the_whole_model_follows_the_kept_blocks(quant, suffix, folder, lossless, llama, tmp_path):
    """As one made by hand for the pruned model and given to llama.cpp plainly."""
    whole = random_matrix(N_BLOCKS)
    by_hand = {
        f"blk.{new}.{role}.weight": whole[f"blk.{SOURCES[role.split('_')[0]][new]}.{role}.weight"]
        for new in range(3)
        for role in ROLES
    }
    assert quantise(llama[0], lossless, tmp_path / "plain.gguf", quant, by_hand)
    expected = contents(tmp_path / "plain.gguf")
    path = write_imatrix(tmp_path / f"whole{suffix}", whole)
    for source in (folder, lossless):
        out = tmp_path / f"{source.stem}-out.gguf"
        gguf.export(source, out, quant, KEPT, quiet, Options(imatrix=path))
        assert contents(out) == expected
        found = {k: v for k, v in read_header(out).metadata.items() if k.startswith("quantize.")}
        assert found == {
            "quantize.imatrix.file": str(path)[:127],
            "quantize.imatrix.dataset": "a.txt",
            "quantize.imatrix.entries_count": 21,
            "quantize.imatrix.chunks_count": 8,
        }
    own = write_imatrix(tmp_path / f"own{suffix}", by_hand)  # made from the pruned model itself
    gguf.export(folder, tmp_path / "own-out.gguf", quant, KEPT, quiet, Options(imatrix=own))
    assert contents(tmp_path / "own-out.gguf") == expected
    if quant == "Q4_K_M":
        assert quantise(llama[0], lossless, tmp_path / "blind.gguf", quant)
        assert contents(tmp_path / "blind.gguf") != expected, "the matrix made no difference"


def test_unseen_columns_weigh_one(folder, tmp_path):
    weights = random_matrix(3) | {"blk.1.ffn_up.weight": np.ones(WIDTH, np.float32)}
    seen = write_imatrix(tmp_path / "seen.gguf", weights)
    gguf.export(folder, tmp_path / "a.gguf", "Q2_K", {}, quiet, Options(imatrix=seen))
    import gguf as gguf_py

    reader = gguf_py.GGUFReader(seen, "r+")
    for t in reader.tensors:
        if t.name == "blk.1.ffn_up.weight.counts":
            t.data[:] = 0
    del reader
    gguf.export(folder, tmp_path / "b.gguf", "Q2_K", {}, quiet, Options(imatrix=seen))
    assert contents(tmp_path / "a.gguf") == contents(tmp_path / "b.gguf")


def test_halves_left_out_need_no_matrix(tiny_folder, tmp_path):
    """A block without feed-forward carries zeros that no matrix knows; one without attention has nothing to weigh."""
    from test_sizes import without_halves

    sizes = dict(n_blocks=3, hidden_size=WIDTH, intermediate_size=WIDTH, head_dim=64)
    folder, kept = shutil.copytree(tiny_folder("llama", **sizes), tmp_path / "folder"), "0 1:- -:3"
    without_halves(folder, kept, "llama")
    path = write_imatrix(tmp_path / "whole.gguf", random_matrix(7))
    origin = json.loads((folder / "edgeprune.json").read_text())
    origin = {k: str(v) for k, v in origin.items()}
    gguf.check(folder, "Q2_K_S", Options(imatrix=path))
    gguf.export(folder, tmp_path / "out.gguf", "Q2_K_S", origin, quiet, Options(imatrix=path))
    header = read_header(tmp_path / "out.gguf")
    assert header.tensors["blk.0.ffn_up.weight"].type == header.tensors["blk.1.ffn_up.weight"].type == "Q2_K"


def wrong_matrices() -> dict[str, tuple]:
    short = {k: v[:128] if k == "blk.2.ffn_up.weight" else v for k, v in random_matrix(3).items()}
    gap = {k: v for k, v in random_matrix(3).items() if k != "blk.1.attn_q.weight"}
    nan = random_matrix(3) | {"blk.0.attn_k.weight": np.full(WIDTH, np.nan, np.float32)}
    return {
        "other depth": (random_matrix(4), r"4 blocks, this one has 3 \(5 before pruning\)"),
        "other width": (short, "128 values for blk.2.ffn_up.weight, which has 256"),
        "entry missing": (gap, "no entry for blk.1.attn_q.weight"),
        "not finite": (nan, "blk.0.attn_k.weight has values that are no mean squares"),
        "negative": ({k: -v for k, v in random_matrix(3).items()}, "no mean squares"),
    }


@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
@pytest.mark.parametrize("case", wrong_matrices())
def test_matrix_of_another_model(case, suffix, lossless, tmp_path):
    weights, told = wrong_matrices()[case]
    path = write_imatrix(tmp_path / f"m{suffix}", weights)
    with pytest.raises(InputRejected, match=told):
        gguf.check(lossless, "IQ2_M", Options(imatrix=path))
    if case == "entry missing":
        gguf.check(lossless, "Q4_K_M", Options(imatrix=path))


def test_damaged_matrix(lossless, tmp_path):
    good = {s: write_imatrix(tmp_path / f"m{s}", random_matrix(3)).read_bytes() for s in (".gguf", ".dat")}
    bad = {f"{s} cut at {n}": data[:n] for s, data in good.items() for n in (0, 3, 100, len(data) - 40)}
    bad |= {"text": b"hello, world, this is no matrix", "long name": struct.pack("<ii", 1, 1 << 30) + bytes(64)}
    bad["a model"] = lossless.read_bytes()
    for what, data in bad.items():
        path = tmp_path / "bad"
        path.write_bytes(data)
        with pytest.raises(InputRejected) as e:
            gguf.check(lossless, "Q4_K_M", Options(imatrix=path))
        assert "\n" not in str(e.value) and str(path) in str(e.value), what
    with pytest.raises(InputRejected, match="No such file"):
        gguf.check(lossless, "Q4_K_M", Options(imatrix=tmp_path / "none"))


@pytest.mark.parametrize("quant", ["IQ1_S", "IQ2_M", "IQ3_XXS", "Q2_K_S"])
def test_said_before_work_when_a_matrix_is_missing(quant, folder, tmp_path):
    with pytest.raises(UsageError, match=f"{quant} needs an importance matrix: pass --imatrix"):
        export(folder, "gguf", quant, tmp_path / "out.gguf", verify=False)
    assert not list(tmp_path.iterdir())


def test_where_a_matrix_is_of_no_use(folder, tmp_path):
    with pytest.raises(UsageError, match="Q8_0 has no use for an importance matrix"):
        gguf.check(folder, "Q8_0", Options(imatrix=tmp_path / "m.gguf"))


def test_unknown_quantisation(folder, tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'q4_k_m'"):
        export(folder, "gguf", "Q4KM", tmp_path / "out.gguf", verify=False)
    with pytest.raises(UsageError, match="Known: F32"):
        gguf.check(folder, "NVFP4", Options())


def test_rows_that_fit_no_type(tiny_folder):
    with pytest.raises(InputRejected, match="Q1_0 needs rows of a multiple of 128, blk.0.attn_q.weight has 64"):
        gguf.check(tiny_folder("llama", hidden_size=64), "Q1_0")


# --- from a .gguf ---------------------------------------------------------------------------------


@pytest.mark.parametrize("quant", ["F16", "Q8_0", "Q3_K_L", "IQ4_XS", "TQ2_0"])
def test_gguf_to_gguf(quant, lossless, llama, tmp_path):
    gguf.export(lossless, tmp_path / "out.gguf", quant, {}, quiet)
    assert quantise(llama[0], lossless, tmp_path / "plain.gguf", quant)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()
    assert read_header(tmp_path / "out.gguf").metadata["edgeprune.kept"] == KEPT["kept"]


def test_a_second_rounding_is_told(lossless, tmp_path):
    once = tmp_path / "once.gguf"
    gguf.export(lossless, once, "Q4_0", {}, quiet)
    assert gguf.notes(lossless, "Q4_K_M") == []
    (note,) = gguf.notes(once, "Q4_K_M")
    assert "quantised already (Q4_0)" in note and "second time" in note
    assert "keeps its rounding" in gguf.notes(once, "F16")[0]
    gguf.export(once, tmp_path / "twice.gguf", "Q8_0", {"base_model": "x"}, quiet)
    header = read_header(tmp_path / "twice.gguf")
    assert header.tensors["blk.0.attn_q.weight"].type == "Q8_0" and header.metadata["edgeprune.base_model"] == "x"


def test_split_source(lossless, tmp_path):
    """Any part opens all of it; the result is one file."""
    import gguf as gguf_py

    reader = gguf_py.GGUFReader(lossless)
    writer = gguf_py.GGUFWriter(str(tmp_path / "s.gguf"), "llama", split_max_tensors=12)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind, sub = field.types[0], field.types[-1]
            writer.add_key_value(
                field.name, field.contents(), kind, sub if kind == gguf_py.GGUFValueType.ARRAY else None
            )
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("s-*.gguf"))
    assert len(parts) > 1
    gguf.export(lossless, tmp_path / "one.gguf", "Q4_K_M", {}, quiet)
    for part in (parts[0], parts[-1]):
        gguf.export(part, tmp_path / "joined.gguf", "Q4_K_M", {}, quiet)
        assert contents(tmp_path / "joined.gguf") == contents(tmp_path / "one.gguf")
        assert not any(k.startswith("split.") for k in read_header(tmp_path / "joined.gguf").metadata)


def test_no_torch_is_loaded(lossless, tmp_path):
    code = f"""if True:
        import sys
        from pathlib import Path
        from exporters import gguf
        gguf.export(Path({str(lossless)!r}), Path({str(tmp_path / "o.gguf")!r}), "Q4_K_M", {{}}, lambda *a: None)
        assert not {{"torch", "transformers"}} & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_interrupt_and_full_disk(lossless, tmp_path):
    def stop(what: str, fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gguf.export(lossless, tmp_path / "o.gguf", "Q4_K_M", {}, stop)
    code = f"""if True:
        import resource
        from pathlib import Path
        from edgeprune.errors import OutOfResources
        from exporters import gguf
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            gguf.export(Path({str(lossless)!r}), Path({str(tmp_path / "f.gguf")!r}), "Q8_0", {{}}, lambda *a: None)
        except OutOfResources as e:
            raise SystemExit({OutOfResources.exit_code})"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == OutOfResources.exit_code
    with pytest.raises(EdgepruneError, match="127 at most"):
        gguf.export(lossless, tmp_path / "o.gguf", "Q4_K_M", {"note": "x" * 128}, quiet)


# --- the real model, and the real tool ------------------------------------------------------------


@pytest.fixture(scope="module")
def pruned_smollm2(smollm2_folder, tmp_path_factory):
    """SmolLM2 of four blocks, one of them a seam, as folder and F32 GGUF: few, for IQ types take a second per block."""
    base = tmp_path_factory.mktemp("pruned")
    spec = inspect(smollm2_folder)
    plan = make_plan(spec, None, devices.load("m2"), Budget()).model_copy(update={"blocks": from_text("0 3:5 14 29")})
    prune(smollm2_folder, spec, plan, base / "folder", base_model="x", command="x")
    gguf.export(base / "folder", base / "f32.gguf", "F32", {}, quiet)
    return base


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_L"])
def test_pruned_smollm2_is_what_llama_cpp_makes(quant, pruned_smollm2, llama, tmp_path):
    """So decoding is as fast: the tensors are the same bytes."""
    gguf.export(pruned_smollm2 / "folder", tmp_path / "out.gguf", quant, {}, quiet)
    assert quantise(llama[0], pruned_smollm2 / "f32.gguf", tmp_path / "plain.gguf", quant, nthread=0)
    assert contents(tmp_path / "out.gguf") == contents(tmp_path / "plain.gguf")


TOOL = os.environ.get("EDGEPRUNE_LLAMA_QUANTIZE")


@pytest.mark.slow
@pytest.mark.skipif(not TOOL, reason="EDGEPRUNE_LLAMA_QUANTIZE names no llama-quantize")
@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
def test_equals_llama_quantize(suffix, lossless, tmp_path):
    """The whole file, metadata included."""
    path = write_imatrix(tmp_path / f"m{suffix}", random_matrix(3), counts=6)
    for quant in ("IQ2_M", "Q4_0"):
        ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
        gguf.export(lossless, ours, quant, {}, quiet, Options(imatrix=path))
        subprocess.run([TOOL, "--imatrix", path, lossless, theirs, quant], check=True, capture_output=True)
        assert contents(ours) == contents(theirs)
        assert read_header(ours).metadata == read_header(theirs).metadata
