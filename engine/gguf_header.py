"""The head of a GGUF file: key-value metadata and the table of tensors.

Nothing in a file is trusted: every count and length is compared with the bytes that are left
before anything of that size is built, so a damaged file costs one message and no memory.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from engine.errors import InputError
from engine.ggml_types import GGML_TYPES, GgmlType

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 had 32-bit counts and has not been written since August 2023
MAX_DIMS = 4

_UINT8, _INT8, _UINT16, _INT16, _UINT32, _INT32, _FLOAT32, _BOOL = range(8)
_STRING, _ARRAY, _UINT64, _INT64, _FLOAT64 = range(8, 13)

_DTYPES = {
    _UINT8: np.dtype("<u1"),
    _INT8: np.dtype("<i1"),
    _UINT16: np.dtype("<u2"),
    _INT16: np.dtype("<i2"),
    _UINT32: np.dtype("<u4"),
    _INT32: np.dtype("<i4"),
    _FLOAT32: np.dtype("<f4"),
    _BOOL: np.dtype("<u1"),
    _UINT64: np.dtype("<u8"),
    _INT64: np.dtype("<i8"),
    _FLOAT64: np.dtype("<f8"),
}
_SCALARS = {code: struct.Struct("<" + dtype.char) for code, dtype in _DTYPES.items()}
# NumPy and struct name 64-bit integers differently ("l" and "L" are 4 bytes after "<").
_SCALARS |= {_UINT64: struct.Struct("<Q"), _INT64: struct.Struct("<q")}
_U32, _U64 = _SCALARS[_UINT32], _SCALARS[_UINT64]

_MIN_PAIR = 8 + 4 + 1  # empty key, type, one byte of value
_MIN_TENSOR = 8 + 4 + 8 + 4 + 8  # empty name, one dimension, type, offset


@dataclass(frozen=True)
class TensorInfo:
    """One row of the tensor table: `shape` row-major, `offset` from the start of the data."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        return self.shape[-1] // self.type.block * self.type.nbytes


@dataclass(frozen=True)
class Header:
    """Everything before the tensor data; `size` is in bytes, before any padding."""

    metadata: dict[str, Any]
    tensors: list[TensorInfo]
    size: int


def read_header(data: mmap.mmap | bytes, source: str) -> Header:
    """Parse the header at the start of `data`; `source` names the file in messages.

    Raises InputError for anything the format does not allow.
    """
    reader = _Reader(data, source)
    _check_magic(reader)
    n_tensors = reader.number(_U64)
    n_pairs = reader.number(_U64)
    if n_tensors > reader.left() // _MIN_TENSOR:
        reader.fail(f"{n_tensors} tensors announced, more than the file has room for")
    if n_pairs > reader.left() // _MIN_PAIR:
        reader.fail(f"{n_pairs} metadata keys announced, more than the file has room for")
    metadata: dict[str, Any] = {}
    for _ in range(n_pairs):
        key = reader.string("a metadata key")
        if key in metadata:
            reader.fail(f"metadata key {_short(key)} appears twice")
        metadata[key] = _value(reader, key)
    tensors = [_tensor(reader) for _ in range(n_tensors)]
    return Header(metadata, tensors, reader.at)


class _Reader:
    """A position in the file's bytes that never passes their end."""

    def __init__(self, data: mmap.mmap | bytes, source: str) -> None:
        self.data = data
        self.source = source
        self.at = 0

    def fail(self, problem: str) -> NoReturn:
        raise InputError(f"{self.source}: {problem}")

    def left(self) -> int:
        return len(self.data) - self.at

    def number(self, form: struct.Struct) -> Any:
        start = self.at
        self.skip(form.size, "the header")
        return form.unpack_from(self.data, start)[0]

    def skip(self, size: int, what: str) -> None:
        if size > self.left():
            self.fail(
                f"truncated: {what} needs {size} bytes at byte {self.at}, {self.left()} are left"
            )
        self.at += size

    def string(self, what: str) -> str:
        return self.strings(1, what)[0]

    def strings(self, count: int, what: str) -> list[str]:
        # A vocabulary has up to 262144 entries and as many merges: everything is a local here.
        data, at, end = self.data, self.at, len(self.data)
        start = at
        unpack = _U64.unpack_from
        texts = []
        try:
            for _ in range(count):
                start = at + 8
                at = start + unpack(data, at)[0]
                if at > end:
                    self.at = start
                    self.skip(at - start, f"a string of {what}")
                texts.append(data[start:at].decode("utf-8"))
        except struct.error:
            self.at = at
            self.skip(8, f"a string of {what}")
        except UnicodeDecodeError as error:
            self.fail(f"a string of {what} is not UTF-8 ({error.reason} at byte {start})")
        self.at = at
        return texts


