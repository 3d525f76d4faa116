"""Score and mix on pages of bf16 for few query rows, on tile registers.

See `engine.cpu.kv_verbs` for the signatures.  Query rows and weights are two bfloat16 each, high +
low, and eight rows fill a tile: the high halves and then the low ones.  Sums are float32.

Keys are the left factor just as they lie in the page, 32 tokens at a time, the queries the right
one; sums come as [token, row].  Values are the right factor: the rows of two tokens become pairs.

A run of pages is one loop: waiting for sums to leave the tiles at the end of every page, and
configuring them at its beginning, took a third of the time.

Channels are a multiple of 32.  Parameters are those of `engine.cpu.kv_tokens`, which serves other
widths.
"""

from __future__ import annotations

from engine.cpu.amx import (
    TILE,
    column_add,
    column_store,
    column_zero,
    row_add,
    row_store,
    sums_zero,
    tiles_begin,
    tiles_end,
)
from engine.cpu.halves import plain_row
from engine.cpu.jit import Verb, inlined
from engine.cpu.kv_floats import (
    fetch,
    lower_pairs,
    lower_quads,
    store_folded,
    transpose,
    upper_pairs,
    upper_quads,
)
from engine.cpu.simd import f32x16, load, load_i64, store, u16x32, zeros

ROWS = 8  # of a block of query rows
STEP = 32  # tokens at a time


@inlined
def _copy(source, nbytes, target):
    for i in range(0, nbytes, 64):
        store(target + i, load(u16x32, source + i))


