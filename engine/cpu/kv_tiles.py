"""Score and mix of token formats for many query rows, on tile registers: bfloat16 products.

Up to CHUNK tokens are decoded once and laid out as the tiles' right factors; the query rows or
weights are the left ones.  Sums are float32.  Reductions run over pairs (c, c + 16) inside steps of
32 channels or tokens, in the same order on both sides, so that pairing two vectors needs no
movement between lanes.

A float32 is x = high + low + 2^-17 x, both bfloat16.  `terms`, a constant, says how many products
of halves are summed:

    1  high high: both factors rounded to 8 bits
    2  and low high: for tokens that bfloat16 holds exactly
    3  and high low: 16 bits of both factors
"""

from __future__ import annotations

from engine.cpu.amx import (
    TILE,
    sums_add,
    sums_load,
    sums_store,
    sums_zero,
    tiles_begin,
    tiles_end,
)
from engine.cpu.halves import high_pairs, low_pairs, paired_row
from engine.cpu.jit import call, inlined
from engine.cpu.kv_floats import transpose
from engine.cpu.simd import f32x16, load, store, zeros

CHUNK = 128  # tokens whose tiles are made at a time
_SQUARE = 4096  # bytes of float32 [32, 32]


def scratch_nbytes(rows: int, wide: int) -> int:
    """Bytes that score or mix need."""
    left = 2 * (rows + 31) * max(wide, CHUNK)
    return 2 * _SQUARE + 4 * 32 * wide + 2 * (2 * CHUNK * wide + left) + 64


@inlined
def rooms(scratch, rows, n, wide):
    """Addresses of a square of sums, of 16 rows of pairs, decoded tokens, tiles and left rows of n
    values, and the bytes between high and low halves of tiles and of left rows."""
    decoded = scratch + 2 * _SQUARE
    tiles = decoded + 4 * 32 * wide
    tiles_nbytes = 2 * CHUNK * wide
    left_nbytes = 2 * ((rows + 31) & ~31) * n
    left = tiles + 2 * tiles_nbytes
    return scratch, scratch + _SQUARE, decoded, tiles, tiles_nbytes, left, left_nbytes


@inlined
def _add_terms(left, stride, left_low, tiles, next_tiles, tiles_low, steps, terms):
    """sums += the products of halves."""
    sums_add(left, stride, tiles, next_tiles, steps)
    if terms > 1:
        sums_add(left + left_low, stride, tiles, next_tiles, steps)
    if terms > 2:
        sums_add(left, stride, tiles + tiles_low, next_tiles + tiles_low, steps)


@inlined
def _decode(decoder, rows, count, row_nbytes, values, target, wide, joined):
    """`count` packed rows as float32 [32, wide], zeros behind them; `joined`, a constant: one call
    decodes them all."""
    for i in range(4 * wide * count if joined else 0, 4 * 32 * wide, 64):
        store(target + i, zeros(f32x16))
    if joined:
        call(decoder, (rows, target, count * wide))
    else:
        for t in range(count):
            call(decoder, (rows + t * row_nbytes, target + 4 * t * wide, values))


