"""Score and mix on pages of `engine.kv.formats.channels`; see `engine.cpu.kv_verbs` for signatures.

Nothing is dequantized: with x[t, d] = n'[t] (m[d] + s[d] code[t, d]) the ranges are folded into the
query once per page, the norms into the weights, and the inner loops run over codes.

    score[t] = n'[t] (q . m + (q s) . code[t])
    out[d]  += m[d] sum_t w[t] + s[d] sum_t w[t] code[t, d],  w = p n'

Without norms n' is 1, and in a symmetric type m is -qmax s.  q s and w are rounded to 16 bits, see
`engine.cpu.kv_integers`; the exact terms then stand for the middle of the codes, m + 2^(b-1) s, so
that the rounding is multiplied by a code's distance from the middle only.  Parameters: bytes of the
codes, and the sum of NORMS and MINIMA where the page has them.  There is a verb per number of bits,
with tile registers or without, for runs of pages; `engine.cpu.kv_direct` has what needs none.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from engine.cpu import kv_direct
from engine.cpu.amx import TILE, tiles_begin, tiles_end
from engine.cpu.jit import Verb, inlined
from engine.cpu.kv_direct import CHUNK
from engine.cpu.kv_integers import (
    block_rows,
    fold_query,
    fold_weights,
    next_page,
    pair_products,
    sum_at,
    sums_stride,
    unpack_sets,
)
from engine.cpu.kv_page_tiles import channel_tiles, clear_tiles, key_tiles
from engine.cpu.kv_ranges import load_norms, load_ranges
from engine.cpu.kv_runs import announce
from engine.cpu.kv_tokens import width
from engine.cpu.simd import (
    f32x16,
    fma,
    load,
    load_f32,
    load_i64,
    splat,
    store,
    zeros,
)

FEW_ROWS = 4  # up to which codes are multiplied where they are unpacked


@inlined
def _rooms(scratch, rows, lanes, depth, units):
    """Addresses of sums, a row's values, ranges, norms, factors (16 bytes per row), planes and
    unpacked codes."""
    block = block_rows(rows)
    padded = (rows + block - 1) // block * block
    values = scratch + 2 * block * sums_stride(units)
    steps = values + 4 * depth
    norms = steps + 8 * lanes
    factors = norms + 4 * CHUNK
    planes = (factors + 16 * padded + 63) & ~63
    return scratch, values, steps, norms, factors, planes, planes + 2 * padded * depth


def scratch_nbytes(rows: int, head_dim: int) -> int:
    """Bytes that score or mix need for `rows` query rows."""
    lanes = -(-head_dim // 32) * 32
    depth = max(-(-head_dim // 64) * 64, CHUNK)
    fixed = 2 * 16 * (4 * depth + 64) + 4 * depth + 8 * lanes + 4 * CHUNK + 64
    tiles = fixed + (16 + 2 * depth) * (rows + 15) + CHUNK * (lanes + 64) + 1024
    return max(tiles, kv_direct.scratch_nbytes(rows, head_dim))


@inlined
def _tile_score(page, n, q, stride, rows, dim, out, scratch, codes_nbytes, parts, bits):
    wide, lanes, depth = width(dim), (dim + 15) & ~15, (dim + 63) & ~63
    block, units = block_rows(rows), min(n, CHUNK) // 16
    sums, folded, steps, norms, factors, planes, codes = _rooms(scratch, rows, lanes, depth, units)
    ahead = next_page(page, codes_nbytes, scratch)
    load_ranges(page, n, lanes, codes_nbytes, bits, parts, steps)
    for c in range(lanes, depth, 16):
        store(folded + 4 * c, zeros(f32x16))
    low = block * depth
    for i in range(rows):
        query, target = q + 4 * i * wide, planes + (i // block * 2 * block + i % block) * depth
        fold_query(query, steps, lanes, bits, folded, depth, target, low, factors + 16 * i)
    for t0 in range(0, n, CHUNK):
        count = min(CHUNK, n - t0)
        load_norms(page, codes_nbytes, t0, count, parts, norms)
        stride_sums = sums_stride(count // 16)
        for i0 in range(0, rows, block):
            some, left = min(block, rows - i0), planes + 2 * i0 * depth
            packed = page + t0 * lanes // 8 * bits
            for t in range(0, count + 32, 32):
                # a pair of units is unpacked while the one before it is multiplied
                if i0 == 0 and t < count:
                    at, target = packed + t * lanes // 8 * bits, codes + t * lanes
                    unpack_sets(at, lanes // 2, bits, target, ahead)
                if t > 0:
                    first, target = codes + (t - 32) * lanes, sums + 4 * (t - 32)
                    second = first + 16 * lanes
                    pair_products(left, depth, block, first, second, target, stride_sums)
            for i in range(some):
                scale = splat(f32x16, load_f32(factors + 16 * (i0 + i)))
                offset = splat(f32x16, load_f32(factors + 16 * (i0 + i) + 4))
                high, target = sums + i * stride_sums, out + (i0 + i) * stride + 4 * t0
                low_sums = high + block * stride_sums
                for t in range(0, 4 * count, 64):
                    value = fma(sum_at(high + t, low_sums + t), scale, offset)
                    store(target + t, value * load(f32x16, norms + t))


@inlined
def _tile_mix(page, n, p, stride, rows, dim, out, scratch, codes_nbytes, parts, bits):
    wide, lanes, depth = width(dim), (dim + 15) & ~15, (min(n, CHUNK) + 63) & ~63
    block, units = block_rows(rows), lanes // 16
    sums, _, steps, norms, factors, planes, codes = _rooms(scratch, rows, lanes, depth, units)
    stride_sums, low = sums_stride(units), block * depth
    ahead = next_page(page, codes_nbytes, scratch)
    load_ranges(page, n, lanes, codes_nbytes, bits, parts, steps)
    for t0 in range(0, n, CHUNK):
        count = min(CHUNK, n - t0)
        load_norms(page, codes_nbytes, t0, count, parts, norms)
        for i in range(rows):
            row = p + i * stride + 4 * t0
            target = planes + (i // block * 2 * block + i % block) * depth
            fold_weights(row, norms, count, bits, depth, target, low, factors + 16 * i)
        for i0 in range(0, rows, block):
            some, left = min(block, rows - i0), planes + 2 * i0 * depth
            for c in range(0, lanes + 32, 32):
                if i0 == 0:
                    for d in range(c, min(c + 32, lanes), 16):
                        at, target = page + (d * n + 16 * t0) // 8 * bits, codes + d * depth
                        unpack_sets(at, count // 4, bits, target, ahead)
                if 0 < c < lanes + 32:
                    first, target = codes + (c - 32) * depth, sums + 4 * (c - 32)
                    second = first + 16 * depth
                    pair_products(left, depth, block, first, second, target, stride_sums)
            for i in range(some):
                scale = splat(f32x16, load_f32(factors + 16 * (i0 + i)))
                offset = splat(f32x16, load_f32(factors + 16 * (i0 + i) + 4))
                mass = splat(f32x16, load_f32(factors + 16 * (i0 + i) + 8))
                high, target = sums + i * stride_sums, out + 4 * (i0 + i) * wide
                low_sums = high + block * stride_sums
                for c in range(0, 4 * lanes, 64):
                    middle = load(f32x16, steps + 4 * lanes + c)
                    exact = fma(middle, mass, load(f32x16, target + c))
                    dots = fma(sum_at(high + c, low_sums + c), scale, offset)
                    store(target + c, fma(dots, load(f32x16, steps + c), exact))


@inlined
def _score(page, n, q, stride, rows, dim, out, scratch, codes_nbytes, parts, bits, tiles):
    if tiles and rows > FEW_ROWS:
        _tile_score(page, n, q, stride, rows, dim, out, scratch, codes_nbytes, parts, bits)
    else:
        kv_direct.score(page, n, q, stride, rows, dim, out, scratch, codes_nbytes, parts, bits)


@inlined
def _mix(page, n, p, stride, rows, dim, out, scratch, codes_nbytes, parts, bits, tiles):
    if tiles and rows > FEW_ROWS:
        _tile_mix(page, n, p, stride, rows, dim, out, scratch, codes_nbytes, parts, bits)
    else:
        kv_direct.mix(page, n, p, stride, rows, dim, out, scratch, codes_nbytes, parts, bits)


@inlined
def _begin(rows, scratch, tiles):
    if tiles and rows > FEW_ROWS:
        tiles_begin(scratch)


@inlined
def _end(rows, tiles):
    if tiles and rows > FEW_ROWS:
        tiles_end()


@lru_cache(maxsize=32)
def score_verb(bits: int, tiles: bool) -> Verb:
    """score for runs of pages of `bits` bits a code; `tiles`: tile registers for more than
    FEW_ROWS, configured once."""

    def score(cells, offset, size, n, q, stride, rows, dim, out, scratch, codes_nbytes, parts, _):
        following, stop = load_i64(scratch - 8), cells + n // size * 8
        _begin(rows, scratch, tiles)
        for cell in range(cells, stop, 8):
            announce(cell, 1, stop, offset, following, scratch)
            page = load_i64(cell) + offset
            _score(page, size, q, stride, rows, dim, out, scratch, codes_nbytes, parts, bits, tiles)
            out += 4 * size
        _end(rows, tiles)

    return Verb(score)


@lru_cache(maxsize=32)
def mix_verb(bits: int, tiles: bool) -> Verb:
    """mix for runs of pages of `bits` bits a code; `tiles` as in `score_verb`."""

    def mix(cells, offset, size, n, p, stride, rows, dim, out, scratch, codes_nbytes, parts, _):
        following, stop = load_i64(scratch - 8), cells + n // size * 8
        _begin(rows, scratch, tiles)
        for cell in range(cells, stop, 8):
            announce(cell, 2, stop, offset, following, scratch)
            page = load_i64(cell) + offset
            _mix(page, size, p, stride, rows, dim, out, scratch, codes_nbytes, parts, bits, tiles)
            p += 4 * size
        _end(rows, tiles)

    return Verb(mix)


@inlined
def _tile_rooms(scratch, lanes):
    """Addresses of ranges, norms and codes."""
    norms = scratch + 8 * lanes
    return scratch, norms, (norms + 4 * CHUNK + 63) & ~63


def tiles_scratch_nbytes(lanes: int) -> int:
    """Bytes that the verbs for tiles need."""
    return 8 * lanes + CHUNK * (lanes + 4) + 64


@lru_cache(maxsize=32)
def key_verb(bits: int) -> Verb:
    """Tiles of keys of `bits` bits a code; see `engine.cpu.kv_tiles`."""

    def tiles(page, n, dim, target, low, apart, scratch, codes_nbytes, parts, _):
        wide, lanes, center = width(dim), (dim + 15) & ~15, np.float32(1 << (bits - 1))
        ranges, norms, codes = _tile_rooms(scratch, lanes)
        load_ranges(page, n, lanes, codes_nbytes, bits, parts, ranges)
        for t0 in range(0, n, CHUNK):
            count = min(CHUNK, n - t0)
            load_norms(page, codes_nbytes, t0, count, parts, norms)
            unpack_sets(page + t0 * lanes // 8 * bits, count * lanes // 64, bits, codes, 0)
            for t in range(0, count, 16):
                unit, norm, m = codes + t * lanes, load(f32x16, norms + 4 * t), ranges + 4 * lanes
                key_tiles(unit, lanes, wide, ranges, m, center, norm, target, low)
                target += apart

    return Verb(tiles)


@lru_cache(maxsize=32)
def value_verb(bits: int) -> Verb:
    """Tiles of values of `bits` bits a code."""

    def tiles(page, n, dim, target, low, apart, scratch, codes_nbytes, parts, _):
        wide, lanes, center = width(dim), (dim + 15) & ~15, np.float32(1 << (bits - 1))
        ranges, norms, codes = _tile_rooms(scratch, lanes)
        load_ranges(page, n, lanes, codes_nbytes, bits, parts, ranges)
        for t0 in range(0, n, CHUNK):
            count = min(CHUNK, n - t0)
            load_norms(page, codes_nbytes, t0, count, parts, norms)
            for c in range(0, lanes, 16):
                unpack_sets(page + (c * n + 16 * t0) // 8 * bits, count // 4, bits, codes, 0)
                s, m, tile = ranges + 4 * c, ranges + 4 * (lanes + c), target + c // 16 * apart
                channel_tiles(codes, count, s, m, center, norms, tile, low)
            if lanes < wide:
                clear_tiles(target + lanes // 16 * apart, low, count // 32)
            target += TILE * (count // 32)

    return Verb(tiles)
