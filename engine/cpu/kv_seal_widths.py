"""Bits to channels: `engine.kv.formats.waterfill.water_fill`, bit by bit."""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import kernel
from engine.cpu.simd import (
    convert,
    f32x16,
    f64x16,
    load,
    load_f32,
    load_f64,
    load_i64,
    load_u16,
    reduce_add,
    splat,
    store,
    store_f64,
    store_i64,
    store_u8,
    store_u16,
    zeros,
)
from engine.cpu.vmath import where_larger
from engine.kv.formats.waterfill import MAX_WIDTH

FILL_NBYTES = 2 * 8 * MAX_WIDTH  # of what `water_fill` needs besides powers


@kernel
def _count_larger(keys, lanes, counts):
    """How many keys are larger than each, float32 [lanes]; returns the sum.

    Four sums a lane, as one would wait for itself.
    """
    total, one = zeros(f32x16), splat(f32x16, np.float32(1))
    for i in range(0, 4 * lanes, 64):
        key = load(f32x16, keys + i)
        a, b, c, d = zeros(f32x16), zeros(f32x16), zeros(f32x16), zeros(f32x16)
        for j in range(keys, keys + 4 * lanes, 16):
            a = where_larger(splat(f32x16, load_f32(j)), key, a + one, a)
            b = where_larger(splat(f32x16, load_f32(j + 4)), key, b + one, b)
            c = where_larger(splat(f32x16, load_f32(j + 8)), key, c + one, c)
            d = where_larger(splat(f32x16, load_f32(j + 12)), key, d + one, d)
        a = (a + b) + (c + d)
        store(counts + i, a)
        total = total + a
    return reduce_add(total)


@kernel
def _insert(importance, lanes, order):
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
def rank(importance, lanes, keys, order):
    """The channels by falling float64 importance, then by number, uint16 [lanes].

    `keys` has room for float32 [2, lanes].  As float32, numbers keep their order but for those that
    become equal.
    """
    counts = keys + 4 * lanes
    for c in range(0, lanes, 16):
        store(keys + 4 * c, convert(f32x16, load(f64x16, importance + 8 * c)))
    # every pair is counted once, if no two are equal
    if _count_larger(keys, lanes, counts) == np.float32(lanes * (lanes - 1) // 2):
        for c in range(lanes):
            store_u16(order + 2 * int(load_f32(counts + 4 * c)), c)
    else:
        _insert(importance, lanes, order)


@kernel
def _group_power(importance, order, group):
    power = np.float64(0)
    for i in range(group):
        value = load_f64(importance + 8 * int(load_u16(order + 2 * i)))
        power += value * value
    return power


@kernel
def water_fill(importance, order, lanes, group, bits, powers, scratch, widths):
    """Widths uint8 [lanes] by channel, from the channels in their `order`.

    A group's bits are worth less and less, and bit w of a group no less than that of the next one:
    the most valuable bits are the first few of each row of bits w, and to find the next is to
    compare the rows' heads.
    """
    groups, counts, worth = lanes // group, scratch, scratch + 8 * MAX_WIDTH
    for g in range(groups):
        store_f64(powers + 8 * g, _group_power(importance, order + 2 * g * group, group))
    for w in range(MAX_WIDTH):
        store_i64(counts + 8 * w, 0)
        store_f64(worth + 8 * w, load_f64(powers) / np.float64(1 << (2 * w)))
    rows = 1  # that may be next: behind a row that has not begun, none is
    for _ in range(bits * groups):
        best, most = 0, load_f64(worth)
        for w in range(1, rows):
            value = load_f64(worth + 8 * w)
            best, most = (w, value) if value > most else (best, most)
        g = load_i64(counts + 8 * best) + 1
        store_i64(counts + 8 * best, g)
        value = load_f64(powers + 8 * g) / np.float64(1 << (2 * best))
        store_f64(worth + 8 * best, value if g < groups else np.float64(-1))
        rows = min(rows + (best == rows - 1), MAX_WIDTH)
    for g in range(groups):
        width = 0
        for w in range(MAX_WIDTH):
            width += g < load_i64(counts + 8 * w)
        for i in range(g * group, (g + 1) * group):
            store_u8(widths + int(load_u16(order + 2 * i)), width)
