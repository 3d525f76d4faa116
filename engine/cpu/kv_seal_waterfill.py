"""Packing pages of `engine.kv.formats.waterfill`, byte for byte as the NumPy reference does it.

    seal(rows, page, scratch, tokens, dim, side, bits, group, decoder, row_nbytes, values,
         queries, query_nbytes)

is `engine.cpu.kv_seal_channels`', but for `group`, the sorted channels that share a width, and
`queries`: the head's float32 rows of `engine.kv.queries`, `query_nbytes` apart, or 0 for none.

In float64, in the recipe's order, and nothing is fused that it rounds twice.
"""

from __future__ import annotations

import math

import numpy as np

from engine.cpu.gather import take_bytes
from engine.cpu.jit import Verb, field, inlined, kernel
from engine.cpu.kv_metadata import encode_linear, encode_log, linear_values, log_values
from engine.cpu.kv_seal_widths import FILL_NBYTES, rank, water_fill
from engine.cpu.kv_tail import decode_rows, key_step, row_stride, tail_item, value_step
from engine.cpu.planes import pack_set
from engine.cpu.simd import (
    bitcast,
    convert,
    f32x16,
    f64x16,
    fma,
    load,
    load_f32,
    load_f64,
    load_i64,
    load_u8,
    load_u16,
    reduce_add,
    reduce_max,
    rint,
    splat,
    sqrt,
    store,
    store_f32,
    store_f64,
    store_u8,
    store_u16,
    u8x16,
    u32x16,
    u64x16,
    zeros,
)
from engine.cpu.vmath import any_larger, larger, smaller, where_larger
from engine.kv.formats.channels import LEAST_RESTORED, padded_dim
from engine.kv.formats.waterfill import MAX_WIDTH, WIDTH_BITS

_LEAST_GAIN = np.float64(LEAST_RESTORED)
BLOCK = 16  # tokens whose codes are sorted at a time
# of scratch: for a token, a channel, and for all; see `seal`
_PER_TOKEN, _PER_CHANNEL, _REST = 2 * 8, 4 * 8 + 5 * 4 + 2 * 2 + 4 + BLOCK, FILL_NBYTES + 512
# float32 encodes what it can encode alike: lengths that leave it room, quotients far from ties
_SHORTEST, _LONGEST = 2.0**-100, 2.0**100
_MISTAKE = np.float32(2.0**-21)


