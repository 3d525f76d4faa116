"""Codes of pages as lanes of float32, for types whose scales vary within a page."""

from __future__ import annotations

from engine.cpu.jit import kernel
from engine.cpu.planes import step_codes
from engine.cpu.simd import convert, f32x16, fma, load, load_f32, splat, store, zeros


@kernel
def unpack_steps(codes, first, count, bits, target):
    """Steps first..first+count (`engine.bits`) of 1 to 8 bits as float32 [4 count, 16 lanes]."""
    for k in range(first, first + count):
        word = step_codes(codes, k, bits)
        for byte in range(4):
            store(target + 64 * byte, convert(f32x16, (word >> (8 * byte)) & 255))
        target += 256


@kernel
def lane_dots(weights, lanes, n, total):
    """total + sum_i weights[i] lanes[i] over float32 weights [n] and lanes [n, 16], n even."""
    rest = zeros(f32x16)
    for i in range(0, n, 2):
        total = fma(splat(f32x16, load_f32(weights + 4 * i)), load(f32x16, lanes + 64 * i), total)
        other = splat(f32x16, load_f32(weights + 4 * i + 4))
        rest = fma(other, load(f32x16, lanes + 64 * i + 64), rest)
    return total + rest
