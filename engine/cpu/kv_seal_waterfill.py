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

from engine.cpu.jit import Verb, field, inlined, kernel
from engine.cpu.kv_metadata import encode_linear, encode_log, log_value
from engine.cpu.kv_tail import decode_rows, key_step, row_stride, tail_item, value_step
from engine.cpu.planes import pack_set
from engine.cpu.simd import (
    convert,
    f32x16,
    f64x16,
    fma,
    load,
    load_f16,
    load_f32,
    load_f64,
    load_i64,
    load_u8,
    load_u16,
    maximum,
    minimum,
    reduce_add,
    rint,
    splat,
    store,
    store_f32,
    store_f64,
    store_u8,
    store_u16,
    u8x16,
    zeros,
)
from engine.kv.formats.channels import LEAST_RESTORED, padded_dim
from engine.kv.formats.waterfill import MAX_WIDTH, WIDTH_BITS

_LEAST_GAIN = np.float64(LEAST_RESTORED)
_PER_CHANNEL = 8 * 8 + 2 * 4 + 2 * 2 + 3  # bytes of scratch: see `seal`


@kernel
def _measure(rows, tokens, stride, lanes, norms):
    """The lengths of the rows, to float64 norms [tokens]."""
    for t in range(tokens):
        squares = zeros(f64x16)
        for c in range(lanes // 16):
            x = convert(f64x16, load(f32x16, rows + 4 * t * stride + 64 * c))
            squares = squares + x * x
        store_f64(norms + 8 * t, math.sqrt(reduce_add(squares)))


@kernel
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
def _find_ranges(rows, tokens, stride, lanes, norms, middles, reach):
    """The middle and length of every channel's range over the directions, float64 [lanes]."""
    for c in range(0, lanes, 16):
        low, high = splat(f64x16, np.float64(np.inf)), splat(f64x16, np.float64(-np.inf))
        for t in range(tokens):
            divisor = _divisor(norms + 8 * t)
            inverse = splat(f64x16, np.float64(1) / divisor)
            u = convert(f64x16, load(f32x16, rows + 4 * (t * stride + c)))
            u = _quotient(u, splat(f64x16, divisor), inverse)
            low, high = minimum(low, u), maximum(high, u)
        store(middles + 8 * c, (low + high) * np.float64(0.5) + np.float64(0))
        store(reach + 8 * c, high - low)


@kernel
def _weigh(queries, nbytes, tokens, dim, lanes, reach, importance):
    """Float64 importance [lanes] = reach times the RMS of the queries; 0 behind dim."""
    for d in range(lanes):
        store_f64(importance + 8 * d, load_f64(reach + 8 * d))
    if queries == 0:
        return
    whole = dim & ~15
    for c in range(0, whole, 16):
        total = zeros(f64x16)
        for t in range(tokens):
            total = total + convert(f64x16, load(f32x16, queries + t * nbytes + 4 * c))
        store(importance + 8 * c, total)
    for d in range(whole, dim):
        rest = np.float64(0)
        for t in range(tokens):
            rest += np.float64(load_f32(queries + t * nbytes + 4 * d))
        store_f64(importance + 8 * d, rest)
    for d in range(dim):
        weight = np.float32(math.sqrt(load_f64(importance + 8 * d) / tokens))
        store_f64(importance + 8 * d, load_f64(reach + 8 * d) * np.float64(weight))


@kernel
def _rank(importance, lanes, order):
    """The channels by falling importance, then by number, uint16 [lanes]."""
    for i in range(lanes):
        value, j = load_f64(importance + 8 * i), i
        while j > 0:
            other = int(load_u16(order + 2 * (j - 1)))
            if load_f64(importance + 8 * other) >= value:
                break
            store_u16(order + 2 * j, other)
            j -= 1
        store_u16(order + 2 * j, i)


@kernel
def _group_power(importance, order, group):
    power = np.float64(0)
    for i in range(group):
        value = load_f64(importance + 8 * int(load_u16(order + 2 * i)))
        power += value * value
    return power


@kernel
def _most_valuable(worth, widths, groups):
    """The group whose next bit is worth most, of equals the narrowest, then the first."""
    best, width, most = -1, MAX_WIDTH, np.float64(0)
    for g in range(groups):
        w, value = int(load_u8(widths + g)), load_f64(worth + 8 * g)
        if w < MAX_WIDTH and (best < 0 or value > most or (value == most and w < width)):
            best, width, most = g, w, value
    return best


@kernel
def _water_fill(importance, order, lanes, group, bits, powers, worth, group_widths, widths):
    """Widths uint8 [lanes] by channel: `engine.kv.formats.waterfill.water_fill`, bit by bit.

    A group's bits are worth less and less, so the greedy choice is that of the most valuable bits.
    """
    groups = lanes // group
    for g in range(groups):
        power = _group_power(importance, order + 2 * g * group, group)
        store_f64(powers + 8 * g, power)
        store_f64(worth + 8 * g, power)
        store_u8(group_widths + g, 0)
    for _ in range(bits * groups):
        best = _most_valuable(worth, group_widths, groups)
        w = int(load_u8(group_widths + best)) + 1
        store_u8(group_widths + best, w)
        store_f64(worth + 8 * best, load_f64(powers + 8 * best) / np.float64(1 << (2 * w)))
    for i in range(lanes):
        channel = int(load_u16(order + 2 * i))
        store_u8(widths + channel, load_u8(group_widths + i // group))


@kernel
def _sort(widths, lanes, order):
    """The sorted channels' numbers, uint16 [lanes]."""
    for w in range(MAX_WIDTH, -1, -1):
        for c in range(lanes):
            if load_u8(widths + c) == w:
                store_u16(order, c)
                order += 2


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
    for c in range(lanes):
        w = int(load_u8(widths + c))
        store_u8(codes + c, 0)
        size = load_f64(reach + 8 * c) / np.float64(1 << w) if w > 0 else np.float64(0)
        store_f64(reach + 8 * c, size)
    encode_linear(middles, dim, codes, pairs + 4)
    encode_log(reach, lanes, True, codes + lanes, pairs + 8)
    _store_sorted(codes, order, lanes, metadata)
    _store_sorted(codes + lanes, order, lanes, metadata + lanes)


@kernel
def _load_ranges(codes, widths, pairs, dim, lanes, ranges, steps):
    """What stored m, s and widths stand for: float32 m and s [2, lanes] at `ranges`, and float64
    divisors, 1 or 0 where s is, largest codes and inverse divisors [4, lanes] at `steps`; zeros
    behind dim."""
    first, distance = load_f16(pairs + 4), load_f16(pairs + 6)
    for c in range(lanes):
        m, s, top = np.float32(0), np.float32(0), (1 << int(load_u8(widths + c))) - 1
        if c < dim:
            m = first + np.float32(load_u8(codes + c)) * distance
            s = log_value(load_u8(codes + lanes + c), pairs + 8)
        store_f32(ranges + 4 * c, m)
        store_f32(ranges + 4 * (lanes + c), s)
        divisor = np.float64(s) if s > 0 else np.float64(1)
        store_f64(steps + 8 * c, divisor)
        store_f64(steps + 8 * (3 * lanes + c), np.float64(1) / divisor)
        store_f64(steps + 8 * (lanes + c), np.float64(s > 0))
        store_f64(steps + 8 * (2 * lanes + c), np.float64(top))


@kernel
def _encode_row(row, divisor, ranges, steps, lanes, codes):
    """Codes uint8 [lanes] of a token's float32 row; returns the length of what they stand for."""
    squares = zeros(f64x16)
    length, shrink = splat(f64x16, divisor), splat(f64x16, np.float64(1) / divisor)
    for c in range(0, lanes, 16):
        m, s = load(f32x16, ranges + 4 * c), load(f32x16, ranges + 4 * (lanes + c))
        step, lit = load(f64x16, steps + 8 * c), load(f64x16, steps + 8 * (lanes + c))
        top = load(f64x16, steps + 8 * (2 * lanes + c))
        half = top * np.float64(0.5)
        inverse = load(f64x16, steps + 8 * (3 * lanes + c))
        u = _quotient(convert(f64x16, load(f32x16, row + 4 * c)), length, shrink)
        scaled = (_quotient(u - convert(f64x16, m), step, inverse) + half) * lit
        code = convert(f32x16, minimum(maximum(rint(scaled), zeros(f64x16)), top))
        store(codes + c, convert(u8x16, code))
        decoded = convert(f64x16, m + s * (code - convert(f32x16, half)))
        squares = squares + decoded * decoded
    return math.sqrt(reduce_add(squares))


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
    # float64 [lanes] each but for norms; divisors, lit and top stand in `steps`
    norms = scratch + 4 * tokens * stride
    middles = norms + 8 * tokens
    reach, importance, powers = middles + 8 * lanes, middles + 16 * lanes, middles + 24 * lanes
    steps = middles + 32 * lanes
    # float32 [2, lanes], uint16 [2, lanes], bytes [3, lanes], then all codes and a set
    ranges = steps + 32 * lanes
    order, rank = ranges + 8 * lanes, ranges + 10 * lanes
    widths, found = ranges + 12 * lanes, ranges + 13 * lanes
    codes = found + 2 * lanes
    decode_rows(rows, tokens, row_nbytes, decoder, values, dim, scratch)
    _measure(scratch, tokens, stride, lanes, norms)
    _find_ranges(scratch, tokens, stride, lanes, norms, middles, reach)
    _weigh(queries, query_nbytes, tokens, dim, lanes, reach, importance)
    _rank(importance, lanes, rank)
    _water_fill(importance, rank, lanes, group, bits, powers, steps, found, widths)
    _sort(widths, lanes, order)
    planes = page + tokens * lanes * bits // 8
    stored_norms = planes + WIDTH_BITS * lanes // 8
    metadata = stored_norms + tokens
    pairs = metadata + 2 * lanes
    _store_widths(widths, lanes, planes)
    _store_ranges(middles, reach, widths, order, dim, lanes, found, metadata, pairs)
    _load_ranges(found, widths, pairs, dim, lanes, ranges, steps)
    for t in range(tokens):
        row, norm = scratch + 4 * t * stride, norms + 8 * t
        gain = _encode_row(row, _divisor(norm), ranges, steps, lanes, found)
        _store_sorted(found, order, lanes, codes + t * lanes)
        store_f64(norm, load_f64(norm) / max(gain, _LEAST_GAIN))
    encode_log(norms, tokens, False, stored_norms, pairs)
    _pack(codes, widths, order, tokens, lanes, side, codes + tokens * lanes, page)


def scratch_nbytes(tokens: int, head_dim: int, values: int) -> int:
    """Bytes of `scratch`: float32 rows, norms, what there is per channel, all codes and a set."""
    lanes = padded_dim(head_dim)
    return tokens * (4 * (-(-values // 16) * 16) + 8 + lanes) + _PER_CHANNEL * lanes + 512


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
