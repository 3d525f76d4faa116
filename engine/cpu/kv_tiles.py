"""Tiles of keys and values for many query rows: what `engine.cpu.attention_tiles` multiplies.

    tiles(page, n, dim, target, low, apart, scratch, ...)

writes the n tokens of one KV head's page at `page`, and zeros up to a multiple of 32 tokens and
channels, as right factors of `engine.cpu.amx`.  Lanes are tokens of keys and channels of values,
in groups of 16 that begin `apart` bytes from each other.  A group's tiles follow one another:
keys have one per 32 channels, values one per 32 tokens.  Row k of a tile has pairs of the channels
or tokens 2 k and 2 k + 1.

What bfloat16 does not hold exactly has low halves, `low` bytes behind the high ones; `low` is 0
where nobody wants them.  Three format parameters follow.  Here are the verbs of bf16 and of token
formats without units of bytes (`engine.cpu.kv_code_tiles`); their parameters are those of
`engine.cpu.kv_tokens`.
"""

from __future__ import annotations

from functools import cache

from engine.cpu.amx import TILE
from engine.cpu.halves import plain_row, store_pairs
from engine.cpu.jit import Verb, inlined
from engine.cpu.kv_floats import transpose
from engine.cpu.kv_tokens import decode_block, width
from engine.cpu.simd import convert, f32x16, load, store, u16x16, u16x32, u32x16, zeros

STEP = 32  # tokens decoded at a time


@inlined
def _decode(decoder, page, t, n, row_nbytes, values, rows, wide, joined):
    """The tokens from t on as float32 [STEP, wide], zeros behind token n and the last channel."""
    count = min(STEP, n - t)
    for i in range(4 * wide * count if joined else 0, 4 * STEP * wide, 64):
        store(rows + i, zeros(f32x16))
    decode_block(decoder, page + t * row_nbytes, count, row_nbytes, values, rows, wide, joined)


@inlined
def _turn(words, stride, nbytes, target, apart):
    """Tiles of the channels of STEP tokens, bfloat16 rows `stride` bytes apart."""
    for group in range(2):
        for c in range(0, nbytes, 64):
            transpose(words + 16 * group * stride + c, stride, target + group * apart + 16 * c)


@cache  # callers keep addresses
def key_verb(joined: bool) -> Verb:
    """Tiles of keys; `joined`: one call decodes many rows."""

    def tiles(page, n, dim, target, low, apart, scratch, decoder, row_nbytes, values):
        wide = width(dim)
        words = scratch + 4 * STEP * wide
        for t in range(0, n, STEP):
            _decode(decoder, page, t, n, row_nbytes, values, scratch, wide, joined)
            for i in range(STEP):
                plain_row(scratch + 4 * i * wide, wide, words + 4 * i * wide, 2 * wide)
            _turn(words, 4 * wide, 2 * wide, target, apart)
            if low != 0:
                _turn(words + 2 * wide, 4 * wide, 2 * wide, target + low, apart)
            target += 2 * apart

    return Verb(tiles)


@cache  # callers keep addresses
def value_verb(joined: bool) -> Verb:
    """Tiles of values; `joined`: one call decodes many rows."""

    def tiles(page, n, dim, target, low, apart, scratch, decoder, row_nbytes, values):
        wide = width(dim)
        for t in range(0, n, STEP):
            _decode(decoder, page, t, n, row_nbytes, values, scratch, wide, joined)
            for c in range(0, wide, 16):
                for i in range(0, STEP, 2):
                    at = scratch + 4 * (i * wide + c)
                    x, y = load(f32x16, at), load(f32x16, at + 4 * wide)
                    store_pairs(x, y, target + c // 16 * apart + 32 * i, low)
            target += TILE

    return Verb(tiles)


@inlined
def _clear(tiles, low, nbytes):
    for i in range(0, nbytes if low != 0 else 0, 64):
        store(tiles + low + i, zeros(f32x16))


@inlined
def _whole(page, t, n, dim, room):
    """The STEP tokens from t on; behind token n, zeros in `room`."""
    if t + STEP <= n:
        return page + 2 * t * dim
    for i in range(0, 2 * STEP * dim, 64):
        inside = 2 * t * dim + i < 2 * n * dim
        store(room + i, load(u16x32, page + 2 * t * dim + i) if inside else zeros(u16x32))
    return room


def _bf16_keys(page, n, dim, target, low, apart, scratch, decoder, row_nbytes, values):
    for t in range(0, n, STEP):
        _turn(_whole(page, t, n, dim, scratch), 2 * dim, 2 * dim, target, apart)
        for group in range(2):
            _clear(target + group * apart, low, TILE * (dim // 32))
        target += 2 * apart


def _bf16_values(page, n, dim, target, low, apart, scratch, decoder, row_nbytes, values):
    for t in range(0, n, STEP):
        rows = _whole(page, t, n, dim, scratch)
        for c in range(0, dim, 16):
            group = target + c // 16 * apart
            for i in range(0, STEP, 2):
                at = rows + 2 * (i * dim + c)
                x, y = load(u16x16, at), load(u16x16, at + 2 * dim)
                store(group + 32 * i, convert(u32x16, x) | (convert(u32x16, y) << 16))
            _clear(group, low, TILE)
        target += TILE


BF16_KEYS, BF16_VALUES = Verb(_bf16_keys), Verb(_bf16_values)
"""Tiles of bf16 pages whose rows are a multiple of 32 channels."""


def scratch_nbytes(wide: int) -> int:
    """Bytes that these verbs need."""
    return 8 * STEP * wide
