"""A float32 as two bfloat16: x = high + low + 2^-17 x."""

from __future__ import annotations

import numpy as np

from engine.cpu.amx import pair_bf16
from engine.cpu.jit import inlined
from engine.cpu.simd import bitcast, convert, f32x16, load, store, u16x16, u32x16


@inlined
def rounded(x):
    """f32x16 rounded to the values of bfloat16."""
    return bitcast(f32x16, (bitcast(u32x16, x) + 0x8000) & np.uint32(0xFFFF0000))


@inlined
def high_pairs(address, distance):
    """Pairs of the high halves of the vectors at `address` and `distance` bytes further."""
    return pair_bf16(load(f32x16, address), load(f32x16, address + distance))


@inlined
def low_pairs(address, distance):
    a, b = load(f32x16, address), load(f32x16, address + distance)
    return pair_bf16(a - rounded(a), b - rounded(b))


@inlined
def paired_row(source, n, target, low, terms):
    """float32 [n], n a multiple of 32, as pairs of halves, the low ones `low` bytes further."""
    for c in range(0, 4 * n, 128):
        store(target + c // 2, high_pairs(source + c, 64))
        if terms > 1:
            store(target + low + c // 2, low_pairs(source + c, 64))


@inlined
def _upper(x):
    return convert(u16x16, bitcast(u32x16, x) >> 16)


@inlined
def plain_row(source, n, target, low):
    """As `paired_row` of both halves, the values in their order."""
    for c in range(0, 4 * n, 64):
        x = load(f32x16, source + c)
        high = rounded(x)
        store(target + c // 2, _upper(high))
        store(target + low + c // 2, _upper(rounded(x - high)))
