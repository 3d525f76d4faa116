"""Score and mix on pages of `engine.kv.formats.waterfill`; see `engine.cpu.kv_verbs`.

Nothing is dequantized, as in `engine.cpu.kv_pages`: with the sorted channels' ranges folded into
the query, and the norms into the weights, the inner loops run over bytes (`engine.cpu.kv_sorted`).

    score[t] = n'[t] (q . middle + (q s) . (byte[t] - CENTER))
    out[d]  += middle[d] sum_t v[t] + s[d] sum_t v[t] (byte[t, d] - CENTER),  v = p n'

The query is put into the sorted order and a mix is taken out of it, once per page.  Water-filling
makes the steps s, and so the folded query's values, alike: 16 bits serve all channels.  Parameters:
bytes of the codes, none, none.  There is a pair of verbs with tile registers and one without.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from engine.cpu import kv_tiles
from engine.cpu.amx import TILE, tiles_begin, tiles_end
from engine.cpu.gather import look_up_row, scatter
from engine.cpu.jit import Verb, inlined
from engine.cpu.kv_integers import block_rows, next_page, sum_at, sums_stride
from engine.cpu.kv_page_tiles import (
    MANY_ROWS,
    TERMS,
    clear_tiles,
    key_tiles,
    scaled,
    store_halves,
)
from engine.cpu.kv_sorted import (
    CENTER,
    WIDTHS,
    load_norms,
    load_ranges,
    parts,
    sort,
    unpack_set,
)
from engine.cpu.kv_tiles import add_mixes, add_scores, left_rows, rooms
from engine.cpu.kv_tokens import width
from engine.cpu.kv_units import products, split_row
from engine.cpu.simd import (
    f32x16,
    fma,
    i32x16,
    iota,
    load,
    load_f32,
    load_i32,
    load_i64,
    reduce_add,
    splat,
    store,
    store_f32,
    u32x16,
    zeros,
)

CHUNK = 128  # tokens that are multiplied at a time
_CENTER = np.float32(CENTER)


@inlined
def _unpack_keys(page, n, unit, counts, spare, target, ahead):
    """All used channels as units of 16 tokens, `unit` bytes apart: the step of quad c and tokens
    16 g.. goes to target + unit g + 64 c."""
    tokens = n // 16
    quad = token = 0
    for bits in range(WIDTHS - 1, 0, -1):
        for _ in range(load_i64(counts + 8 * bits) * n // 512):
            if tokens % 8 == 0:
                unpack_set(page, bits, target + 64 * quad + unit * token, unit, ahead)
                token += 8
                if token == tokens:
                    quad, token = quad + 1, 0
            else:  # a set holds several quads
                unpack_set(page, bits, spare, 64, ahead)
                for j in range(8):
                    store(target + 64 * quad + unit * token, load(i32x16, spare + 64 * j))
                    token += 1
                    if token == tokens:
                        quad, token = quad + 1, 0
            page += 64 * bits


@inlined
def _tile_rooms(scratch, rows, n, wide, lanes, tokens):
    """Those of `kv_tiles`, then addresses of ranges, norms, counts, order, a row and codes."""
    square, _, _, tiles, low, left, left_low = rooms(scratch, rows, n, wide)
    ranges = left + 2 * left_low
    norms = ranges + 8 * lanes
    counts = norms + 4 * tokens
    order = counts + 8 * WIDTHS
    row = order + 4 * lanes + 64
    codes = (row + 8 * wide + 512 + 127) & ~63
    return square, tiles, low, left, left_low, ranges, norms, counts, order, row, codes


@inlined
def _tile_score(page, n, q, stride, rows, dim, out, scratch, codes_nbytes):
    """For very many rows: pages are decoded, in the sorted order that queries are put into."""
    wide, lanes, steps = width(dim), (dim + 15) & ~15, width(dim) // 32
    square, tiles, low, left, left_low, ranges, norms, counts, order, row, codes = _tile_rooms(
        scratch, rows, wide, wide, lanes, n
    )
    ahead = next_page(page, codes_nbytes, scratch)
    widths, norm_codes, middles, sizes, pairs = parts(page, n, lanes, codes_nbytes)
    sort(widths, lanes, order, counts)
    load_ranges(middles, sizes, pairs, lanes, ranges)
    load_norms(norm_codes, pairs, n, norms)
    for c in range(lanes, wide, 16):
        store(row + 4 * c, zeros(f32x16))
    for i in range(rows):
        for c in range(0, 4 * lanes, 64):
            store(row + c, look_up_row(q + 4 * i * wide, lanes, load(i32x16, order + c)))
        left_rows(row, 0, 1, steps, left + 64 * i * steps, left_low, TERMS)
    _unpack_keys(page, n, 16 * lanes, counts, row, codes, ahead)
    tiles_begin(square)
    for t0 in range(0, n, CHUNK):
        count = min(CHUNK, n - t0)
        for t in range(0, count, 16):
            tile, unit = tiles + TILE * steps * (t // 16), codes + (t0 + t) * lanes
            norm = load(f32x16, norms + 4 * (t0 + t))
            key_tiles(unit, lanes, wide, ranges, ranges + 4 * lanes, _CENTER, norm, tile, low)
        target = out + 4 * t0
        add_scores(
            left, left_low, tiles, low, rows, steps, count, target, stride, square, TERMS
        )  # fmt: skip
    tiles_end()


@inlined
def _fold_row(q, order, ranges, lanes, folded):
    """q s in the sorted order at `folded`; returns q . middle."""
    exact = zeros(f32x16)
    for c in range(0, 4 * lanes, 64):
        query = look_up_row(q, lanes, load(i32x16, order + c))
        exact = fma(query, load(f32x16, ranges + 4 * lanes + c), exact)
        store(folded + c, query * load(f32x16, ranges + c))
    return reduce_add(exact)


@cache  # callers keep addresses
def score_verb(tiles: bool) -> Verb:
    def score(page, n, q, stride, rows, dim, out, scratch, codes_nbytes, unused, unused2):
        if tiles and rows >= MANY_ROWS:
            _tile_score(page, n, q, stride, rows, dim, out, scratch, codes_nbytes)
            return
        wide, lanes, depth = width(dim), (dim + 15) & ~15, (dim + 63) & ~63
        block = block_rows(rows)
        padded = (rows + block - 1) // block * block
        planes, unit = (scratch + 63) & ~63, 16 * depth
        codes = planes + 2 * padded * depth
        sums = codes + n * depth + unit
        norms = sums + 2 * block * sums_stride(CHUNK // 16)
        factors, ranges = norms + 4 * n, norms + 4 * n + 16 * padded
        folded = ranges + 8 * lanes
        counts = folded + 4 * depth
        order, spare = counts + 8 * WIDTHS, counts + 8 * WIDTHS + 4 * lanes + 64
        ahead = next_page(page, codes_nbytes, scratch)
        widths, norm_codes, middles, steps, pairs = parts(page, n, lanes, codes_nbytes)
        sort(widths, lanes, order, counts)
        load_ranges(middles, steps, pairs, lanes, ranges)
        load_norms(norm_codes, pairs, n, norms)
        for c in range(lanes, depth, 16):
            store(folded + 4 * c, zeros(f32x16))
        for i in range(rows):
            exact = _fold_row(q + 4 * i * wide, order, ranges, lanes, folded)
            target = planes + (i // block * 2 * block + i % block) * depth
            scale, total = split_row(folded, depth, target, block)
            store_f32(factors + 16 * i, scale)
            store_f32(factors + 16 * i + 4, exact - total * scale * _CENTER)
        _unpack_keys(page, n, unit, counts, spare, codes, ahead)
        if tiles:
            tiles_begin(sums)
        for t0 in range(0, n, CHUNK):
            units, first = min(CHUNK, n - t0) // 16, codes + t0 * depth
            stride_sums = sums_stride(units)
            for i0 in range(0, rows, block):
                some, left = min(block, rows - i0), planes + 2 * i0 * depth
                products(left, depth, block, some, first, unit, units, sums, tiles)
                for i in range(some):
                    scale = splat(f32x16, load_f32(factors + 16 * (i0 + i)))
                    offset = splat(f32x16, load_f32(factors + 16 * (i0 + i) + 4))
                    high, target = sums + i * stride_sums, out + (i0 + i) * stride + 4 * t0
                    low = high + block * stride_sums
                    for t in range(0, 64 * units, 64):
                        value = fma(sum_at(high + t, low + t), scale, offset)
                        store(target + t, value * load(f32x16, norms + 4 * t0 + t))
        if tiles:
            tiles_end()

    return Verb(score)


@inlined
def _unpack_values(page, n, t0, count, counts, target, depth, ahead):
    """The tokens t0..t0+count of all used channels as units of 16 channels; returns the units."""
    units = 0
    for bits in range(WIDTHS - 1, 0, -1):
        for _ in range(0, load_i64(counts + 8 * bits), 16):
            at = target + 16 * depth * units
            for t in range(0, count, 32):
                unpack_set(page + 2 * bits * (t0 + t), bits, at + 16 * t, 64, ahead)
            page += 2 * bits * n
            units += 1
    return units


@inlined
def _find_places(order, lanes, dim, ranges, places):
    """Where each channel stands among the sorted ones, int32 [lanes].

    The ranges of those of the padding, of which no sum may know, become zeros.
    """
    for c in range(0, lanes, 16):
        scatter(places, load(i32x16, order + 4 * c), iota(i32x16) + c)
    for c in range(dim, lanes):
        place = ranges + 4 * load_i32(places + 4 * c)
        store_f32(place, np.float32(0))
        store_f32(place + 4 * lanes, np.float32(0))


@inlined
def _weigh_row(p, norms, count, weights):
    """p n' at `weights`; returns their sum."""
    mass = zeros(f32x16)
    for t in range(0, 4 * count, 64):
        weight = load(f32x16, p + t) * load(f32x16, norms + t)
        mass = mass + weight
        store(weights + t, weight)
    return reduce_add(mass)