@inlined
def _query_tiles(q, rows, dim, words, tiles):
    """Tiles of up to 8 rows: pairs of channels by the rows' high halves and then the low ones."""
    for i in range(rows):
        plain_row(q + 4 * i * dim, dim, words + 2 * i * dim, 2 * ROWS * dim)
    for step in range(dim // 32):
        transpose(words + 64 * step, 2 * dim, tiles + TILE * step)


@inlined
def _store_scores(sums, out, stride, rows):
    """Scores of 32 tokens."""
    for t in range(0, STEP, 16):
        store_folded(sums + 64 * t, out + 4 * t, stride, rows)


def _score(cells, offset, size, n, q, stride, rows, dim, out, scratch, decoder, nbytes, values):
    words = scratch + 4 * TILE  # behind two pairs of sums
    tiles = words + 4 * ROWS * dim
    block = tiles + 4 * ROWS * dim
    for i in range(0, rows, ROWS):
        some, target, square = min(ROWS, rows - i), out + i * stride, scratch
        _query_tiles(q + 4 * i * dim, some, dim, words, tiles)
        tiles_begin(scratch)
        for t0 in range(0, n, size):
            cell = cells + 8 * (t0 // size)
            page = load_i64(cell) + offset
            ahead = load_i64(scratch - 8) if t0 + size >= n else load_i64(cell + 8) + offset
            for t in range(0, min(size, n - t0), STEP):
                at, count = page + 2 * t * dim, min(STEP, n - t0 - t)
                if count < STEP:  # nothing is read behind the page
                    _copy(at, 2 * count * dim, block)
                    at = block
                column_zero()
                for c in range(dim // 32):
                    fetch(ahead, 16)
                    column_add(at + 64 * c, 2 * dim, tiles + TILE * c, 1)
                    fetch(ahead + 1024, 16)
                    ahead += 2048
                column_store(square)
                # a load right behind a tile's store would wait for it
                square = 2 * scratch + 2 * TILE - square
                if t0 + t > 0:
                    _store_scores(square, target, stride, some)
                    target += 4 * STEP
        square = 2 * scratch + 2 * TILE - square
        _store_scores(square, target, stride, some)
        tiles_end()


@inlined
def _value_tiles(rows, dim, channels, tiles, ahead):
    """Tiles of 32 tokens, two for 32 channels: pairs of tokens by 16 channels, in the order that
    `lower_pairs` leaves.  The same channels of the rows at `ahead` are fetched."""
    for c in range(0, 2 * channels, 64):
        for i in range(16):
            first = 4 * i * dim + c
            x, y = load(u16x32, rows + first), load(u16x32, rows + first + 2 * dim)
            fetch(ahead + first, 1)
            fetch(ahead + first + 2 * dim, 1)
            store(tiles + 64 * i, lower_pairs(x, y))
            store(tiles + TILE + 64 * i, upper_pairs(x, y))
        tiles += 2 * TILE


@inlined
def _weight_tile(p, stride, rows, tile):
    """Up to 8 rows' high halves and then the low ones, by 32 tokens."""
    for i in range(rows):
        plain_row(p + i * stride, STEP, tile + 64 * i, 64 * ROWS)


@inlined
def _halves_sum(sums, row):
    high = load(f32x16, sums + 256 * row)
    return high + load(f32x16, sums + 256 * (ROWS + row))


@inlined
def _add_mixes(sums, rows, channels, out, stride):
    for i in range(rows):
        for c in range(0, 4 * channels, 128):
            a, b = _halves_sum(sums + c, i), _halves_sum(sums + c + 64, i)
            target = out + i * stride + c
            store(target, load(f32x16, target) + lower_quads(a, b))
            store(target + 64, load(f32x16, target + 64) + upper_quads(a, b))


@inlined
def _mix_channels(cells, offset, size, n, p, stride, rows, dim, first, channels, scratch):
    """Sums [16, 64] of up to 8 rows by 64 channels of the run, from channel `first` on."""
    left = scratch + 4 * TILE
    right = left + 2 * TILE
    block = right + 8 * TILE
    sums_zero()
    weights, tiles = left, right
    for t0 in range(0, n, size):
        cell = cells + 8 * (t0 // size)
        page = load_i64(cell) + offset + 2 * first
        ahead = page  # of a run's last page but one on, what comes next is asked for once
        if t0 + 2 * size < n:
            ahead = load_i64(cell + 16) + offset + 2 * first
        elif n <= size or t0 + size < n:
            ahead = load_i64(scratch - 8) + 2 * first
        for t in range(0, min(size, n - t0), STEP):
            at, count = page + 2 * t * dim, min(STEP, n - t0 - t)
            if count < STEP:
                _copy_rows(at, count, dim, channels, block)
                at = block
            _weight_tile(p + 4 * (t0 + t), stride, rows, weights)
            _value_tiles(at, dim, channels, tiles, ahead + 2 * t * dim)
            weights = 2 * left + TILE - weights
            tiles = 2 * right + 4 * TILE - tiles
            # tiles just stored would be waited for, so those before are multiplied
            if t0 + t > 0:
                row_add(weights, tiles)
    row_add(2 * left + TILE - weights, 2 * right + 4 * TILE - tiles)
    row_store(scratch)


@inlined
def _copy_rows(source, rows, dim, channels, block):
    """Channels of fewer than 32 rows, with zeros behind them."""
    for t in range(STEP):
        for c in range(0, 2 * channels, 64):
            at = 2 * t * dim + c
            store(block + at, load(u16x32, source + at) if t < rows else zeros(u16x32))


def _mix(cells, offset, size, n, p, stride, rows, dim, out, scratch, decoder, nbytes, values):
    tiles_begin(scratch)
    for i in range(0, rows, ROWS):
        some, row = min(ROWS, rows - i), p + i * stride
        for c in range(0, dim, 64):
            channels = min(64, dim - c)
            _mix_channels(cells, offset, size, n, row, stride, some, dim, c, channels, scratch)
            _add_mixes(scratch, some, channels, out + 4 * (i * dim + c), 4 * dim)
    tiles_end()


SCORE, MIX = Verb(_score), Verb(_mix)


def scratch_nbytes(dim: int) -> int:
    """Bytes that score or mix need."""
    return 14 * TILE + 8 * ROWS * dim + 2 * STEP * dim
