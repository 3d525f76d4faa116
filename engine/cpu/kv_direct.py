"""Score and mix of per-channel pages for a few query rows, or without tile registers.

Codes are unpacked into registers and multiplied at once by up to four rows; see
`engine.cpu.kv_pages` for the formulas and `engine.cpu.kv_integers` for the rows' planes.
"""

from __future__ import annotations

from typing import Any

from engine.cpu.dot import add_dots, store_dots, zero_dots
from engine.cpu.jit import inlined
from engine.cpu.kv_floats import fetch
from engine.cpu.kv_integers import fold_query, fold_weights, next_page, sum_at
from engine.cpu.kv_ranges import load_norms, load_ranges, norms_at
from engine.cpu.kv_tokens import width
from engine.cpu.planes import step_codes
from engine.cpu.simd import bitcast, f32x16, fma, load, load_f32, splat, store, u8x64

CHUNK = 128  # tokens whose weights are split at a time
ROWS = 4  # that share unpacked codes: with their sums they fill the registers


def _pair_sums(rows: int) -> Any:
    count = 2 * rows

    @inlined
    def pair_sums(codes, second, half, steps, bits, planes, stride, ahead, sums):
        # the rows' bytes are loaded once for both units: loads would take longer than products
        found, other = zero_dots(count), zero_dots(count)
        for k in range(0, 4 * steps, 16):
            if half == 0:
                fetch(codes + ahead, bits)
                fetch(codes + second + ahead, bits)
                for j in range(4):
                    x = bitcast(u8x64, step_codes(codes, j, bits))
                    y = bitcast(u8x64, step_codes(codes + second, j, bits))
                    found = add_dots(found, x, planes + k + 4 * j, stride, count)
                    other = add_dots(other, y, planes + k + 4 * j, stride, count)
                half = 4
            else:
                for j in range(4, 8):
                    x = bitcast(u8x64, step_codes(codes, j, bits))
                    y = bitcast(u8x64, step_codes(codes + second, j, bits))
                    found = add_dots(found, x, planes + k + 4 * j - 16, stride, count)
                    other = add_dots(other, y, planes + k + 4 * j - 16, stride, count)
                half, codes = 0, codes + 64 * bits
        store_dots(sums, found)
        store_dots(sums + 64 * count, other)

    return pair_sums


_sums_4, _sums_3, _sums_2, _sums_1 = (_pair_sums(rows) for rows in (4, 3, 2, 1))


@inlined
def _pair(rows, codes, second, half, steps, bits, planes, stride, ahead, sums):
    """int32 sums [2, 2 rows, 16] of two units of `steps` steps, a multiple of 4, from step `half`
    (0 or 4) of the set at `codes`, and of that `second` bytes further, on.

    The planes are int8 [2 rows, stride].  What lies `ahead` bytes further is asked for.
    """
    if rows >= 4:
        _sums_4(codes, second, half, steps, bits, planes, stride, ahead, sums)
    elif rows == 3:
        _sums_3(codes, second, half, steps, bits, planes, stride, ahead, sums)
    elif rows == 2:
        _sums_2(codes, second, half, steps, bits, planes, stride, ahead, sums)
    else:
        _sums_1(codes, second, half, steps, bits, planes, stride, ahead, sums)


@inlined
def _rooms(scratch, rows, depth, lanes):
    """Addresses of sums, factors (16 bytes per row), planes, a row's values and ranges."""
    factors = scratch + 256 * ROWS
    planes = factors + 16 * ((rows + 3) & ~3)
    values = planes + 2 * rows * depth
    return scratch, factors, planes, values, values + 4 * depth


