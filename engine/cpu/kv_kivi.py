"""Score and mix on pages of `engine.kv.formats.kivi`; see `engine.cpu.kv_verbs` for signatures.

Nothing is dequantized, as in `engine.cpu.kv_pages`: K's ranges are folded into the query, once per
group of tokens, and V's into the weights, once per group of channels.

    score[t] = q . m[g] + (q s[g]) . code[t]                       g = t div G
    out[d]  += sum_t p[t] m[g, t] + sum_t p[t] s[g, t] code[t, d]  g = d div G

Rounded to 16 bits, q s and p s are multiplied by a code's distance from the middle code, as there.
Parameters: bytes of the codes, G, none.  There is a verb per number of bits, with tile registers or
without.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from engine.cpu.amx import TILE, tiles_begin, tiles_end
from engine.cpu.jit import Verb, inlined
from engine.cpu.kv_integers import block_rows, next_page, sum_at, sums_stride, unpack_sets
from engine.cpu.kv_page_tiles import clear_tiles, key_tiles, value_tiles
from engine.cpu.kv_tokens import width
from engine.cpu.kv_units import products, split_row
from engine.cpu.simd import (
    convert,
    f16x16,
    f32x16,
    fma,
    load,
    load_f32,
    reduce_add,
    splat,
    store,
    store_f32,
    zeros,
)

CHUNK = 128  # tokens whose codes are unpacked at a time: whole groups


@inlined
def _load_ranges(ranges, n, first, count, center, target):
    """s of first..first+count of a group's n ranges and, behind them, the middles m + center s, as
    float32 [2, count]."""
    for i in range(0, count, 16):
        at = ranges + 2 * (first + i)
        s = convert(f32x16, load(f16x16, at + 2 * n))
        store(target + 4 * i, s)
        m = convert(f32x16, load(f16x16, at))
        store(target + 4 * (count + i), fma(s, splat(f32x16, center), m))


@inlined
def _fold_rows(values, stride, rows, ranges, count, depth, center, folded, planes, block, factors):
    """The planes of values s for `rows` rows of `count` float32, zeros up to `depth`, and per row
    their scale and what their sums lack."""
    for c in range(count, depth, 16):
        store(folded + 4 * c, zeros(f32x16))
    for i in range(rows):
        exact = zeros(f32x16)
        for c in range(0, 4 * count, 64):
            value = load(f32x16, values + i * stride + c)
            exact = fma(value, load(f32x16, ranges + 4 * count + c), exact)
            store(folded + c, value * load(f32x16, ranges + c))
        target = planes + (i // block * 2 * block + i % block) * depth
        scale, total = split_row(folded, depth, target, block)
        store_f32(factors + 8 * i, scale)
        store_f32(factors + 8 * i + 4, reduce_add(exact) - total * scale * center)


@inlined
def _rooms(scratch, rows, lanes, depth, units):
    """Addresses of sums, ranges, a folded row, factors (8 bytes per row), planes and codes."""
    block = block_rows(rows)
    padded = (rows + block - 1) // block * block
    ranges = scratch + 2 * block * sums_stride(units)
    folded = ranges + 8 * max(lanes, CHUNK)
    factors = folded + 4 * depth
    planes = (factors + 8 * padded + 63) & ~63
    return scratch, ranges, folded, factors, planes, planes + 2 * padded * depth


@inlined
def _clear_padding(out, rows, dim, lanes, wide):
    """The minima that no channel of the padding has."""
    for i in range(rows):
        for d in range(dim, lanes):
            store_f32(out + 4 * (i * wide + d), np.float32(0))


@cache  # callers keep addresses
def score_verb(bits: int, tiles: bool) -> Verb:
    """score for pages of `bits` bits a code."""

    def score(page, n, q, stride, rows, dim, out, scratch, codes_nbytes, group, unused):
        wide, lanes, depth = width(dim), (dim + 15) & ~15, (dim + 63) & ~63
        block, center = block_rows(rows), np.float32(1 << (bits - 1))
        sums, ranges, folded, factors, planes, codes = _rooms(
            scratch, rows, lanes, depth, group // 16
        )
        ahead = next_page(page, codes_nbytes, scratch)
        if tiles:
            tiles_begin(sums)
        for t0 in range(0, n, CHUNK):
            steps = min(CHUNK, n - t0) * lanes // 64
            unpack_sets(page + t0 * lanes // 8 * bits, steps, bits, codes, ahead)
            for start in range(t0, min(t0 + CHUNK, n), group):
                units = min(group, n - start) // 16
                stride_sums = sums_stride(units)
                stored = page + codes_nbytes + start // group * 4 * lanes
                _load_ranges(stored, lanes, 0, lanes, center, ranges)
                _fold_rows(
                    q, 4 * wide, rows, ranges, lanes, depth, center, folded, planes, block, factors
                )  # fmt: skip
                first = codes + (start - t0) * lanes
                for i0 in range(0, rows, block):
                    some, left = min(block, rows - i0), planes + 2 * i0 * depth
                    products(left, depth, block, some, first, 16 * lanes, units, sums, tiles)
                    for i in range(some):
                        scale = splat(f32x16, load_f32(factors + 8 * (i0 + i)))
                        offset = splat(f32x16, load_f32(factors + 8 * (i0 + i) + 4))
                        high, target = sums + i * stride_sums, out + (i0 + i) * stride + 4 * start
                        low = high + block * stride_sums
                        for t in range(0, 64 * units, 64):
                            store(target + t, fma(sum_at(high + t, low + t), scale, offset))
        if tiles:
            tiles_end()

    return Verb(score)


@cache  # callers keep addresses
def mix_verb(bits: int, tiles: bool) -> Verb:
    """mix for pages of `bits` bits a code."""

    def mix(page, n, p, stride, rows, dim, out, scratch, codes_nbytes, group, unused):
        wide, lanes, depth = width(dim), (dim + 15) & ~15, (min(n, CHUNK) + 63) & ~63
        block, center = block_rows(rows), np.float32(1 << (bits - 1))
        sums, ranges, folded, factors, planes, codes = _rooms(
            scratch, rows, lanes, depth, group // 16
        )
        ahead = next_page(page, codes_nbytes, scratch)
        if tiles:
            tiles_begin(sums)
        for t0 in range(0, n, CHUNK):
            count = min(CHUNK, n - t0)
            for c in range(0, lanes, 16):
                packed = page + (c * n + 16 * t0) // 8 * bits
                unpack_sets(packed, count // 4, bits, codes + c * depth, ahead)
            for start in range(0, lanes, group):
                units = (min(group, lanes - start)) // 16
                stride_sums = sums_stride(units)
                stored = page + codes_nbytes + start // group * 4 * n
                _load_ranges(stored, n, t0, count, center, ranges)
                row = p + 4 * t0
                _fold_rows(
                    row, stride, rows, ranges, count, depth, center, folded, planes, block, factors
                )  # fmt: skip
                first = codes + start * depth
                for i0 in range(0, rows, block):
                    some, left = min(block, rows - i0), planes + 2 * i0 * depth
                    products(left, depth, block, some, first, 16 * depth, units, sums, tiles)
                    for i in range(some):
                        scale = splat(f32x16, load_f32(factors + 8 * (i0 + i)))
                        offset = splat(f32x16, load_f32(factors + 8 * (i0 + i) + 4))
                        high, target = sums + i * stride_sums, out + 4 * ((i0 + i) * wide + start)
                        low = high + block * stride_sums
                        for c in range(0, 64 * units, 64):
                            dots = fma(sum_at(high + c, low + c), scale, offset)
                            store(target + c, load(f32x16, target + c) + dots)
        if tiles:
            tiles_end()
        _clear_padding(out, rows, dim, lanes, wide)

    return Verb(mix)


def scratch_nbytes(rows: int, lanes: int) -> int:
    """Bytes that either verb may need for `rows` query rows and `lanes` padded channels."""
    depth = max(-(-lanes // 64) * 64, CHUNK)
    sums, codes = 2 * 16 * (4 * 64 + 64), CHUNK * (lanes + 64) + 16 * depth
    return sums + 12 * depth + (8 + 2 * depth) * (rows + 15) + codes + 1024


@inlined
def _tile_rooms(scratch, lanes):
    """Addresses of ranges and codes."""
    return scratch, scratch + 8 * max(lanes, CHUNK)


def tiles_scratch_nbytes(lanes: int) -> int:
    """Bytes that the verbs for tiles need."""
    return 8 * max(lanes, CHUNK) + CHUNK * lanes


@cache  # callers keep addresses
def key_verb(bits: int) -> Verb:
    """Tiles of keys of `bits` bits a code; see `engine.cpu.kv_tiles`."""

    def tiles(page, n, dim, target, low, apart, scratch, codes_nbytes, group, unused):
        wide, lanes, zero = width(dim), (dim + 15) & ~15, np.float32(0)
        ones = splat(f32x16, np.float32(1))
        ranges, codes = _tile_rooms(scratch, lanes)
        for t in range(0, n, 16):
            if t % CHUNK == 0:
                steps = min(CHUNK, n - t) * lanes // 64
                unpack_sets(page + t * lanes // 8 * bits, steps, bits, codes, 0)
            if t % group == 0:
                stored = page + codes_nbytes + t // group * 4 * lanes
                _load_ranges(stored, lanes, 0, lanes, zero, ranges)
            unit, m = codes + t % CHUNK * lanes, ranges + 4 * lanes
            key_tiles(unit, lanes, wide, ranges, m, zero, ones, target, low)
            target += apart

    return Verb(tiles)


@cache  # callers keep addresses
def value_verb(bits: int) -> Verb:
    """Tiles of values of `bits` bits a code."""

    def tiles(page, n, dim, target, low, apart, scratch, codes_nbytes, group, unused):
        wide, lanes = width(dim), (dim + 15) & ~15
        ranges, codes = _tile_rooms(scratch, lanes)
        for t0 in range(0, n, CHUNK):
            count = min(CHUNK, n - t0)
            for c in range(0, lanes, 16):
                if c % group == 0:
                    stored = page + codes_nbytes + c // group * 4 * n
                    _load_ranges(stored, n, t0, count, np.float32(0), ranges)
                unpack_sets(page + (c * n + 16 * t0) // 8 * bits, count // 4, bits, codes, 0)
                tile = target + c // 16 * apart
                value_tiles(codes, count, ranges, ranges + 4 * count, tile, low)
            if lanes < wide:
                clear_tiles(target + lanes // 16 * apart, low, count // 32)
            target += TILE * (count // 32)

    return Verb(tiles)