@kernel
def _measure(rows, tokens, stride, lanes, norms, inverses):
    """The lengths of the rows, and the inverses of those that are not 0, float64 [tokens] each."""
    for t in range(tokens):
        squares = zeros(f64x16)
        for c in range(lanes // 16):
            x = convert(f64x16, load(f32x16, rows + 4 * t * stride + 64 * c))
            squares = fma(x, x, squares)  # the product is exact
        norm = math.sqrt(reduce_add(squares))
        store_f64(norms + 8 * t, norm)
        store_f64(inverses + 8 * t, np.float64(1) / (norm if norm > 0 else np.float64(1)))


@inlined
def _divisor(norm):
    length = load_f64(norm)
    return length if length > 0 else np.float64(1)


@inlined
def _quotient(x, divisor, inverse):
    """x / divisor to the last bit: where `inverse` is 1 / divisor, the second remainder is that of
    a neighbour of the quotient, and exact (Markstein 1990).  A division takes thrice as long."""
    q = x * inverse
    q = fma(fma(q * np.float64(-1), divisor, x), inverse, q)
    return fma(fma(q * np.float64(-1), divisor, x), inverse, q)


@kernel
def _find_ranges(rows, tokens, stride, dim, lanes, norms, inverses, middles, reach):
    """The middle and length of every channel's range over the directions, float64 [lanes]; behind
    dim they are the first channel's and 0."""
    for c in range(0, lanes, 16):
        low, high = splat(f64x16, np.float64(np.inf)), splat(f64x16, np.float64(-np.inf))
        for t in range(tokens):
            u = convert(f64x16, load(f32x16, rows + 4 * (t * stride + c)))
            divisor = splat(f64x16, _divisor(norms + 8 * t))
            u = _quotient(u, divisor, splat(f64x16, load_f64(inverses + 8 * t)))
            low, high = smaller(u, low), larger(u, high)
        store(middles + 8 * c, (low + high) * np.float64(0.5) + np.float64(0))
        store(reach + 8 * c, high - low)
    for c in range(dim, lanes):
        store_f64(middles + 8 * c, load_f64(middles))


@kernel
def _weigh(queries, nbytes, tokens, dim, lanes, reach, importance):
    """Float64 importance [lanes] = reach times the RMS of the queries; 0 behind dim."""
    for d in range(0, 8 * lanes, 128):
        store(importance + d, load(f64x16, reach + d))
    if queries == 0:
        return
    whole = dim & ~15
    for c in range(0, whole, 32):  # two sums at a time, as one would wait for itself
        second = min(c + 16, whole - 16)
        total, total2 = zeros(f64x16), zeros(f64x16)
        for t in range(tokens):
            row = queries + t * nbytes
            total = total + convert(f64x16, load(f32x16, row + 4 * c))
            total2 = total2 + convert(f64x16, load(f32x16, row + 4 * second))
        store(importance + 8 * c, total)
        store(importance + 8 * second, total2)
    for d in range(whole, dim):
        rest = np.float64(0)
        for t in range(tokens):
            rest += np.float64(load_f32(queries + t * nbytes + 4 * d))
        store_f64(importance + 8 * d, rest)
    for d in range(0, 8 * lanes, 128):
        mean = load(f64x16, importance + d) / splat(f64x16, np.float64(tokens))
        weight = convert(f64x16, convert(f32x16, sqrt(mean)))
        store(importance + d, load(f64x16, reach + d) * weight)


@kernel
def _sort(widths, lanes, order, places):
    """The sorted channels' numbers, uint16 [lanes], and their low bytes."""
    for w in range(MAX_WIDTH, -1, -1):
        for c in range(lanes):
            if load_u8(widths + c) == w:
                store_u16(order, c)
                store_u8(places, c)
                order, places = order + 2, places + 1


@kernel
def _store_widths(widths, lanes, planes):
    """As bit planes."""
    for i in range(WIDTH_BITS):
        for c in range(0, lanes, 8):
            byte = 0
            for j in range(8):
                byte |= ((int(load_u8(widths + c + j)) >> i) & 1) << j
            store_u8(planes, byte)
            planes += 1


@kernel
def _store_sorted(codes, order, lanes, target):
    """Bytes [lanes] by channel as bytes by sorted channel."""
    for i in range(lanes):
        store_u8(target + i, load_u8(codes + int(load_u16(order + 2 * i))))


@kernel
def _store_ranges(middles, reach, widths, order, dim, lanes, codes, metadata, pairs):
    """Encode m and s, whose bytes [2, lanes] stand at `metadata` in the sorted order.

    Their codes by channel stay at `codes`, bytes [2, lanes]; `reach` is overwritten.
    """
    for c in range(0, lanes, 16):
        width = convert(u64x16, load(u8x16, widths + c))
        part = bitcast(f64x16, (splat(u64x16, 1023) - width) << 52)  # 2^-width
        part = where_larger(splat(f64x16, np.float64(1)), part, part, zeros(f64x16))
        store(reach + 8 * c, load(f64x16, reach + 8 * c) * part)
    encode_linear(middles, lanes, codes, pairs + 4)
    for c in range(dim, lanes):
        store_u8(codes + c, 0)
    encode_log(reach, lanes, True, codes + lanes, pairs + 8)
    _store_sorted(codes, order, lanes, metadata)
    _store_sorted(codes + lanes, order, lanes, metadata + lanes)


@kernel
def _load_ranges(codes, widths, pairs, dim, lanes, ranges):
    """What stored m, s and widths stand for: float32 [5, lanes] at `ranges`, m, s, half of the
    largest code, and 1 / s and half - m / s, which are 0 where s is.

    Returns how far from an integer x / n / s + (half - m / s) may be for float32 to round to the
    same as float64.  Of unit vectors, x / n is at most 1; its error in float32 is 2^-23, that of
    either constant and of the sum 2^-24 of themselves: together 2^-22 (1 / s + |half - m / s|).
    Twice that, so that later digits and float64's own errors need no thought.
    """
    most, one, nothing = zeros(f32x16), splat(f32x16, np.float32(1)), zeros(f32x16)
    for c in range(0, lanes, 16):
        m, s = linear_values(codes + c, pairs + 4), log_values(codes + lanes + c, pairs + 8)
        top = (splat(u32x16, 1) << convert(u32x16, load(u8x16, widths + c))) - 1
        half = convert(f32x16, top) * np.float32(0.5)
        inverse = splat(f64x16, np.float64(1)) / convert(f64x16, where_larger(s, nothing, s, one))
        bias = convert(f32x16, convert(f64x16, half) - convert(f64x16, m) * inverse)
        inverse = where_larger(s, nothing, convert(f32x16, inverse), nothing)
        bias = where_larger(s, nothing, bias, nothing)
        target = ranges + 4 * c
        store(target, m)
        store(target + 4 * lanes, s)
        store(target + 8 * lanes, half)
        store(target + 12 * lanes, inverse)
        store(target + 16 * lanes, bias)
        most = larger(inverse + larger(bias, bias * np.float32(-1)), most)
    for c in range(dim, lanes):
        store_f32(ranges + 4 * c, np.float32(0))
    return np.float32(0.5) - reduce_max(most) * _MISTAKE


@inlined
def _add_square(squares, code, m, s, half):
    decoded = convert(f64x16, m + s * (code - half))
    return fma(decoded, decoded, squares)  # the product is exact


@kernel
def _encode_exactly(row, divisor, ranges, lanes, codes):
    """Codes uint8 [lanes] of a token's float32 row; returns the length of what they stand for."""
    squares, one, nothing = zeros(f64x16), splat(f32x16, np.float32(1)), zeros(f32x16)
    for c in range(0, 4 * lanes, 64):
        m, s = load(f32x16, ranges + c), load(f32x16, ranges + 4 * lanes + c)
        half = load(f32x16, ranges + 8 * lanes + c)
        u = convert(f64x16, load(f32x16, row + c)) / splat(f64x16, divisor)
        step = convert(f64x16, where_larger(s, nothing, s, one))
        scaled = (u - convert(f64x16, m)) / step + convert(f64x16, half)
        code = where_larger(s, nothing, convert(f32x16, rint(scaled)), nothing)
        code = smaller(larger(code, nothing), half + half)
        store(codes + c // 4, convert(u8x16, code))
        squares = _add_square(squares, code, m, s, half)
    return math.sqrt(reduce_add(squares))


@kernel
def _encode_roughly(row, shrink, last, ranges, lanes, codes):
    """`_encode_exactly` by float32, or -1 where a quotient comes too close to a tie for that."""
    squares, worst, nothing = zeros(f64x16), zeros(f32x16), zeros(f32x16)
    for c in range(0, 4 * lanes, 64):
        m, s = load(f32x16, ranges + c), load(f32x16, ranges + 4 * lanes + c)
        half = load(f32x16, ranges + 8 * lanes + c)
        inverse, bias = load(f32x16, ranges + 12 * lanes + c), load(f32x16, ranges + 16 * lanes + c)
        scaled = fma(load(f32x16, row + c) * shrink, inverse, bias)
        code = rint(scaled)
        rest = bitcast(u32x16, scaled - code) & 0x7FFFFFFF
        worst = larger(bitcast(f32x16, rest), worst)
        code = smaller(larger(code, nothing), half + half)
        store(codes + c // 4, convert(u8x16, code))
        squares = _add_square(squares, code, m, s, half)
    if any_larger(worst, splat(f32x16, last)):
        return np.float64(-1)
    return math.sqrt(reduce_add(squares))


@kernel
def _encode_row(row, norm, inverse, last, ranges, lanes, codes):
    """`_encode_exactly`."""
    length, shrink = np.float64(-1), load_f64(inverse)
    if last > 0 and _SHORTEST < shrink < _LONGEST:
        shrink = splat(f32x16, np.float32(shrink))
        length = _encode_roughly(row, shrink, last, ranges, lanes, codes)
    if length < 0:
        length = _encode_exactly(row, _divisor(norm), ranges, lanes, codes)
    return length


@kernel
def _encode(rows, stride, norms, inverses, last, ranges, lanes, order, places, block, codes):
    """Sorted codes uint8 [BLOCK, lanes] of as many rows; their norms become the stored ones."""
    for t in range(BLOCK):
        row, norm, target = rows + 4 * t * stride, norms + 8 * t, block + t * lanes
        gain = _encode_row(row, norm, inverses + 8 * t, last, ranges, lanes, target)
        store_f64(norm, load_f64(norm) / max(gain, _LEAST_GAIN))
    for t in range(BLOCK):
        source, target = block + t * lanes, codes + t * lanes
        if lanes <= 256:
            take_bytes(source, places, lanes, target)
        else:
            _store_sorted(source, order, lanes, target)


@kernel
def _pack(codes, widths, order, tokens, lanes, side, steps, page):
    """Sorted codes uint8 [tokens, lanes] as sets, one after another."""
    across, channels = (tokens // 4, 16) if side else (tokens // 16, 4)
    for first in range(0, tokens * lanes // 64, 8):
        channel = first // across * channels
        bits = int(load_u8(widths + int(load_u16(order + 2 * channel))))
        if bits == 0:
            return
        for k in range(first, first + 8):
            source, step = codes + k // across * channels, steps + 64 * (k - first)
            if side:
                value_step(source + 4 * (k % across) * lanes, lanes, step)
            else:
                key_step(source + 16 * (k % across) * lanes, lanes, step)
        pack_set(steps, page, bits)
        page += 64 * bits


@kernel
def seal(
    rows, page, scratch, tokens, dim, side, bits, group, decoder, row_nbytes, values,
    queries, query_nbytes,
):  # fmt: skip
    lanes, stride = (dim + 15) & ~15, row_stride(values)
    norms = scratch + 4 * tokens * stride
    inverses = norms + 8 * tokens
    # float64 [4, lanes], float32 [5, lanes], uint16 [2, lanes], bytes [4, lanes], ...
    middles = inverses + 8 * tokens
    reach, importance, powers = middles + 8 * lanes, middles + 16 * lanes, middles + 24 * lanes
    ranges = middles + 32 * lanes
    order, ranked = ranges + 20 * lanes, ranges + 22 * lanes
    widths, found, places = order + 4 * lanes, order + 5 * lanes, order + 7 * lanes
    # ... what the water needs, a block of codes, all codes and a set
    water = places + lanes
    block = water + FILL_NBYTES
    codes = block + BLOCK * lanes
    decode_rows(rows, tokens, row_nbytes, decoder, values, dim, scratch)
    _measure(scratch, tokens, stride, lanes, norms, inverses)
    _find_ranges(scratch, tokens, stride, dim, lanes, norms, inverses, middles, reach)
    _weigh(queries, query_nbytes, tokens, dim, lanes, reach, importance)
    rank(importance, lanes, ranges, ranked)
    water_fill(importance, ranked, lanes, group, bits, powers, water, widths)
    _sort(widths, lanes, order, places)
    planes = page + tokens * lanes * bits // 8
    stored_norms = planes + WIDTH_BITS * lanes // 8
    metadata = stored_norms + tokens
    pairs = metadata + 2 * lanes
    _store_widths(widths, lanes, planes)
    _store_ranges(middles, reach, widths, order, dim, lanes, found, metadata, pairs)
    last = _load_ranges(found, widths, pairs, dim, lanes, ranges)
    for t in range(0, tokens, BLOCK):
        _encode(
            scratch + 4 * t * stride, stride, norms + 8 * t, inverses + 8 * t, last, ranges, lanes,
            order, places, block, codes + t * lanes,
        )  # fmt: skip
    encode_log(norms, tokens, False, stored_norms, pairs)
    _pack(codes, widths, order, tokens, lanes, side, codes + tokens * lanes, page)


def scratch_nbytes(tokens: int, head_dim: int, values: int) -> int:
    """Bytes of `scratch`: float32 rows, what there is per token and channel, all codes, a set."""
    lanes = padded_dim(head_dim)
    row = 4 * (-(-values // 16) * 16) + _PER_TOKEN + lanes
    return tokens * row + _PER_CHANNEL * lanes + _REST


def _seal_item(arguments, item, slot):
    """Item: a KV head of a page.  Fields: `tail_fields`, then the arguments of `seal` from `tokens`
    on, `queries` being the addresses of the pages' first rows."""
    rows, page, scratch = tail_item(arguments, item, slot)
    heads, queries, dim = field(arguments, 7), field(arguments, 16), field(arguments, 9)
    if queries != 0:
        queries = load_i64(queries + 8 * (item // heads)) + 4 * (item % heads) * dim
    seal(
        rows, page, scratch, field(arguments, 8), dim, field(arguments, 10), field(arguments, 11),
        field(arguments, 12), field(arguments, 13), field(arguments, 14), field(arguments, 15),
        queries, field(arguments, 17),
    )  # fmt: skip


SEAL_ITEM = Verb(_seal_item)