def scratch_nbytes(rows: int, head_dim: int) -> int:
    lanes = -(-head_dim // 16) * 16
    depth = max(lanes, CHUNK)
    return 256 * ROWS + 16 * (rows + 3) + (2 * rows + 4) * depth + 8 * lanes


@inlined
def _row_planes(planes, i, rows, depth):
    """The address of row i's high plane, and the distance to the low one: blocks of ROWS rows are
    int8 [2, rows of the block, depth]."""
    block = i & -ROWS
    return planes + (block + i) * depth, min(ROWS, rows - block) * depth


@inlined
def score(page, n, q, stride, rows, dim, out, scratch, codes_nbytes, parts, bits):
    wide, lanes = width(dim), (dim + 15) & ~15
    sums, factors, planes, values, steps = _rooms(scratch, rows, lanes, lanes)
    ahead = next_page(page, codes_nbytes, scratch)
    load_ranges(page, n, lanes, codes_nbytes, bits, parts, steps)
    for i in range(rows):
        target, low = _row_planes(planes, i, rows, lanes)
        row = q + 4 * i * wide
        fold_query(row, steps, lanes, bits, values, lanes, target, low, factors + 16 * i)
    for i0 in range(0, rows, ROWS):
        some, left, room = min(ROWS, rows - i0), planes + 2 * i0 * lanes, factors + 16 * i0
        # units begin in the middle of a set where channels are no multiple of 32: every other one
        apart = 16 if lanes & 31 == 0 else 32
        for t in range(0, n, 16):
            if t & apart != 0:
                continue
            first, other = t // 16 * (lanes // 4), apart if t + apart < n else 0
            codes, second = page + first // 8 * 64 * bits, other * lanes // 8 * bits
            half, count = first & 4, lanes // 4
            _pair(some, codes, second, half, count, bits, left, lanes, ahead, sums)
            norms = norms_at(page, codes_nbytes, t, parts)
            other_norms = norms_at(page, codes_nbytes, t + other, parts)
            for i in range(some):
                scale = splat(f32x16, load_f32(room + 16 * i))
                offset = splat(f32x16, load_f32(room + 16 * i + 4))
                high, target = sums + 64 * i, out + (i0 + i) * stride + 4 * t
                value = fma(sum_at(high, high + 64 * some), scale, offset)
                store(target, value * norms)
                high += 128 * some
                value = fma(sum_at(high, high + 64 * some), scale, offset)
                store(target + 4 * other, value * other_norms)


@inlined
def _add_unit(high, low, factors, steps, lanes, target):
    """Add a row's mix of the 16 channels whose steps are at `steps` to `target`."""
    scale, offset = splat(f32x16, load_f32(factors)), splat(f32x16, load_f32(factors + 4))
    mass = splat(f32x16, load_f32(factors + 8))
    exact = fma(load(f32x16, steps + 4 * lanes), mass, load(f32x16, target))
    dots = fma(sum_at(high, low), scale, offset)
    store(target, fma(dots, load(f32x16, steps), exact))


@inlined
def mix(page, n, p, stride, rows, dim, out, scratch, codes_nbytes, parts, bits):
    wide, lanes, depth = width(dim), (dim + 15) & ~15, min(n, CHUNK)
    sums, factors, planes, norms, steps = _rooms(scratch, rows, depth, lanes)
    ahead = next_page(page, codes_nbytes, scratch)
    load_ranges(page, n, lanes, codes_nbytes, bits, parts, steps)
    for t0 in range(0, n, CHUNK):
        count = min(CHUNK, n - t0)
        load_norms(page, codes_nbytes, t0, count, parts, norms)
        for i in range(rows):
            target, low = _row_planes(planes, i, rows, count)
            row = p + i * stride + 4 * t0
            fold_weights(row, norms, count, bits, count, target, low, factors + 16 * i)
        for i0 in range(0, rows, ROWS):
            some, left = min(ROWS, rows - i0), planes + 2 * i0 * count
            for c in range(0, lanes, 32):
                codes, other = page + (c * n + 16 * t0) // 8 * bits, 16 if c + 16 < lanes else 0
                second = other * n // 8 * bits
                _pair(some, codes, second, 0, count // 4, bits, left, count, ahead, sums)
                for i in range(some):
                    room, target = factors + 16 * (i0 + i), out + 4 * ((i0 + i) * wide + c)
                    if other != 0:
                        high = sums + 64 * (2 * some + i)
                        at = steps + 4 * (c + 16)
                        _add_unit(high, high + 64 * some, room, at, lanes, target + 64)
                    high = sums + 64 * i
                    _add_unit(high, high + 64 * some, room, steps + 4 * c, lanes, target)