@inlined
def _value_rows(codes, unit, t, lanes, ranges, norms, places, row, tile, apart, low):
    """The tiles' rows of tokens t and t + 16, `apart` bytes from group to group of channels."""
    first, second = splat(f32x16, load_f32(norms)), splat(f32x16, load_f32(norms + 64))
    at, i = codes + 16 * (t & ~3), t & 3
    for c in range(0, lanes, 16):
        step, s, m = at + unit * (c // 16), ranges + 4 * c, ranges + 4 * (lanes + c)
        x = scaled(load(u32x16, step), i, s, m, _CENTER, first)
        y = scaled(load(u32x16, step + 256), i, s, m, _CENTER, second)
        store_halves(x, y, row + 4 * c, 4 * lanes + 128)
    for c in range(0, lanes, 16):
        place = load(i32x16, places + 4 * c)
        store(tile + c // 16 * apart, look_up_row(row, lanes, place))
        store(tile + c // 16 * apart + low, look_up_row(row + 4 * lanes + 128, lanes, place))


@inlined
def _tile_mix(page, n, p, stride, rows, dim, out, scratch, codes_nbytes):
    """For very many rows: pages are decoded, and taken out of the sorted order."""
    wide, lanes, unit = width(dim), (dim + 15) & ~15, 16 * CHUNK
    square, tiles, low, left, left_low, ranges, norms, counts, places, row, codes = _tile_rooms(
        scratch, rows, CHUNK, wide, lanes, n
    )
    order = codes + lanes * CHUNK
    ahead = next_page(page, codes_nbytes, scratch)
    widths, norm_codes, middles, sizes, pairs = parts(page, n, lanes, codes_nbytes)
    sort(widths, lanes, order, counts)
    load_ranges(middles, sizes, pairs, lanes, ranges)
    load_norms(norm_codes, pairs, n, norms)
    _find_places(order, lanes, dim, ranges, places)
    for t0 in range(0, n, CHUNK):
        count = min(CHUNK, n - t0)
        steps = count // 32
        left_rows(p + 4 * t0, stride, rows, steps, left, left_low, TERMS)
        _unpack_values(page, n, t0, count, counts, codes, CHUNK, ahead)
        for t in range(0, count, 32):
            for k in range(16):
                tile, norm = tiles + TILE * (t // 32) + 64 * k, norms + 4 * (t0 + t + k)
                _value_rows(
                    codes, unit, t + k, lanes, ranges, norm, places, row, tile, TILE * steps, low
                )  # fmt: skip
        first = lanes // 16 * steps
        clear_tiles(tiles + TILE * first, wide // 16 * steps - first, low)
        tiles_begin(square)
        add_mixes(left, left_low, tiles, low, rows, steps, out, wide, square, TERMS)
        tiles_end()


@cache  # callers keep addresses
def mix_verb(tiles: bool) -> Verb:
    def mix(page, n, p, stride, rows, dim, out, scratch, codes_nbytes, unused, unused2):
        if tiles and rows >= MANY_ROWS:
            _tile_mix(page, n, p, stride, rows, dim, out, scratch, codes_nbytes)
            return
        wide, lanes, depth = width(dim), (dim + 15) & ~15, (min(n, CHUNK) + 63) & ~63
        block, stride_sums = block_rows(rows), sums_stride(((dim + 15) & ~15) // 16)
        padded = (rows + block - 1) // block * block
        planes = (scratch + 63) & ~63
        codes = planes + 2 * padded * depth
        sums = codes + (lanes + 16) * depth
        norms = sums + 2 * block * stride_sums
        factors, ranges = norms + 4 * n, norms + 4 * n + 16 * padded
        values = ranges + 8 * lanes
        weights = values + 4 * lanes + 64
        counts = weights + 4 * depth
        places, order = counts + 8 * WIDTHS, counts + 8 * WIDTHS + 4 * lanes
        ahead = next_page(page, codes_nbytes, scratch)
        widths, norm_codes, middles, steps, pairs = parts(page, n, lanes, codes_nbytes)
        sort(widths, lanes, order, counts)
        load_ranges(middles, steps, pairs, lanes, ranges)
        load_norms(norm_codes, pairs, n, norms)
        _find_places(order, lanes, dim, ranges, places)
        for t0 in range(0, n, CHUNK):
            count = min(CHUNK, n - t0)
            for t in range(count, depth, 16):
                store(weights + 4 * t, zeros(f32x16))
            for i in range(rows):
                row = p + i * stride + 4 * t0
                mass = _weigh_row(row, norms + 4 * t0, count, weights)
                target = planes + (i // block * 2 * block + i % block) * depth
                scale, total = split_row(weights, depth, target, block)
                store_f32(factors + 16 * i, scale)
                store_f32(factors + 16 * i + 4, total * scale * -_CENTER)
                store_f32(factors + 16 * i + 8, mass)
            units = _unpack_values(page, n, t0, count, counts, codes, depth, ahead)
            if tiles:
                tiles_begin(sums)
            for i0 in range(0, rows, block):
                some, left = min(block, rows - i0), planes + 2 * i0 * depth
                products(left, depth, block, some, codes, 16 * depth, units, sums, tiles)
                for i in range(some):
                    scale = splat(f32x16, load_f32(factors + 16 * (i0 + i)))
                    offset = splat(f32x16, load_f32(factors + 16 * (i0 + i) + 4))
                    mass = splat(f32x16, load_f32(factors + 16 * (i0 + i) + 8))
                    high, target = sums + i * stride_sums, out + 4 * (i0 + i) * wide
                    low = high + block * stride_sums
                    for c in range(0, 4 * lanes, 64):
                        dots = fma(sum_at(high + c, low + c), scale, offset)
                        middle = load(f32x16, ranges + 4 * lanes + c) * mass
                        store(values + c, fma(dots, load(f32x16, ranges + c), middle))
                    for c in range(0, 4 * lanes, 64):
                        value = look_up_row(values, lanes, load(i32x16, places + c))
                        store(target + c, load(f32x16, target + c) + value)
            if tiles:
                tiles_end()

    return Verb(mix)


def scratch_nbytes(rows: int, lanes: int, page_tokens: int) -> int:
    """Bytes that either verb may need for `rows` query rows and `lanes` padded channels."""
    tokens, channels = -(-page_tokens // 64) * 64, -(-lanes // 64) * 64
    padded, deep = rows + 15, max(channels, CHUNK)
    codes = max(tokens * channels + 16 * channels, (channels + 16) * CHUNK)
    sums = 2 * 16 * (4 * deep + 128)
    small = 4 * tokens + 16 * padded + 24 * channels + 4 * deep + 8 * WIDTHS + 1024
    wide = -(-lanes // 32) * 32
    rest = 4 * tokens + 24 * wide + 8 * WIDTHS + max(tokens, CHUNK) * wide + 1024
    tiles = kv_tiles.scratch_nbytes(rows, wide) + rest
    return max(2 * padded * deep + codes + sums + small, tiles)
