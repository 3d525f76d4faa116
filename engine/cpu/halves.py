"""A float32 as two bfloat16: x = high + low + 2^-17 x."""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from engine.cpu.amx import both_bf16, pair_bf16
from engine.cpu.deferred import intrinsic
from engine.cpu.jit import inlined
from engine.cpu.simd import bitcast, f32x16, load, store, u16x32, u32x16


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


@intrinsic
def _upper_words(typing_context, x, y):
    """u16x32: two f32x16 cut off to bfloat16, in order."""

    def emit(context, builder, signature, args):
        kind = ir.VectorType(ir.IntType(16), 32)
        words = [builder.bitcast(arg, kind) for arg in args]
        order = ir.Constant(ir.VectorType(ir.IntType(32), 32), list(range(1, 64, 2)))
        return builder.shuffle_vector(*words, order)

    return u16x32(f32x16, f32x16), emit


@inlined
def store_truncated(x, y, target, low):
    """As `store_split`, a third cheaper and to 2^-16: the high halves are cut off."""
    mask = np.uint32(0xFFFF0000)
    high, high2 = bitcast(u32x16, x) & mask, bitcast(u32x16, y) & mask
    store(target, _upper_words(x, y))
    store(target + low, both_bf16(x - bitcast(f32x16, high), y - bitcast(f32x16, high2)))