def _check_magic(reader: _Reader) -> None:
    magic = bytes(reader.data[:4])
    if len(magic) == 4 and magic != MAGIC:
        reader.fail(f"not a GGUF file: it starts with {magic!r}, expected {MAGIC!r}")
    reader.skip(4, "the magic number")
    version = reader.number(_U32)
    if version in VERSIONS:
        return
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *VERSIONS):
        reader.fail("big-endian GGUF, only little-endian files are supported")
    reader.fail(f"GGUF version {version}, supported are 2 and 3")


def _value(reader: _Reader, key: str) -> Any:
    code = reader.number(_U32)
    if code == _STRING:
        return reader.string(f"metadata key {_short(key)}")
    if code == _ARRAY:
        return _array(reader, key)
    if code not in _SCALARS:
        reader.fail(f"metadata key {_short(key)} has value type {code}, known are 0 to 12")
    value = reader.number(_SCALARS[code])
    if code != _BOOL:
        return value
    if value > 1:
        reader.fail(f"metadata key {_short(key)} is {value}, expected 0 or 1 for a boolean")
    return bool(value)


def _array(reader: _Reader, key: str) -> list[str] | np.ndarray:
    code = reader.number(_U32)
    count = reader.number(_U64)
    what = f"metadata key {_short(key)}"
    if code == _ARRAY:
        reader.fail(f"{what} is an array of arrays, only flat arrays are supported")
    if code != _STRING and code not in _DTYPES:
        reader.fail(f"{what} is an array of value type {code}, known are 0 to 12")
    least = 8 if code == _STRING else _DTYPES[code].itemsize
    if count > reader.left() // least:
        reader.fail(f"truncated: {what} announces {count} elements, {reader.left()} bytes are left")
    if code == _STRING:
        return reader.strings(count, what)
    start = reader.at
    reader.skip(count * least, what)
    # A copy: elements in the file have no alignment, and it must not keep the mapping alive.
    values = np.frombuffer(reader.data, _DTYPES[code], count, start).copy()
    if code == _BOOL:
        if values.size and values.max() > 1:
            reader.fail(f"{what} holds {values.max()}, expected 0 or 1 for a boolean")
        values = values.view(np.bool_)
    values.flags.writeable = False
    return values


def _tensor(reader: _Reader) -> TensorInfo:
    name = reader.string("the tensor table")
    n_dims = reader.number(_U32)
    if not 1 <= n_dims <= MAX_DIMS:
        reader.fail(f"tensor {_short(name)} has {n_dims} dimensions, expected 1 to {MAX_DIMS}")
    shape = tuple(reader.number(_U64) for _ in range(n_dims))[::-1]
    if 0 in shape:
        reader.fail(f"tensor {_short(name)} has shape {list(shape)}, expected positive dimensions")
    code = reader.number(_U32)
    kind = GGML_TYPES.get(code)
    if kind is None:
        known = " ".join(kind.name for kind in GGML_TYPES.values())
        reader.fail(f"tensor {_short(name)} has unknown ggml type {code}, known are {known}")
    if shape[-1] % kind.block:
        reader.fail(
            f"tensor {_short(name)} has {shape[-1]} columns, "
            f"{kind.name} needs a multiple of {kind.block}"
        )
    return TensorInfo(name, kind, shape, reader.number(_U64))


def _short(text: str) -> str:
    """`text` quoted for a message: one line, of bounded length, whatever it contains."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
