"""A Hugging Face folder is mapped as it is, or refused in one line."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.hf_folder import open_hf_folder

CONFIG = {"architectures": ["AnyForCausalLM"], "hidden_size": 4}


def entry(kind: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def safetensors_bytes(header: Any, data: bytes = b"", *, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


VALID = safetensors_bytes(
    {
        "__metadata__": {"format": "pt"},
        "a": entry("F32", [2, 3], 0, 24),
        "b": entry("BF16", [4], 24, 32),
        "c": entry("F16", [1, 2, 2], 32, 40),
    },
    bytes(range(40)),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(VALID)
    return tmp_path


def refusal(path: Path) -> str:
    """The message with which `path` is refused, checked to be one line that names the folder."""
    with pytest.raises(InputError) as caught:
        open_hf_folder(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and str(path) in message
    return message


def test_what_the_safetensors_package_writes_is_what_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    arrays = {
        "z": rng.standard_normal((3, 5)).astype(np.float32),
        "a": rng.standard_normal((7,)).astype(np.float16),
        "m": rng.standard_normal((2, 2, 4)).astype(np.float32),
    }
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors", {"format": "pt"})
    folder = open_hf_folder(tmp_path)
    assert folder.config == CONFIG
    assert folder.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        tensor = folder.tensors[name]
        assert tensor.shape == array.shape and tensor.data.tobytes() == array.tobytes()


def test_tensors_are_read_only_views_of_rows(folder: Path) -> None:
    tensors = open_hf_folder(folder).tensors
    seen = {name: (t.type, t.shape, t.data.shape) for name, t in tensors.items()}
    assert seen == {
        "a": ("F32", (2, 3), (2, 12)),
        "b": ("BF16", (4,), (1, 8)),
        "c": ("F16", (1, 2, 2), (2, 4)),
    }
    assert tensors["b"].data.tobytes() == bytes(range(24, 32))
    for tensor in tensors.values():
        assert not tensor.data.flags.writeable and not tensor.data.flags.owndata


# --- shards -------------------------------------------------------------------------------------

SHARDS = {f"t{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}


def write_shards(path: Path, weight_map: Any) -> None:
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name, file in SHARDS.items():
        (path / file).write_bytes(
            safetensors_bytes({name: entry("F16", [2], 0, 4)}, name.encode() * 2)
        )


def test_shards_open_as_one_folder(tmp_path: Path) -> None:
    write_shards(tmp_path, SHARDS)
    folder = open_hf_folder(tmp_path)
    assert {name: t.data.tobytes() for name, t in folder.tensors.items()} == {
        "t1": b"t1t1",
        "t2": b"t2t2",
    }
    assert [file.name for file in folder.files] == ["config.json", *SHARDS.values()]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, SHARDS)
    (tmp_path / SHARDS["t2"]).unlink()
    assert f"{SHARDS['t2']}: cannot be read: No such file" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "expected"),
    [
        (SHARDS | {"t3": SHARDS["t2"]}, "tensor 't3' is missing"),
        ({"t1": SHARDS["t1"], "x": SHARDS["t2"]}, "tensor 'x' is missing"),
        (SHARDS | {"t1": "../model.safetensors"}, "not the name of a file in this folder"),
        (SHARDS | {"t1": "/etc/passwd"}, "not the name of a file in this folder"),
        (SHARDS | {"t1": "a\nb.safetensors"}, "not the name of a file in this folder"),
        (SHARDS | {"t1": 3}, "3 is not the name of a file"),
        ({}, "weight_map is missing or empty"),
        ([], "weight_map is missing or empty"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    tmp_path: Path, weight_map: Any, expected: str
) -> None:
    write_shards(tmp_path, weight_map)
    assert expected in refusal(tmp_path)


def test_a_tensor_the_index_does_not_name_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, SHARDS)
    two = {"t1": entry("F16", [2], 0, 4), "u": entry("F16", [2], 4, 8)}
    (tmp_path / SHARDS["t1"]).write_bytes(safetensors_bytes(two, bytes(8)))
    assert "tensor 'u' is not named by model.safetensors.index.json" in refusal(tmp_path)


# --- refusals -----------------------------------------------------------------------------------


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "config.json: cannot be read: No such file" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "no weights found, expected model.safetensors or" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "is empty"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[1]", "holds a JSON list, expected an object"),
        (b'{"a": 1, "a": 2}', "key 'a' appears twice"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_bad_json_is_refused(folder: Path, text: bytes, expected: str) -> None:
    (folder / "config.json").write_bytes(text)
    assert expected in refusal(folder)


def header(**changes: Any) -> bytes:
    return safetensors_bytes({"a": entry("F32", [2], 0, 8) | changes}, bytes(8))


REFUSALS: dict[str, tuple[bytes, str]] = {
    "not safetensors": (b"PK\x03\x04" + bytes(60), "no header"),
    "too short": (b"\x02", "no header"),
    "header length": (safetensors_bytes({}, size=2**64 - 1), "no header"),
    "header not JSON": (safetensors_bytes(b"{]"), "not valid JSON"),
    "header not an object": (safetensors_bytes([]), "holds a JSON list"),
    "duplicate tensor": (
        safetensors_bytes(b'{"a": 1, "a": 1}'),
        "key 'a' appears twice",
    ),
    "entry": (safetensors_bytes({"a": 5}), "tensor 'a' has no description"),
    "dtype": (header(dtype="F8_E4M3"), "has dtype 'F8_E4M3', supported are F32, F16, BF16"),
    "dtype no string": (header(dtype=[1]), "has dtype [1]"),
    "no shape": (header(shape=None), "has shape None"),
    "scalar": (header(shape=[]), "has shape [], expected 1 to 4"),
    "zero": (header(shape=[0]), "has shape [0], expected 1 to 4 positive"),
    "negative": (header(shape=[-2]), "has shape [-2]"),
    "boolean": (header(shape=[True]), "has shape [True]"),
    "five dimensions": (header(shape=[1, 1, 1, 1, 2]), "expected 1 to 4"),
    "huge": (header(shape=[2**62] * 4), "has data_offsets [0, 8], expected"),
    "absurd": (header(shape=[int("9" * 4000)] * 4), "has shape"),
    "offsets": (header(data_offsets=[0, 4]), "has data_offsets [0, 4], expected [0, 8]"),
    "no offsets": (header(data_offsets=None), "has data_offsets None"),
    "past the end": (safetensors_bytes({"a": entry("F32", [2], 0, 8)}, bytes(7)), "truncated"),
    "gap": (safetensors_bytes({"a": entry("F16", [1], 2, 4)}, bytes(4)), "expected [0, 2]"),
    "overlap": (
        safetensors_bytes({"a": entry("F16", [2], 0, 4), "b": entry("F16", [2], 2, 6)}, bytes(6)),
        "tensor 'b' has data_offsets [2, 6], expected [4, 8]",
    ),
    "data left over": (
        safetensors_bytes({"a": entry("F16", [1], 0, 2)}, bytes(5)),
        "3 bytes after the last tensor",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_damaged_weight_file_is_refused_by_name(folder: Path, name: str) -> None:
    content, expected = REFUSALS[name]
    (folder / "model.safetensors").write_bytes(content)
    assert expected in refusal(folder)


def test_a_weight_file_cut_anywhere_is_refused(folder: Path) -> None:
    assert open_hf_folder(folder).tensors
    for size in reversed(range(len(VALID))):
        os.truncate(folder / "model.safetensors", size)
        refusal(folder)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, len(VALID) - 41), st.binary(min_size=1, max_size=4))
def test_an_overwritten_header_never_escapes_as_another_error(
    folder: Path, at: int, value: bytes
) -> None:
    damaged = bytearray(VALID)
    damaged[at : at + len(value)] = value
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(damaged[: len(VALID)])
    try:
        open_hf_folder(folder)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