@inlined
def _key_tiles(decoded, wide, pairs, tiles, low, terms):
    """Tiles of 32 decoded tokens: pairs of channels by 16 tokens, steps of a group together."""
    for group in range(2):
        rows = decoded + 64 * wide * group
        for step in range(wide // 32):
            tile = tiles + TILE * (group * (wide // 32) + step)
            for t in range(16):
                store(pairs + 64 * t, high_pairs(rows + 4 * t * wide + 128 * step, 64))
            transpose(pairs, 64, tile)
            if terms > 2:
                for t in range(16):
                    store(pairs + 64 * t, low_pairs(rows + 4 * t * wide + 128 * step, 64))
                transpose(pairs, 64, tile + low)


@inlined
def _value_tiles(decoded, wide, tiles, steps, low, terms):
    """Tiles of 32 decoded tokens: pairs of tokens by 16 channels, `steps` tiles per group apart."""
    for group in range(wide // 16):
        tile = tiles + TILE * steps * group
        for t in range(16):
            at = decoded + 4 * t * wide + 64 * group
            store(tile + 64 * t, high_pairs(at, 64 * wide))
            if terms > 2:
                store(tile + low + 64 * t, low_pairs(at, 64 * wide))


@inlined
def _copy_square(source, stride, rows, target, target_stride):
    """`rows` rows of 32 float32."""
    for i in range(rows):
        store(target + i * target_stride, load(f32x16, source + i * stride))
        store(target + i * target_stride + 64, load(f32x16, source + i * stride + 64))


@inlined
def left_rows(rows, stride, count, steps, left, low, terms):
    """`count` float32 rows, `stride` bytes apart, as left factors of `steps` steps."""
    for i in range(count):
        paired_row(rows + i * stride, 32 * steps, left + 64 * i * steps, low, terms)


@inlined
def add_scores(left, left_low, tiles, low, rows, steps, count, out, stride, square, terms):
    """Scores of `count` tokens, for up to a multiple of 32, with tiles of keys."""
    for i in range(0, rows, 32):
        for t in range(0, count, 32):
            first, row = tiles + TILE * (t // 16) * steps, left + 64 * i * steps
            target, second = out + i * stride + 4 * t, first + TILE * steps
            sums_zero()
            _add_terms(row, 64 * steps, left_low, first, second, low, steps, terms)
            if rows - i >= 32:
                sums_store(target, stride)
            else:
                sums_store(square, 128)
                _copy_square(square, 128, rows - i, target, stride)


@inlined
def add_mixes(left, left_low, tiles, low, rows, steps, out, wide, square, terms):
    """out [rows, wide] += the products of 32 tokens a step with tiles of values."""
    for i in range(0, rows, 32):
        for c in range(0, wide, 32):
            first, row = tiles + TILE * (c // 16) * steps, left + 64 * i * steps
            at, at_stride, second = out + 4 * (i * wide + c), 4 * wide, first + TILE * steps
            if rows - i < 32:
                _copy_square(at, 4 * wide, rows - i, square, 128)
                at, at_stride = square, 128
            sums_load(at, at_stride)
            _add_terms(row, 64 * steps, left_low, first, second, low, steps, terms)
            sums_store(at, at_stride)
            if rows - i < 32:
                _copy_square(square, 128, rows - i, out + 4 * (i * wide + c), 4 * wide)


@inlined
def tile_score(
    page, n, q, stride, rows, wide, out, scratch, decoder, row_nbytes, values, terms, joined
):
    """Scores of all rows; those behind n, up to a multiple of 32, are zeros."""
    square, pairs, decoded, tiles, low, left, left_low = rooms(scratch, rows, wide, wide)
    steps = wide // 32
    left_rows(q, 4 * wide, rows, steps, left, left_low, terms)
    tiles_begin(square)
    for t0 in range(0, n, CHUNK):
        count = min(CHUNK, n - t0)
        for t in range(0, count, 32):
            at, some = page + (t0 + t) * row_nbytes, min(32, count - t)
            _decode(decoder, at, some, row_nbytes, values, decoded, wide, joined)
            _key_tiles(decoded, wide, pairs, tiles + TILE * (t // 16) * steps, low, terms)
        add_scores(
            left, left_low, tiles, low, rows, steps, count, out + 4 * t0, stride, square, terms
        )
    tiles_end()


@inlined
def tile_mix(
    page, n, p, stride, rows, wide, out, scratch, decoder, row_nbytes, values, terms, joined
):
    """Mixes all rows; weights behind n, up to a multiple of 32, meet zeros."""
    square, _, decoded, tiles, low, left, left_low = rooms(scratch, rows, CHUNK, wide)
    for t0 in range(0, n, CHUNK):
        count = min(CHUNK, n - t0)
        steps = (count + 31) // 32
        left_rows(p + 4 * t0, stride, rows, steps, left, left_low, terms)
        for t in range(0, count, 32):
            at, some = page + (t0 + t) * row_nbytes, min(32, count - t)
            _decode(decoder, at, some, row_nbytes, values, decoded, wide, joined)
            _value_tiles(decoded, wide, tiles + TILE * (t // 32), steps, low, terms)
        tiles_begin(square)
        add_mixes(left, left_low, tiles, low, rows, steps, out, wide, square, terms)
        tiles_end()
