"""A split GGUF model opens from any of its parts, or not at all."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_maker import Row, gguf_bytes, pair, refusal, text, u32

from engine.errors import InputError
from engine.gguf_file import open_gguf


def split_pairs(number: int, count: int = 3, tensors: int = 3) -> list[bytes]:
    return [
        u32("split.no", number),
        u32("split.count", count),
        u32("split.tensors.count", tensors),
    ]


def part(directory: Path, number: int) -> Path:
    return directory / f"m-{number + 1:05d}-of-00003.gguf"


@pytest.fixture
def split(tmp_path: Path) -> Path:
    for number in range(3):
        extra = [pair("general.architecture", "str", text("llama"))] if number == 0 else []
        rows = [Row(f"t{number}")]
        content = gguf_bytes(extra + split_pairs(number), rows, bytes([number]) * 32)
        part(tmp_path, number).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("number", range(3))
def test_any_part_opens_the_whole_model(split: Path, number: int) -> None:
    checkpoint = open_gguf(part(split, number))
    assert checkpoint.paths == tuple(part(split, i) for i in range(3))
    assert checkpoint.metadata.str("general.architecture") == "llama"
    assert [tensor.data[0, 0] for tensor in checkpoint.tensors.values()] == [0, 1, 2]


def test_the_reference_writers_shards_open(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    for i in range(5):
        writer.add_tensor(f"t{i}", np.full(8, i, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = open_gguf(tmp_path / "m-00002-of-00003.gguf").tensors
    assert [float(tensors[f"t{i}"].data.view("<f4")[0, 0]) for i in range(5)] == [0, 1, 2, 3, 4]


def test_a_missing_part_is_named(split: Path) -> None:
    part(split, 1).unlink()
    with pytest.raises(InputError, match=r"m-00002-of-00003\.gguf: cannot be read: No such file"):
        open_gguf(part(split, 2))


@pytest.mark.parametrize(
    ("pairs", "name", "expected"),
    [
        (split_pairs(2), "t1", "split.no is 2, expected 1"),
        (split_pairs(1, count=2), "t1", "split.count is 2, expected 3"),
        (split_pairs(1, tensors=9), "t1", "split.tensors.count is 9, expected 3"),
        (split_pairs(1), "t0", "'t0' is also in an earlier part"),
        ([], "t1", "'split.no' is missing"),
    ],
)
def test_parts_that_disagree_are_refused(
    split: Path, pairs: list[bytes], name: str, expected: str
) -> None:
    part(split, 1).write_bytes(gguf_bytes(pairs, [Row(name)], bytes(32)))
    assert expected in refusal(part(split, 0))


def test_the_total_of_tensors_is_checked(tmp_path: Path) -> None:
    for number in range(3):
        content = gguf_bytes(split_pairs(number, tensors=4), [Row(f"t{number}")], bytes(32))
        part(tmp_path, number).write_bytes(content)
    assert "is 4, the parts hold 3 tensors" in refusal(part(tmp_path, 0))


def test_a_part_under_another_name_is_refused(split: Path) -> None:
    moved = part(split, 0).rename(split / "renamed.gguf")
    assert "does not end in -NNNNN-of-00003.gguf" in refusal(moved)
