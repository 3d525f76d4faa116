"""Tiles of token formats whose rows are unpacked into units of bytes; see `engine.cpu.kv_tiles`.

Turning bytes before they become float32 takes a quarter of the instructions that turning bfloat16
does.  The format parameter is the address of a `record` of `engine.cpu.kv_blocks`.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from engine.cpu.amx import TILE
from engine.cpu.halves import store_pairs
from engine.cpu.jit import Verb, call, field, inlined
from engine.cpu.kv_block_codes import CHUNK
from engine.cpu.kv_blocks import INTERLEAVE, MIDDLE, ROW_NBYTES, TURN
from engine.cpu.kv_bytes import lower_channels, upper_channels
from engine.cpu.kv_page_tiles import byte, value_rows
from engine.cpu.kv_tokens import width
from engine.cpu.simd import (
    bitcast,
    convert,
    f16x16,
    f32x16,
    fma,
    load,
    store,
    store_u32,
    u16x16,
    u32x16,
)

AHEAD = 32  # rows further is what is asked for


@inlined
def _rooms(scratch, wide):
    """Addresses of headers, ranges and units."""
    lines = 4 * CHUNK * (wide // 32)
    return scratch, scratch + lines, scratch + 3 * lines


def scratch_nbytes(wide: int) -> int:
    """Bytes that either verb needs."""
    return (3 * 4 * CHUNK // 32 + CHUNK) * wide


@inlined
def _half(word):
    """The lower halves of words as float16."""
    return convert(f32x16, bitcast(f16x16, convert(u16x16, word)))


@inlined
def _load_ranges(headers, count, blocks, middle, ranges, ranged):
    """d and m of values m + d code, float32 [blocks, 2, CHUNK], zeros behind the last token up to a
    multiple of 32."""
    for b in range(blocks):
        line, target = headers + 4 * CHUNK * b, ranges + 8 * CHUNK * b
        for t in range(count, (count + 31) & ~31):
            store_u32(line + 4 * t, 0)
        for t in range(0, 4 * ((count + 31) & ~31), 64):
            word = load(u32x16, line + t)
            d = _half(word)
            store(target + t, d)
            store(target + 4 * CHUNK + t, _half(word >> 16) if ranged else d * -middle)


@inlined
def _unpack(unpacker, page, t0, n, wide, lanes, stride, scratch, record, ranged):
    """Unpack up to CHUNK tokens from t0 on.  Returns how many there are with those behind the last,
    which become zeros, to a multiple of 32."""
    headers, ranges, units = _rooms(scratch, wide)
    count, row_nbytes = min(CHUNK, n - t0), field(record, ROW_NBYTES)
    at, ahead = page + t0 * row_nbytes, AHEAD * row_nbytes
    arguments = at, count, row_nbytes, wide // 32, stride, units, headers, ahead
    call(field(record, unpacker), arguments)
    middle = np.float32(field(record, MIDDLE))
    _load_ranges(headers, count, wide // lanes, middle, ranges, ranged)
    return (count + 31) & ~31


@cache  # callers keep addresses
def key_verb(ranged: bool, whole: bool) -> Verb:
    """Tiles of keys with a range or without, a block being 32 channels or the whole row."""

    def tiles(page, n, dim, target, low, apart, scratch, record, unused, unused_too):
        wide = width(dim)
        lanes, stride = wide if whole else 32, 16 * wide
        _, ranges, units = _rooms(scratch, wide)
        for t0 in range(0, n, CHUNK):
            tokens = _unpack(TURN, page, t0, n, wide, lanes, stride, scratch, record, ranged)
            for t in range(0, tokens, 16):
                for b in range(0, wide, lanes):
                    at = ranges + 4 * (2 * CHUNK * (b // lanes) + t)
                    d, m = load(f32x16, at), load(f32x16, at + 4 * CHUNK)
                    for c in range(b, b + lanes, 4):
                        word = load(u32x16, units + t * wide + 16 * c)
                        for i in range(0, 4, 2):
                            x, y = fma(byte(word, i), d, m), fma(byte(word, i + 1), d, m)
                            store_pairs(x, y, target + 32 * (c + i), low)
                target += apart

    return Verb(tiles)


@cache  # callers keep addresses
def value_verb(ranged: bool, whole: bool) -> Verb:
    """Tiles of values; see `key_verb`."""

    def tiles(page, n, dim, target, low, apart, scratch, record, unused, unused_too):
        wide = width(dim)
        lanes, stride = wide if whole else 32, 16 * CHUNK
        _, ranges, units = _rooms(scratch, wide)
        for t0 in range(0, n, CHUNK):
            tokens = _unpack(INTERLEAVE, page, t0, n, wide, lanes, stride, scratch, record, ranged)
            for c in range(0, wide, 32):
                for t in range(0, tokens, 4):
                    unit, row = units + CHUNK * c + 16 * t, target + c // 16 * apart + 32 * t
                    d = ranges + 4 * (2 * CHUNK * (c // lanes) + t)
                    m = d + 4 * CHUNK
                    first, second = load(f32x16, unit), load(f32x16, unit + stride)
                    lower, upper = lower_channels(first, second), upper_channels(first, second)
                    value_rows(bitcast(u32x16, lower), d, m, row, low)
                    value_rows(bitcast(u32x16, upper), d, m, row + apart, low)
            target += TILE * (tokens // 32)

    return Verb(tiles)
