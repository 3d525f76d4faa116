"""The little protobuf that a sentencepiece model needs, written and read by hand.

Numbers of fields are those of sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache

from engine.tokenizer.base import NORMAL

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types

PIECES, TRAINER, NORMALIZER = 1, 2, 3  # ModelProto
PIECE, SCORE, TYPE = 1, 2, 3  # SentencePiece
MODEL_TYPE, BYTE_FALLBACK = 3, 35  # TrainerSpec
CHARSMAP, ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES, ESCAPE_WHITESPACES = 2, 3, 4, 5

UNIGRAM, BPE = 1, 2  # TrainerSpec.model_type

_SCORE = struct.Struct("<Bf")  # its tag and its value


def bpe_model(pieces: Iterable[tuple[str, float, int]], byte_fallback: bool) -> bytes:
    """A BPE ModelProto of (text, score, type); its normalizer only turns spaces into U+2581."""
    model = bytearray()
    for text, score, type in pieces:  # up to 262144 of them: a second, if each were put together
        data = text.encode()
        model += _piece_head(len(data))
        model += data
        model += _SCORE.pack(SCORE << 3 | _FIXED32, score)
        model += _piece_end(type)
    trainer = _int_field(MODEL_TYPE, BPE) + _int_field(BYTE_FALLBACK, byte_fallback)
    normalizer = (
        _int_field(ADD_DUMMY_PREFIX, 0)
        + _int_field(REMOVE_EXTRA_WHITESPACES, 0)
        + _int_field(ESCAPE_WHITESPACES, 1)
    )
    model += _bytes_field(TRAINER, trainer)
    model += _bytes_field(NORMALIZER, normalizer)
    return bytes(model)


@cache
def _piece_head(nbytes: int) -> bytes:
    """What stands before a piece's text of so many bytes."""
    text = _varint(PIECE << 3 | _BYTES) + _varint(nbytes)
    rest = nbytes + _SCORE.size + len(_piece_end(NORMAL))
    return _varint(PIECES << 3 | _BYTES) + _varint(len(text) + rest) + text


@cache
def _piece_end(type: int) -> bytes:
    """What stands behind a piece's score."""
    return _int_field(TYPE, type)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes_field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def _int_field(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value)


class Message:
    """The fields of one message in `data`; ValueError when malformed or of another kind."""

    def __init__(self, data: bytes) -> None:
        self._fields: dict[int, list[int | bytes]] = {}
        at = 0
        while at < len(data):
            tag, at = _read_varint(data, at)
            value, at = _read_value(data, at, tag & 7)
            self._fields.setdefault(tag >> 3, []).append(value)

    def int(self, number: int, default: int) -> int:
        value = self._fields.get(number, [default])[-1]
        if isinstance(value, bytes):
            raise ValueError(f"field {number} is not a number")
        return value

    def bytes(self, number: int, default: bytes = b"") -> bytes:
        """A field of bytes, text, a message or a number of fixed size."""
        return (self.all(number) or [default])[-1]

    def all(self, number: int) -> list[bytes]:
        values = self._fields.get(number, [])
        found = [value for value in values if isinstance(value, bytes)]
        if len(found) < len(values):
            raise ValueError(f"field {number} is a number")
        return found


def _read_value(data: bytes, at: int, wire: int) -> tuple[int | bytes, int]:
    """The value at `at` and the place after it."""
    if wire == _VARINT:
        return _read_varint(data, at)
    if wire == _BYTES:
        size, at = _read_varint(data, at)
    elif wire in (_FIXED32, _FIXED64):
        size = 4 if wire == _FIXED32 else 8
    else:
        raise ValueError(f"wire type {wire} at byte {at}")
    if size > len(data) - at:
        raise ValueError("it is cut short")
    return data[at : at + size], at + size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for n, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * n
        if byte < 0x80:
            return value, at + n + 1
    raise ValueError("it is cut short")
