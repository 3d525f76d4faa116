"""A float32 as two bfloat16: x = high + low + 2^-17 x."""

from __future__ import annotations

import numpy as np

from engine.cpu.amx import both_bf16, pair_bf16
from engine.cpu.jit import inlined
from engine.cpu.simd import bitcast, f32x16, load, store, u32x16


@inlined
def rounded(x):
    """f32x16 rounded to the values of bfloat16."""
    return bitcast(f32x16, (bitcast(u32x16, x) + 0x8000) & np.uint32(0xFFFF0000))


@inlined
def store_pairs(x, y, target, low):
    """A row of a tile: pairs of x and y, their low halves `low` bytes further unless that is 0."""
    store(target, pair_bf16(x, y))
    if low != 0:
        store(target + low, pair_bf16(x - rounded(x), y - rounded(y)))


@inlined
def store_split(x, y, target, low):
    """Two f32x16 as bfloat16 side by side, their low halves `low` bytes further."""
    high, high2 = rounded(x), rounded(y)
    store(target, both_bf16(high, high2))
    store(target + low, both_bf16(x - high, y - high2))


@inlined
def plain_row(source, n, target, low):
    """float32 [n], n a multiple of 32, as two halves, the low ones `low` bytes further."""
    for c in range(0, 4 * n, 128):
        x, y = load(f32x16, source + c), load(f32x16, source + c + 64)
        store_split(x, y, target + c // 2, low)
