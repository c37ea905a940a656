"""The header reader against hostile bytes, and against gguf-py on a real file."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeprune.errors import InputRejected
from edgeprune.gguf_file import FILE_TYPES, GGML_TYPES, Omitted, file_type, read_header, tensor_samples

U8, U32, F32, BOOL, STR, ARR, U64 = 0, 4, 6, 7, 8, 9, 10
HUGE = 2**63


def text(s: str | bytes) -> bytes:
    raw = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(raw)) + raw


def kv(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, n: int, body: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, n) + body


def tensor(name: str | bytes, ne: tuple[int, ...], kind: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    dims = struct.pack("<I", len(ne) if n_dims is None else n_dims) + struct.pack(f"<{len(ne)}Q", *ne)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


ARCH = kv("general.architecture", STR, text("llama"))
A = tensor("a", (8, 2))


def gguf(
    keys=(ARCH,), tensors=(A,), data: bytes = bytes(64), version: int = 3, magic: bytes = b"GGUF",
    n_tensors: int | None = None, n_keys: int | None = None, pad: int = 32,
) -> bytes:  # fmt: skip
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    head = magic + struct.pack("<IQQ", version, n_tensors, len(keys) if n_keys is None else n_keys)
    head += b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % pad) + data


def two(offset: int) -> tuple[bytes, bytes]:
    return tensor("a", (8, 2)), tensor("b", (8, 2), 0, offset)


BAD = {
    "empty": b"",
    "four bytes": b"GGUF",
    "23 bytes": gguf()[:23],
    "wrong magic": gguf(magic=b"GGML"),
    "zip": b"PK\x03\x04" + bytes(100),
    "version 0": gguf(version=0),
    "version 1": gguf(version=1),
    "version 4": gguf(version=4),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(200),
    "2^63 tensors": gguf(n_tensors=HUGE),
    "2^63 keys": gguf(n_keys=HUGE),
    "a million tensors": gguf(n_tensors=10**6, data=bytes(4096)),
    "one tensor more than there is": gguf(n_tensors=2),
    "no tensors": gguf(tensors=()),
    "key of 2^63 bytes": gguf(keys=(struct.pack("<Q", HUGE) + b"x",)),
    "key of 100 kB": gguf(keys=(kv("k" * 100_000, U8, b"\1"),)),
    "empty key": gguf(keys=(kv("", U8, b"\1"),)),
    "key with NUL": gguf(keys=(kv("a\0b", U8, b"\1"),)),
    "key not UTF-8": gguf(keys=(kv(b"\xff\xfe", U8, b"\1"),)),
    "duplicate key": gguf(keys=(ARCH, ARCH)),
    "value type 13": gguf(keys=(kv("k", 13, bytes(8)),)),
    "value type 2^31": gguf(keys=(kv("k", 2**31, bytes(8)),)),
    "text of 2^63 bytes": gguf(keys=(kv("k", STR, struct.pack("<Q", HUGE)),)),
    "text past the end": gguf(keys=(kv("k", STR, struct.pack("<Q", 5000)),)),
    "truth value 7": gguf(keys=(kv("k", BOOL, b"\7"),)),
    "array of 2^63 bytes": gguf(keys=(kv("k", ARR, array(U8, HUGE)),)),
    "array of 2^61 numbers": gguf(keys=(kv("k", ARR, array(U64, 2**61)),)),
    "array of 2^63 texts": gguf(keys=(kv("k", ARR, array(STR, HUGE)),)),
    "array of 10^9 texts": gguf(keys=(kv("k", ARR, array(STR, 10**9)),)),
    "array of arrays": gguf(keys=(kv("k", ARR, array(ARR, 1, array(U8, 1, b"\1"))),)),
    "array of type 99": gguf(keys=(kv("k", ARR, array(99, 1, b"\1")),)),
    "array text past the end": gguf(keys=(kv("k", ARR, array(STR, 2, text("a") + struct.pack("<Q", HUGE))),)),
    "long array text past the end": gguf(
        keys=(kv("k", ARR, array(STR, 2000, text("a") * 1999 + struct.pack("<Q", HUGE))),)
    ),
    "alignment 0": gguf(keys=(kv("general.alignment", U32, struct.pack("<I", 0)),)),
    "alignment 48": gguf(keys=(kv("general.alignment", U32, struct.pack("<I", 48)),)),
    "alignment as text": gguf(keys=(kv("general.alignment", STR, text("32")),)),
    "alignment true": gguf(keys=(kv("general.alignment", BOOL, b"\1"),)),
    "alignment 2^31": gguf(keys=(kv("general.alignment", U32, struct.pack("<I", 2**31)),)),
    "second part of two": gguf(keys=(kv("split.count", 2, struct.pack("<H", 2)),)),
    "tensor name empty": gguf(tensors=(tensor("", (8, 2)),)),
    "tensor name of 64 bytes": gguf(tensors=(tensor("n" * 64, (8, 2)),)),
    "tensor name with NUL": gguf(tensors=(tensor("a\0", (8, 2)),)),
    "tensor name not UTF-8": gguf(tensors=(tensor(b"\xc3\x28", (8, 2)),)),
    "tensor name of 2^63 bytes": gguf(tensors=(struct.pack("<Q", HUGE) + bytes(40),)),
    "0 dimensions": gguf(tensors=(tensor("a", (), n_dims=0),)),
    "5 dimensions": gguf(tensors=(tensor("a", (2, 2, 2, 2, 2)),)),
    "2^31 dimensions": gguf(tensors=(tensor("a", (8, 2), n_dims=2**31),)),
    "dimension 0": gguf(tensors=(tensor("a", (0, 2)),)),
    "dimension 2^63": gguf(tensors=(tensor("a", (HUGE, 2)),)),
    "product wraps 2^64": gguf(tensors=(tensor("a", (2**32, 2**32)),)),
    "product wraps to 16": gguf(tensors=(tensor("a", (16, 2**62, 4)),)),
    "type 4, withdrawn": gguf(tensors=(tensor("a", (32, 1), 4),)),
    "type 31, withdrawn": gguf(tensors=(tensor("a", (32, 1), 31),)),
    "type 2^31": gguf(tensors=(tensor("a", (8, 2), 2**31),)),
    "row not of whole blocks": gguf(tensors=(tensor("a", (33, 2), 8),)),
    "duplicate tensor": gguf(tensors=(tensor("a", (8, 2)), tensor("a", (8, 2), 0, 64)), data=bytes(128)),
    "overlap": gguf(tensors=two(32), data=bytes(128)),
    "same place": gguf(tensors=two(0), data=bytes(128)),
    "hole": gguf(tensors=two(128), data=bytes(256)),
    "misaligned": gguf(tensors=two(65), data=bytes(256)),
    "offset 2^63": gguf(tensors=(tensor("a", (8, 2), 0, HUGE),)),
    "offset wraps": gguf(tensors=(tensor("a", (8, 2), 0, 2**64 - 32),)),
    "first tensor not at the start": gguf(tensors=(tensor("a", (8, 2), 0, 32),), data=bytes(128)),
    "data one byte short": gguf(data=bytes(63)),
    "no data": gguf(data=b""),
}


def refused(path) -> str:
    with pytest.raises(InputRejected) as e:
        read_header(path)
    message = str(e.value)
    assert message.count("\n") == 0 and len(message) < 600
    return message


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path, name):
    path = tmp_path / "bad.gguf"
    path.write_bytes(BAD[name])
    start = time.perf_counter()
    message = refused(path)
    assert str(path) in message
    assert time.perf_counter() - start < 1


def test_the_plain_file_the_bad_ones_derive_from_is_read(tmp_path):
    path = tmp_path / "good.gguf"
    path.write_bytes(gguf(data=bytes(range(64))))
    header = read_header(path)
    assert header.metadata == {"general.architecture": "llama"}
    assert header.tensors["a"] == ("F32", (2, 8), header.data_offset, 64, path)
    assert header.weight_bytes == 64 and header.version == 3
    assert list(tensor_samples(header, 4)) == [("a", "F32", (2, 8), bytes([30, 31, 32, 33]))]
    assert file_type(header) == "unknown"


def rich() -> bytes:
    keys = (
        ARCH,
        kv("general.file_type", U32, struct.pack("<I", 15)),
        kv("x.flag", BOOL, b"\1"),
        kv("x.f", F32, struct.pack("<f", 0.5)),
        kv("x.texts", ARR, array(STR, 3, text("a") + text("") + text("é"))),
        kv("x.numbers", ARR, array(5, 2, struct.pack("<ii", -1, 7))),
        kv("general.alignment", U32, struct.pack("<I", 64)),
    )
    tensors = (tensor("one", (32, 3), 8), tensor("two", (5,), 0, 128))
    return gguf(keys, tensors, bytes(128 + 20), pad=64)


def test_values_and_block_types(tmp_path):
    path = tmp_path / "rich.gguf"
    path.write_bytes(rich())
    header = read_header(path)
    assert header.metadata["x.texts"] == ("a", "", "é") and header.metadata["x.numbers"] == (-1, 7)
    assert header.metadata["x.flag"] is True and header.metadata["x.f"] == 0.5
    assert header.alignment == 64 and file_type(header) == "Q4_K_M"
    assert header.tensors["one"].n_bytes == 102 and header.tensors["two"].offset == header.data_offset + 128


def test_truncation_at_every_byte_is_refused(tmp_path):
    whole, path = rich(), tmp_path / "cut.gguf"
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        refused(path)
    path.write_bytes(whole)
    read_header(path)


def test_flipped_header_bits_are_refused_or_read_without_surprise(tmp_path):
    """Some flips only change a value; none may raise anything but InputRejected, or point outside the file."""
    whole, path = rich(), tmp_path / "flip.gguf"
    for bit in range(8 * (len(whole) - 148)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            header = read_header(path, arrays=True)
        except InputRejected:
            continue
        assert all(t.offset + t.n_bytes <= len(whole) for t in header.tensors.values())


@pytest.mark.parametrize("what", ["folder", "missing", "pipe"])
def test_what_is_not_a_file(tmp_path, what):
    path = tmp_path / "x.gguf"
    if what == "folder":
        path.mkdir()
    if what == "pipe":
        os.mkfifo(path)
    refused(path)


@pytest.mark.parametrize("what", ["texts", "numbers", "zeros", "keys"])
def test_large_hostile_files_stay_cheap(tmp_path, what):
    """Sparse gigabytes that make the claims plausible: still under 2 s of processor time and 300 MB."""
    claims = {
        "texts": kv("k", ARR, array(STR, 2**30)),
        "numbers": kv("k", ARR, array(U64, 2**30)),
        "zeros": kv("k", ARR, array(STR, 1_900_000)),
        "keys": b"",
    }
    path = tmp_path / "big.gguf"
    head = gguf(keys=(claims[what],), tensors=(), data=b"", n_tensors=60_000, n_keys=60_000 if what == "keys" else 1)
    with open(path, "wb") as f:
        f.write(head)
        f.truncate(16 << 30)
    code = (
        "import sys, time\n"
        "from edgeprune.gguf_file import read_header\nfrom edgeprune.errors import InputRejected\n"
        "t = time.process_time()\ntry:\n    read_header(sys.argv[1])\nexcept InputRejected as e:\n"
        "    peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "    print(time.process_time() - t, peak)\n"
    )
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout.split()
    assert float(out[0]) < 2 and int(out[1]) < 300_000


def test_block_sizes_and_names_agree_with_ggml():
    """Asked of the library that llama.cpp computes with; file types of gguf-py, which knows all but the newest."""
    import ctypes

    import gguf as reference
    import llama_cpp

    path = min((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base*"), key=lambda p: len(p.name))
    ggml = ctypes.CDLL(path)
    ggml.ggml_type_name.restype, ggml.ggml_blck_size.restype = ctypes.c_char_p, ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    for number, (name, block, n_bytes) in GGML_TYPES.items():
        found = (ggml.ggml_type_name(number), ggml.ggml_blck_size(number), ggml.ggml_type_size(number))
        assert (found[0].decode().upper(), *found[1:]) == (name, block, n_bytes)
    known = {kind.value: kind.name.split("_", 1)[-1] for kind in reference.LlamaFileType}
    for number, name in FILE_TYPES.items():
        assert known.get(number, "Q2_0") == name


@pytest.mark.slow
def test_real_file_agrees_with_gguf_py(smollm2_gguf):
    import gguf as reference

    start = time.perf_counter()
    quick = read_header(smollm2_gguf)
    assert time.perf_counter() - start < 1
    full = read_header(smollm2_gguf, arrays=True)
    reader = reference.GGUFReader(smollm2_gguf)
    theirs = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    ours = {k: list(v) if isinstance(v, tuple) else v for k, v in full.metadata.items()}
    assert ours == theirs
    assert quick.metadata["tokenizer.ggml.tokens"] == Omitted(49152)
    assert full.tensors == quick.tensors and list(full.tensors) == [t.name for t in reader.tensors]
    for t in reader.tensors:
        mine = full.tensors[t.name]
        assert mine == (t.tensor_type.name, tuple(map(int, t.shape[::-1])), t.data_offset, t.n_bytes, smollm2_gguf)
    assert file_type(full) == "Q4_1"
    samples = {name: raw for name, _, _, raw in tensor_samples(quick)}
    data = smollm2_gguf.read_bytes()
    mid = full.tensors["output_norm.weight"]
    start = mid.offset + (mid.n_bytes - 64) // 2
    assert samples["output_norm.weight"] == data[start : start + 64] and len(samples) == 272


@pytest.mark.parametrize("cut", [0.3, 0.9, 0.999999])
def test_truncated_real_file_is_refused(smollm2_gguf, tmp_path, cut):
    path = tmp_path / "cut.gguf"
    data = smollm2_gguf.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    assert "truncated" in refused(path)


def write_parts(folder, n_tensors=(1, 2, 1), name="m", **changes):
    """A split model of tensors a, b, c …; changes: {"no", "count", "total"} of part 2, as written."""
    paths, letters = [], iter("abcdefgh")
    for i, n in enumerate(n_tensors):
        no, count, total = i, len(n_tensors), sum(n_tensors)
        if i == 1:
            no, count = changes.get("no", no), changes.get("count", count)
        if i == 0:
            total = changes.get("total", total)
        keys = (
            *((ARCH,) if i == 0 else ()), kv("split.no", 2, struct.pack("<H", no)),
            kv("split.count", 2, struct.pack("<H", count)), kv("split.tensors.count", 5, struct.pack("<i", total)),
        )  # fmt: skip
        named = [tensor(next(letters), (8, 2), 0, 64 * k) for k in range(n)]
        paths.append(folder / f"{name}-{i + 1:05d}-of-{len(n_tensors):05d}.gguf")
        paths[-1].write_bytes(gguf(keys, named, bytes([i]) * 64 * n))
    return paths


def test_any_part_opens_the_whole_split_model(tmp_path):
    paths = write_parts(tmp_path, (0, 2, 1))  # llama-gguf-split --no-tensor-first-split
    for path in paths:
        header = read_header(path)
        assert header.paths == tuple(paths) and header.metadata["general.architecture"] == "llama"
        assert {name: t.path for name, t in header.tensors.items()} == {"a": paths[1], "b": paths[1], "c": paths[2]}
        assert header.size == sum(p.stat().st_size for p in paths) and header.weight_bytes == 192
        assert [raw[0] for *_, raw in tensor_samples(header)] == [1, 1, 2]


def test_a_split_model_counts_as_one_artifact(tmp_path):
    from edgeprune.files import sha256_tree, tree_bytes

    paths = write_parts(tmp_path)
    assert {tree_bytes(p) for p in paths} == {sum(p.stat().st_size for p in paths)}
    before = sha256_tree(paths[0])
    assert sha256_tree(paths[2]) == before
    data = bytearray(paths[2].read_bytes())
    data[-1] ^= 1
    paths[2].write_bytes(data)
    assert sha256_tree(paths[0]) != before


@pytest.mark.parametrize("what, words", [
    ("missing", "is missing"), ("renamed", "name should end in"), ("swapped", "not part 2 of 3"),
    ("another count", "part 2 of 4 by its metadata"), ("another total", "hold 4 tensors, 5 were split"),
    ("surplus", "tensor 'a' is in an earlier part"), ("number as text", "not a number of parts"),
])  # fmt: skip
def test_parts_that_do_not_belong_together(tmp_path, what, words):
    changes = {"another count": {"count": 4}, "another total": {"total": 5}}.get(what, {})
    paths = write_parts(tmp_path, **changes)
    asked = paths[0]
    if what == "missing":
        paths[1].unlink()
    elif what == "renamed":
        asked = paths[0].rename(tmp_path / "model.gguf")
    elif what == "swapped":
        paths[1].rename(tmp_path / "x")
        paths[2].rename(paths[1])
        (tmp_path / "x").rename(paths[2])
    elif what == "surplus":
        other = write_parts(tmp_path, (1, 2, 1), name="other")
        keys = [
            kv("split.no", 2, b"\1\0"),
            kv("split.count", 2, b"\3\0"),
            kv("split.tensors.count", 5, struct.pack("<i", 4)),
        ]
        paths[1].write_bytes(gguf(keys, [tensor("a", (8, 2))]))
        assert read_header(other[0]).paths == tuple(other)
    elif what == "number as text":
        asked.write_bytes(gguf((ARCH, kv("split.count", STR, text("3")))))
    assert words in refused(asked)
