"""What stands beside the codes of `engine.kv.formats.waterfill`: order, ranges and norms.

Codes are unpacked to bytes whose middle is CENTER whatever their width, x = n' (middle + s (byte -
CENTER)): middle = m + s / 2, byte = code + CENTER - 2^(w - 1).
"""

from __future__ import annotations

import numpy as np

from engine.cpu.gather import count_ones, store_selected
from engine.cpu.jit import inlined, kernel
from engine.cpu.kv_floats import fetch
from engine.cpu.planes import step_codes
from engine.cpu.simd import (
    convert,
    f32x16,
    fma,
    i32x16,
    iota,
    load,
    load_f16,
    load_i64,
    splat,
    store,
    store_i64,
    u8x16,
    u32x16,
)
from engine.cpu.vmath import vexp2

CENTER = 64
WIDTHS = 8  # 0 to 7


@inlined
def parts(page, n, lanes, codes_nbytes):
    """Addresses of the width planes, n' codes, m codes, s codes and pairs."""
    planes = page + codes_nbytes
    norms = planes + 3 * lanes // 8
    return planes, norms, norms + n, norms + n + lanes, norms + n + 2 * lanes


@kernel
def sort(planes, lanes, order, counts):
    """The sorted channels' numbers, int32 [lanes] at `order`, and how many channels have each
    width, int64 [WIDTHS] at `counts`.  16 numbers may be written behind `order`."""
    stride = lanes // 8
    for w in range(WIDTHS - 1, -1, -1):
        first = order
        for c in range(0, lanes, 64):
            found = -1 if lanes - c >= 64 else (1 << (lanes - c)) - 1
            for i in range(3):
                plane = load_i64(planes + i * stride + c // 8)
                found &= plane if (w >> i) & 1 else ~plane
            for k in range(0, 64, 16):
                some = (found >> k) & 0xFFFF
                store_selected(order, iota(i32x16) + (c + k), some)
                order += 4 * count_ones(some)
        store_i64(counts + 8 * w, (order - first) // 4)


@inlined
def log_values(codes, pair):
    """16 numbers of a logarithmic code."""
    code = convert(u32x16, load(u8x16, codes))
    first, step = load_f16(pair) - load_f16(pair + 2), load_f16(pair + 2)
    value = vexp2(fma(convert(f32x16, code), splat(f32x16, step), splat(f32x16, first)))
    # the code 0 stands for 0
    return value * convert(f32x16, (code + 255) >> 8)


@inlined
def load_ranges(middles, steps, pairs, lanes, target):
    """The sorted channels' s and, behind them, their middles, float32 [2, lanes]."""
    first, step = load_f16(pairs + 4), load_f16(pairs + 6)
    for c in range(0, lanes, 16):
        size = log_values(steps + c, pairs + 8)
        m = fma(
            convert(f32x16, load(u8x16, middles + c)), splat(f32x16, step), splat(f32x16, first)
        )
        store(target + 4 * c, size)
        store(target + 4 * (lanes + c), fma(size, splat(f32x16, np.float32(0.5)), m))


@inlined
def load_norms(norms, pairs, n, target):
    """n' of n tokens as float32."""
    for t in range(0, n, 16):
        store(target + 4 * t, log_values(norms + t, pairs))


@inlined
def unpack_set(codes, bits, target, stride, ahead):
    """The eight steps of a set of width `bits`, a constant, as 64 bytes each, `stride` apart; what
    lies `ahead` bytes further is asked for."""
    fetch(codes + ahead, bits)
    shift = (CENTER - (1 << (bits - 1))) * 0x01010101
    for j in range(8):
        store(target + stride * j, step_codes(codes, j, bits) + shift)
