"""Score and mix on pages of bf16 for few query rows, on tile registers.

See `engine.cpu.kv_verbs` for the signatures.  Query rows and weights are two bfloat16 each, high +
low, and eight rows fill a tile: the high halves and then the low ones.  Sums are float32.

Keys are the left factor just as they lie in the page, 32 tokens at a time, the queries the right
one; sums come as [token, row].  Values are the right factor: the rows of two tokens become pairs.

Channels are a multiple of 32.  Parameters are those of `engine.cpu.kv_tokens`, which serves other
widths; many rows are multiplied by its tiles.
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
from engine.cpu.kv_tiles import tile_mix, tile_score
from engine.cpu.simd import f32x16, load, load_i64, store, u16x32, zeros

ROWS = 8  # of a block of query rows
FEW_ROWS = 12  # up to which making tiles of all keys and values costs more
STEP = 32  # tokens at a time
CHUNK = 128  # tokens whose weights become tiles at a time


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
def _store_scores(sums, out, stride, rows, ahead, nbytes):
    """Scores of 32 tokens, while `nbytes` are fetched."""
    for t in range(0, STEP, 16):
        fetch(ahead + nbytes // STEP * t, nbytes // 128)
        store_folded(sums + 64 * t, out + 4 * t, stride, rows)


def _score(page, n, q, stride, rows, dim, out, scratch, decoder, row_nbytes, values):
    if rows > FEW_ROWS:
        tile_score(
            page, n, q, stride, rows, dim, out, scratch, decoder, row_nbytes, values, 2, True
        )
        return
    words = scratch + 4 * TILE  # behind two pairs of sums
    tiles = words + 4 * ROWS * dim
    block = tiles + 4 * ROWS * dim
    nbytes = 2 * STEP * dim
    for i in range(0, rows, ROWS):
        some, target, square = min(ROWS, rows - i), out + i * stride, scratch
        ahead = load_i64(scratch - 8)
        _query_tiles(q + 4 * i * dim, some, dim, words, tiles)
        tiles_begin(scratch)
        for t in range(0, n, STEP):
            at, count = page + 2 * t * dim, min(STEP, n - t)
            if count < STEP:  # nothing is read behind the page
                _copy(at, 2 * count * dim, block)
                at = block
            column_zero()
            column_add(at, 2 * dim, tiles, dim // 32)
            column_store(square)
            # a load right behind a tile's store would wait for it
            square = 2 * scratch + 2 * TILE - square
            if t > 0:
                _store_scores(square, target, stride, some, ahead, nbytes)
                target += 4 * STEP
                ahead += nbytes
        square = 2 * scratch + 2 * TILE - square
        _store_scores(square, target, stride, some, ahead, nbytes)
        tiles_end()


@inlined
def _value_tiles(rows, dim, channels, tiles, ahead):
    """Tiles of 32 tokens, two for 32 channels: pairs of tokens by 16 channels, in the order that
    `lower_pairs` leaves.  As many bytes are fetched."""
    for c in range(0, channels, 32):
        for i in range(16):
            first = rows + 4 * i * dim + 2 * c
            x, y = load(u16x32, first), load(u16x32, first + 2 * dim)
            fetch(ahead + 128 * i, 2)
            store(tiles + 64 * i, lower_pairs(x, y))
            store(tiles + TILE + 64 * i, upper_pairs(x, y))
        tiles += 2 * TILE
        ahead += 2 * TILE


@inlined
def _weight_tiles(p, stride, rows, n, tiles):
    """Tiles of up to 8 rows' high halves and then the low ones, by 32 tokens."""
    for i in range(rows):
        for t in range(0, n, STEP):
            source, target = p + i * stride + 4 * t, tiles + TILE // STEP * t + 64 * i
            plain_row(source, STEP, target, 64 * ROWS)


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


def _mix(page, n, p, stride, rows, dim, out, scratch, decoder, row_nbytes, values):
    if rows > FEW_ROWS:
        tile_mix(page, n, p, stride, rows, dim, out, scratch, decoder, row_nbytes, values, 2, True)
        return
    left = scratch + 4 * TILE
    right = left + CHUNK // STEP * TILE
    block = right + 8 * TILE
    whole = n // STEP * STEP
    if whole < n:
        _copy(page + 2 * whole * dim, 2 * (n - whole) * dim, block)
        for z in range(2 * (n - whole) * dim, 2 * STEP * dim, 64):
            store(block + z, zeros(u16x32))
    tiles_begin(scratch)
    for i in range(0, rows, ROWS):
        some, ahead = min(ROWS, rows - i), load_i64(scratch - 8)
        for t0 in range(0, n, CHUNK):
            end = min(t0 + CHUNK, n)
            _weight_tiles(p + i * stride + 4 * t0, stride, some, end - t0, left)
            for c in range(0, dim, 64):
                channels, weights, tiles = min(64, dim - c), left, right
                sums_zero()
                for t in range(t0, end, STEP):
                    at = page + 2 * t * dim if t < whole else block
                    _value_tiles(at + 2 * c, dim, channels, tiles, ahead)
                    ahead += 2 * STEP * channels
                    tiles = 2 * right + 4 * TILE - tiles
                    # tiles just stored would be waited for, so those before are multiplied
                    if t > t0:
                        row_add(weights, tiles)
                        weights += TILE
                row_add(weights, 2 * right + 4 * TILE - tiles)
                row_store(scratch)
                _add_mixes(scratch, some, channels, out + 4 * (i * dim + c), 4 * dim)
    tiles_end()


SCORE, MIX = Verb(_score), Verb(_mix)


def scratch_nbytes(dim: int) -> int:
    """Bytes that score or mix need."""
    score = 4 * TILE + 8 * ROWS * dim + 2 * STEP * dim
    mix = (4 + CHUNK // STEP + 8) * TILE + 2 * STEP * dim
    return max(score, mix)
