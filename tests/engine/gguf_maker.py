"""Build small GGUF files byte by byte, well-formed or broken on purpose.

The `gguf` package's writer refuses to write what the reader has to refuse.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.errors import InputError
from engine.gguf_file import open_gguf

CODES = {"u32": 4, "f32": 6, "bool": 7, "str": 8, "array": 9, "u64": 10}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: str | int, value: bytes) -> bytes:
    """One metadata pair; `value` is already encoded."""
    return text(key) + struct.pack("<I", CODES[kind] if isinstance(kind, str) else kind) + value


def u32(key: str, value: int) -> bytes:
    return pair(key, "u32", struct.pack("<I", value))


def array(key: str, kind: str | int, count: int, elements: bytes) -> bytes:
    code = CODES[kind] if isinstance(kind, str) else kind
    return pair(key, "array", struct.pack("<IQ", code, count) + elements)


@dataclass(frozen=True)
class Row:
    """One row of the tensor table, with the dimensions in the file's order (columns first)."""

    name: str | bytes = "t"
    dims: tuple[int, ...] = (8,)
    type: int = 0  # F32
    offset: int = 0

    def encode(self) -> bytes:
        n_dims = len(self.dims)
        return text(self.name) + struct.pack(
            f"<I{n_dims}QIQ", n_dims, *self.dims, self.type, self.offset
        )


def gguf_bytes(
    pairs: list[bytes] | None = None,
    rows: list[Row] | None = None,
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_pairs: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; the counts default to what is really there."""
    pairs, rows = pairs or [], rows or []
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(rows) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    head += b"".join(pairs) + b"".join(row.encode() for row in rows)
    return head + bytes(-len(head) % alignment) + data


def refusal(path: Path) -> str:
    """The message with which `path` is refused, checked to be one line that names its folder."""
    with pytest.raises(InputError) as caught:
        open_gguf(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and str(path.parent) in message
    return message
