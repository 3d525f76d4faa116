"""A GGUF file is read exactly, or refused in one line: never guessed at."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_maker import Row, array, gguf_bytes, pair, refusal, text, u32
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.ggml_types import GGML_TYPES
from engine.gguf_file import open_gguf

TYPES = sorted(gguf.GGML_QUANT_SIZES, key=int)


def refusal_of(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    return refusal(path)


def write_model(path: Path) -> None:
    """A file with every kind of metadata value and every tensor type, by the reference writer."""
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -100)
    writer.add_uint16("a.u16", 60000)
    writer.add_int16("a.i16", -30000)
    writer.add_uint32("a.u32", 4_000_000_000)
    writer.add_int32("a.i32", -2_000_000_000)
    writer.add_uint64("a.u64", 2**63 + 1)
    writer.add_int64("a.i64", -(2**62))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 1e300)
    writer.add_bool("a.bool", True)
    writer.add_string("a.str", "Grüße, 世界 🦙")
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.floats", [0.25, -4.0])
    writer.add_array("a.bools", [True, False, True])
    writer.add_array("a.words", ["", "é", "🦙", "plain"])
    for kind in TYPES:
        _, size = gguf.GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, (3, 2 * size), np.uint8)
        writer.add_tensor(f"t.{kind.name}", raw, raw_dtype=kind)
    writer.add_tensor("vector", np.arange(5, dtype=np.float32))
    writer.add_tensor("cube", rng.standard_normal((2, 3, 4)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_model(path)
    return path


# --- what is written is what is read ------------------------------------------------------------


def test_metadata_round_trips_through_the_reference_writer(model: Path) -> None:
    metadata = open_gguf(model).metadata
    scalars = {
        "general.architecture": "llama",
        "a.u8": 200,
        "a.i8": -100,
        "a.u16": 60000,
        "a.i16": -30000,
        "a.u32": 4_000_000_000,
        "a.i32": -2_000_000_000,
        "a.u64": 2**63 + 1,
        "a.i64": -(2**62),
        "a.f32": 0.5,
        "a.f64": 1e300,
        "a.bool": True,
        "a.str": "Grüße, 世界 🦙",
        "a.words": ["", "é", "🦙", "plain"],
    }
    arrays = {"a.ints": [1, -2, 3], "a.floats": [0.25, -4.0], "a.bools": [True, False, True]}
    assert {key: metadata[key] for key in scalars} == scalars
    assert metadata["a.bool"] is True
    for key, value in arrays.items():
        assert isinstance(metadata[key], np.ndarray) and metadata.list(key) == value
        assert not metadata[key].flags.writeable
    assert metadata["a.bools"].dtype == np.bool_


def test_tensors_agree_with_the_reference_reader(model: Path) -> None:
    ours = open_gguf(model).tensors
    theirs = gguf.GGUFReader(model).tensors
    assert list(ours) == [tensor.name for tensor in theirs]
    for tensor in theirs:
        mine = ours[tensor.name]
        assert mine.name == tensor.name and mine.type == tensor.tensor_type.name
        assert mine.shape == tuple(int(dim) for dim in reversed(tensor.shape))
        assert mine.data.dtype == np.uint8 and mine.data.tobytes() == tensor.data.tobytes()


def test_every_ggml_type_is_accepted(model: Path) -> None:
    types = {tensor.type for tensor in open_gguf(model).tensors.values()}
    assert types == set(gguf.GGMLQuantizationType.__members__)
    for kind, (block, nbytes) in gguf.GGML_QUANT_SIZES.items():
        assert GGML_TYPES[int(kind)] == (kind.name, block, nbytes)


def test_data_is_a_read_only_view_of_rows(model: Path) -> None:
    tensors = open_gguf(model).tensors
    assert tensors["vector"].data.shape == (1, 20)
    assert tensors["cube"].shape == (2, 3, 4) and tensors["cube"].data.shape == (6, 8)
    assert tensors["t.Q4_K"].data.shape == (3, 288)
    for tensor in tensors.values():
        assert not tensor.data.flags.writeable and not tensor.data.flags.owndata


def test_version_2_reads_like_version_3(tmp_path: Path) -> None:
    for version in (2, 3):
        path = tmp_path / f"v{version}.gguf"
        path.write_bytes(gguf_bytes([u32("k", 5)], [Row()], bytes(32), version=version))
        assert open_gguf(path).metadata.int("k") == 5


def test_alignment_of_the_file_places_the_data(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.float32).tobytes()
    for alignment in (8, 64, 4096):
        content = gguf_bytes(
            [u32("general.alignment", alignment)], [Row()], values, alignment=alignment
        )
        path = tmp_path / f"{alignment}.gguf"
        path.write_bytes(content)
        assert open_gguf(path).tensors["t"].data.tobytes() == values


def test_a_large_vocabulary_parses_in_well_under_a_second(tmp_path: Path) -> None:
    count = 262_144
    words = b"".join(text(f"token{i}") for i in range(count))
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(gguf_bytes([array("tokens", "str", count, words)]))
    start = time.perf_counter()
    assert open_gguf(path).metadata["tokens"][-1] == f"token{count - 1}"
    assert time.perf_counter() - start < 1.0


# --- every refusal has its line -----------------------------------------------------------------


def test_paths_that_are_no_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    os.mkfifo(tmp_path / "pipe.gguf")
    assert "is empty" in refusal(tmp_path / "empty.gguf")
    assert "not a regular file" in refusal(tmp_path / "pipe.gguf")
    assert "No such file" in refusal(tmp_path / "missing.gguf")
    assert "a directory" in refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser reads everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.gguf"
    path.touch(mode=0)
    assert "Permission denied" in refusal(path)


F32, Q8_0 = 0, 8
REFUSALS: dict[str, tuple[bytes, str]] = {
    "magic": (gguf_bytes(magic=b"GGML"), "starts with b'GGML', expected b'GGUF'"),
    "version 1": (gguf_bytes(version=1), "GGUF version 1, supported are 2 and 3"),
    "version 4": (gguf_bytes(version=4), "GGUF version 4"),
    "big-endian": (gguf_bytes(version=0x03000000), "big-endian"),
    "tensor count": (gguf_bytes(n_tensors=2**63), f"{2**63} tensors announced"),
    "pair count": (gguf_bytes(n_pairs=2**64 - 1), f"{2**64 - 1} metadata keys announced"),
    "key length": (
        gguf_bytes([struct.pack("<Q", 2**60) + bytes(9)]),
        f"a string of a metadata key needs {2**60} bytes",
    ),
    "key not UTF-8": (gguf_bytes([pair(b"\xff", "bool", b"\0")]), "is not UTF-8"),
    "string length": (
        gguf_bytes([pair("k", "str", struct.pack("<Q", 2**64 - 1))]),
        "metadata key 'k' needs",
    ),
    "string not UTF-8": (gguf_bytes([pair("k", "str", text(b"\xc3("))]), "'k' is not UTF-8"),
    "string array not UTF-8": (
        gguf_bytes([array("k", "str", 2, text("a") + text(b"\x80"))]),
        "'k' is not UTF-8",
    ),
    "value type": (gguf_bytes([pair("k", 13, bytes(8))]), "'k' has value type 13"),
    "boolean": (gguf_bytes([pair("k", "bool", b"\2")]), "'k' is 2, expected 0 or 1"),
    "boolean array": (gguf_bytes([array("k", "bool", 2, b"\1\3")]), "'k' holds 3"),
    "duplicate key": (gguf_bytes([u32("k", 1), u32("k", 1)]), "'k' appears twice"),
    "array type": (gguf_bytes([array("k", 99, 1, bytes(8))]), "array of value type 99"),
    "nested array": (
        gguf_bytes([array("k", "array", 1, struct.pack("<IQ", 4, 0))]),
        "array of arrays",
    ),
    "array length": (
        gguf_bytes([array("k", "u32", 2**62, bytes(8))]),
        f"'k' announces {2**62} elements",
    ),
    "string array length": (
        gguf_bytes([array("k", "str", 2**40, text("a"))]),
        f"'k' announces {2**40} elements",
    ),
    "alignment zero": (gguf_bytes([u32("general.alignment", 0)]), "alignment is 0, expected"),
    "alignment not a power of two": (
        gguf_bytes([u32("general.alignment", 48)]),
        "alignment is 48, expected",
    ),
    "alignment not an integer": (
        gguf_bytes([pair("general.alignment", "str", text("32"))]),
        "expected an integer",
    ),
    "no dimensions": (gguf_bytes(rows=[Row(dims=())], data=bytes(64)), "has 0 dimensions"),
    "five dimensions": (gguf_bytes(rows=[Row(dims=(1,) * 5)], data=bytes(64)), "has 5 dimensions"),
    "zero dimension": (gguf_bytes(rows=[Row(dims=(8, 0))]), "shape [0, 8], expected positive"),
    "product overflows": (
        gguf_bytes(rows=[Row(dims=(2**62, 2**62, 4, 4))], data=bytes(64)),
        "truncated: tensor 't'",
    ),
    "tensor type": (gguf_bytes(rows=[Row(type=4)], data=bytes(64)), "unknown ggml type 4, known"),
    "block size": (
        gguf_bytes(rows=[Row(dims=(40,), type=Q8_0)], data=bytes(64)),
        "has 40 columns, Q8_0 needs a multiple of 32",
    ),
    "offset unaligned": (
        gguf_bytes(rows=[Row(offset=4)], data=bytes(64)),
        "offset 4, expected a multiple of 32",
    ),
    "offset beyond the file": (gguf_bytes(rows=[Row(offset=2**63)], data=bytes(64)), "truncated"),
    "tensor past the end": (gguf_bytes(rows=[Row(dims=(9,))], data=bytes(32)), "truncated"),
    "overlap": (
        gguf_bytes(rows=[Row("a", (16,)), Row("b", (8,), offset=32)], data=bytes(64)),
        "'a' and 'b' overlap",
    ),
    "duplicate tensor": (
        gguf_bytes(rows=[Row("a"), Row("a", offset=32)], data=bytes(64)),
        "'a' appears twice",
    ),
    "tensor name not UTF-8": (gguf_bytes(rows=[Row(b"\xfe")], data=bytes(64)), "is not UTF-8"),
    "name with newlines": (gguf_bytes(rows=[Row("a\nb" * 99, type=99)]), "unknown ggml type 99"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_format_does_not_allow_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, expected = REFUSALS[name]
    assert expected in refusal_of(tmp_path, content)


# --- damage -------------------------------------------------------------------------------------

VALID = gguf_bytes(
    [
        u32("general.alignment", 32),
        pair("name", "str", text("né")),
        pair("flag", "bool", b"\1"),
        array("words", "str", 3, text("a") + text("") + text("bcd")),
        array("numbers", "f32", 2, struct.pack("<2f", 1.0, 2.0)),
    ],
    [Row("a", (8, 2)), Row("b", (32,), Q8_0, 64), Row("c", (2, 2, 2), F32, 128)],
    bytes(160),
)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(VALID)
    assert len(open_gguf(path).tensors) == 3
    for size in reversed(range(len(VALID))):
        os.truncate(path, size)
        refusal(path)


def opened_or_refused(path: Path, content: bytes) -> None:
    """Any other exception fails the test."""
    # In place: emptying a file first makes some file systems flush it to the disk each time.
    path.touch()
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()
    try:
        open_gguf(path)
    except InputError as error:
        assert len(str(error).splitlines()) == 1


def test_a_flipped_bit_never_escapes_as_another_error(tmp_path: Path) -> None:
    for bit in range(8 * (len(VALID) - 160)):
        damaged = bytearray(VALID)
        damaged[bit // 8] ^= 1 << bit % 8
        opened_or_refused(tmp_path / "flip.gguf", bytes(damaged))


INTEGERS = st.sampled_from([0, 1, 7, 8, 9, 255, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1])


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.integers(0, len(VALID) - 9), INTEGERS, st.sampled_from([1, 4, 8])),
        min_size=1,
        max_size=6,
    ),
    st.binary(max_size=40),
)
def test_overwritten_fields_never_escape_as_another_error(
    tmp_path: Path, writes: list[tuple[int, int, int]], tail: bytes
) -> None:
    damaged = bytearray(VALID)
    for at, value, size in writes:
        damaged[at : at + size] = value.to_bytes(8, "little")[:size]
    tracemalloc.start()
    opened_or_refused(tmp_path / "fuzz.gguf", bytes(damaged) + tail)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000 + 32 * len(damaged)
