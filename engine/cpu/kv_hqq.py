"""Encoders and decoders of `engine.kv.formats.hqq`: int64 addresses, n channels.

A pair per number of bits and group, compiled when first asked for.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.gather import widened
from engine.cpu.jit import Verb, kernel
from engine.cpu.kv_rows import eight_codes, extremes, half, one_code, pack_row, row_step
from engine.cpu.simd import (
    bitcast,
    convert,
    f32x8,
    f32x16,
    fma,
    i32x16,
    load,
    load_f16,
    reduce_add,
    rint,
    splat,
    store,
    store_f32,
    u32x16,
    zeros,
)
from engine.cpu.vmath import larger, smaller
from engine.kv.formats.floats import F16_MAX
from engine.kv.formats.hqq import HQQ, OFFSET, POWER, ROUNDS, STILL

LARGEST = np.float32(F16_MAX)


@kernel
def _limited(x, low, inverse, s, z, top):
    """sign(e) min(|e|, w(|e|)) of 16 values x, where e = (y + z - q) s."""
    v = (x - low) * inverse + z
    e = (v - smaller(larger(rint(v), zeros(f32x16)), top)) * s
    size = bitcast(i32x16, e) & 0x7FFFFFFF
    limit = bitcast(f32x16, convert(i32x16, convert(f32x16, size) * POWER + OFFSET))
    found = bitcast(u32x16, smaller(bitcast(f32x16, size), limit))
    return bitcast(f32x16, found | (bitcast(u32x16, e) & 0x80000000))


@kernel
def _tuned(source, n, s, low, top):
    """z, counted from the minimum, of a group of n float32 values."""
    highest, z, divisor = splat(f32x16, top), np.float32(0), s * np.float32(n)
    inverse, lit = np.float32(1) / s, widened(splat(f32x8, np.float32(1)))
    for _ in range(ROUNDS):
        total = zeros(f32x16)
        for i in range(0, n - 15, 16):
            x = load(f32x16, source + 4 * i)
            total = total + _limited(x, low, inverse, s, z, highest)
        if n & 8:
            x = widened(load(f32x8, source + 4 * (n - 8)))
            total = total + _limited(x, low, inverse, s, z, highest) * lit
        move = reduce_add(total) / divisor
        z -= move
        if not abs(move) > STILL:
            break
    return z


@kernel
def _fit(source, n, top, scale, minimum_at):
    """Store s and m of n float32 values as float16."""
    low, high = extremes(source, n)
    s = row_step(scale, high - low, top)
    m = low + np.float32(0)  # never a negative zero
    if s > 0:
        z = _tuned(source, n, s, low, np.float32(top))
        m = max(low - s * z, min(low, -LARGEST))
    half(minimum_at, m)


def _encoder(bits: int, group: int) -> Verb:
    top = (1 << bits) - 1

    def encode(source, target, n):
        groups = (n + group - 1) // group
        for g in range(groups):
            count, at = min(group, n - g * group), target + 2 * g
            _fit(source + 4 * g * group, count, top, at, at + 2 * groups)
        pack_row(source, target + 4 * groups, n, bits, target, target + 2 * groups, group, 0)

    return Verb(encode)


def _decoder(bits: int, group: int) -> Verb:
    def decode(source, target, n):
        groups, length = (n + group - 1) // group, n // 8
        codes = source + 4 * groups
        for step in range(8):
            out = target + 4 * length * step
            if length < 8:
                for j in range(length):
                    store_f32(out + 4 * j, np.float32(one_code(codes, j, length, step, bits)))
            else:
                for start in range(0, length, 8):
                    j = min(start, length - 8)  # the last vector overlaps the one before
                    store(out + 4 * j, convert(f32x8, eight_codes(codes, j, length, step, bits)))
        for i in range(0, n, 8):
            g = i // group
            s = splat(f32x8, load_f16(source + 2 * g))
            m = splat(f32x8, load_f16(source + 2 * (groups + g)))
            store(target + 4 * i, fma(load(f32x8, target + 4 * i), s, m))

    return Verb(decode)


HQQ_ENCODERS = {f.name: _encoder(f.bits, f.group) for f in HQQ}
HQQ_DECODERS = {f.name: _decoder(f.bits, f.group) for f in HQQ}
