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

from engine.cpu.amx import TILE, tiles_begin, tiles_end
from engine.cpu.gather import gather, look_up_row, scatter
from engine.cpu.halves import store_pairs
from engine.cpu.jit import Verb, inlined
from engine.cpu.kv_integers import block_rows, next_page, sum_at, sums_stride
from engine.cpu.kv_page_tiles import channel_rows, clear_half, clear_tiles, key
from engine.cpu.kv_sorted import (
    CENTER,
    WIDTHS,
    load_norms,
    load_ranges,
    parts,
    sort,
    unpack_set,
)
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


@cache  # callers keep addresses
def mix_verb(tiles: bool) -> Verb:
    def mix(page, n, p, stride, rows, dim, out, scratch, codes_nbytes, unused, unused2):
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
    return 2 * padded * deep + codes + sums + small


@inlined
def _tile_rooms(scratch, n, lanes):
    """Addresses of ranges, norms, counts, order, places, rows and codes."""
    norms = scratch + 8 * lanes
    counts = norms + 4 * n
    order = counts + 8 * WIDTHS
    places = order + 4 * lanes + 64
    row = places + 4 * lanes
    return scratch, norms, counts, order, places, row, (row + 64 * lanes + 512 + 63) & ~63


def tiles_scratch_nbytes(lanes: int, page_tokens: int) -> int:
    """Bytes that the verbs for tiles need."""
    tokens = -(-page_tokens // 32) * 32
    return 80 * lanes + 4 * tokens + 8 * WIDTHS + max(tokens, CHUNK) * lanes + 1024


def _key_tiles(page, n, dim, target, low, apart, scratch, codes_nbytes, unused, unused2):
    """Tiles of keys; see `engine.cpu.kv_tiles`."""
    wide, lanes = width(dim), (dim + 15) & ~15
    ranges, norms, counts, order, _, row, codes = _tile_rooms(scratch, n, lanes)
    widths, norm_codes, middles, sizes, pairs = parts(page, n, lanes, codes_nbytes)
    sort(widths, lanes, order, counts)
    load_ranges(middles, sizes, pairs, lanes, ranges)
    load_norms(norm_codes, pairs, n, norms)
    _unpack_keys(page, n, 16 * lanes, counts, row, codes, 0)
    for t in range(0, n, 16):
        norm = load(f32x16, norms + 4 * t)
        for c in range(0, lanes, 4):
            word = load(u32x16, codes + t * lanes + 16 * c)
            for i in range(4):
                x = key(word, i, c + i, ranges, ranges + 4 * lanes, _CENTER, norm)
                store(row + 64 * load_i32(order + 4 * (c + i)), x)
        for c in range(0, lanes, 2):
            x, y = load(f32x16, row + 64 * c), load(f32x16, row + 64 * c + 64)
            store_pairs(x, y, target + 32 * c, low)
        if lanes < wide:
            clear_half(target + 32 * lanes, low)
        target += apart


@inlined
def _take_order(order, ranges, lanes, dim, natural, places):
    """The ranges in the channels' order, zeros for those of the padding, and where each channel's
    word stands in units of CHUNK tokens, int32 [lanes]."""
    for c in range(0, lanes, 16):
        channels = load(i32x16, order + 4 * c)
        scatter(natural, channels, load(f32x16, ranges + 4 * c))
        scatter(natural + 4 * lanes, channels, load(f32x16, ranges + 4 * (lanes + c)))
        scatter(places, channels, iota(i32x16) + c * CHUNK // 4)
    for c in range(dim, lanes):
        store_f32(natural + 4 * c, np.float32(0))
        store_f32(natural + 4 * (lanes + c), np.float32(0))


def _value_tiles(page, n, dim, target, low, apart, scratch, codes_nbytes, unused, unused2):
    """Tiles of values; see `engine.cpu.kv_tiles`.

    Words of four tokens' codes are what is put in order.  They were written long before, or a
    gather would wait for them.
    """
    wide, lanes = width(dim), (dim + 15) & ~15
    ranges, norms, counts, order, places, natural, codes = _tile_rooms(scratch, n, lanes)
    widths, norm_codes, middles, sizes, pairs = parts(page, n, lanes, codes_nbytes)
    sort(widths, lanes, order, counts)
    load_ranges(middles, sizes, pairs, lanes, ranges)
    load_norms(norm_codes, pairs, n, norms)
    _take_order(order, ranges, lanes, dim, natural, places)
    for t0 in range(0, n, CHUNK):
        count = min(CHUNK, n - t0)
        _unpack_values(page, n, t0, count, counts, codes, CHUNK, 0)
        for c in range(0, lanes, 16):
            place, tile = load(i32x16, places + 4 * c), target + c // 16 * apart
            s, m = natural + 4 * c, natural + 4 * (lanes + c)
            for t in range(0, count, 4):
                word = gather(u32x16, codes + 16 * t, place)
                channel_rows(
                    word, s, m, _CENTER, norms + 4 * (t0 + t), tile + 32 * t, low
                )  # fmt: skip
        if lanes < wide:
            clear_tiles(target + lanes // 16 * apart, low, count // 32)
        target += TILE * (count // 32)


KEY_TILES, VALUE_TILES = Verb(_key_tiles), Verb(_value_tiles)
