"""The few lines of protobuf wire format that a sentencepiece model needs, both ways.

Field numbers are those of sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

PIECES, TRAINER, NORMALIZER = 1, 2, 3  # ModelProto
PIECE, SCORE, TYPE = 1, 2, 3  # SentencePiece
MODEL_TYPE, BYTE_FALLBACK = 3, 35  # TrainerSpec
ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES, ESCAPE_WHITESPACES = 3, 4, 5  # NormalizerSpec
BPE = 2  # TrainerSpec.model_type


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def bytes_field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | _BYTES) + varint(len(data)) + data


def int_field(number: int, value: int) -> bytes:
    return varint(number << 3 | _VARINT) + varint(value)


def bpe_model(pieces: Iterable[tuple[str, float, int]], byte_fallback: bool) -> bytes:
    """A BPE ModelProto of (text, score, type); its normalizer only turns spaces into U+2581."""
    score_tag = varint(SCORE << 3 | _FIXED32)
    parts = []
    for text, score, type in pieces:
        body = bytes_field(PIECE, text.encode()) + score_tag + struct.pack("<f", score)
        parts.append(bytes_field(PIECES, body + int_field(TYPE, type)))
    trainer = int_field(MODEL_TYPE, BPE) + int_field(BYTE_FALLBACK, byte_fallback)
    normalizer = (
        int_field(ADD_DUMMY_PREFIX, 0)
        + int_field(REMOVE_EXTRA_WHITESPACES, 0)
        + int_field(ESCAPE_WHITESPACES, 1)
    )
    parts += [bytes_field(TRAINER, trainer), bytes_field(NORMALIZER, normalizer)]
    return b"".join(parts)


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a message; ValueError when it is cut short or malformed."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _read_varint(data, at)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            size, at = _read_varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if size > len(data) - at:
            raise ValueError("cut short")
        yield tag >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for n, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * n
        if byte < 0x80:
            return value, at + n + 1
    raise ValueError("cut short")
