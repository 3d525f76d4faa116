"""Encoders and decoders of `engine.kv.formats.hqq`: int64 addresses, n channels.

For each number of bits and group, compiled when first asked for; HQQ_ROWS encode many rows as
`engine.cpu.kv_append` has them.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.gather import widened
from engine.cpu.jit import Verb, inlined
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


@inlined
def _limited(x, low, inverse, s, z, top):
    """sign(e) min(|e|, w(|e|)) of 16 values x, where e = (y + z - q) s."""
    v = (x - low) * inverse + z
    e = (v - smaller(larger(rint(v), zeros(f32x16)), top)) * s
    size = bitcast(i32x16, e) & 0x7FFFFFFF
    limit = bitcast(f32x16, convert(i32x16, convert(f32x16, size) * POWER + OFFSET))
    found = bitcast(u32x16, smaller(bitcast(f32x16, size), limit))
    return bitcast(f32x16, found | (bitcast(u32x16, e) & 0x80000000))


@inlined
def _move(source, n, low, inverse, s, z, top):
    """How far a round moves z, counted from the minimum, of a group of n float32 values."""
    highest, total = splat(f32x16, top), zeros(f32x16)
    for i in range(0, n - 15, 16):
        total = total + _limited(load(f32x16, source + 4 * i), low, inverse, s, z, highest)
    if n & 8:
        x, lit = widened(load(f32x8, source + 4 * (n - 8))), widened(splat(f32x8, np.float32(1)))
        total = total + _limited(x, low, inverse, s, z, highest) * lit
    return reduce_add(total) / (s * np.float32(n))


@inlined
def _tuned(a, b, n, lows, steps, top):
    """z of two groups of n float32 values, in turn, since each waits for its sums."""
    s, s2 = steps
    low, low2 = lows
    inverse, inverse2 = np.float32(1) / s, np.float32(1) / s2
    z, z2, moving, moving2 = np.float32(0), np.float32(0), s > 0, s2 > 0
    for _ in range(ROUNDS):
        move = _move(a, n, low, inverse, s, z, top)
        move2 = _move(b, n, low2, inverse2, s2, z2, top)
        if moving:
            z -= move
            moving = abs(move) > STILL
        if moving2:
            z2 -= move2
            moving2 = abs(move2) > STILL
        if not (moving or moving2):
            break
    return z, z2


@inlined
def _minimum(target, low, s, z):
    """Store m as float16; `low` is the group's least value."""
    m = low + np.float32(0)  # never a negative zero
    if s > 0:
        m = max(low - s * z, min(low, -LARGEST))
    half(target, m)


@inlined
def _fit(a, b, n, top, at, at2, apart):
    """Store s and m, `apart` bytes further, of two groups of n float32 values as float16."""
    low, high = extremes(a, n)
    low2, high2 = extremes(b, n)
    s, s2 = row_step(at, high - low, top), row_step(at2, high2 - low2, top)
    z, z2 = _tuned(a, b, n, (low, low2), (s, s2), np.float32(top))
    _minimum(at + apart, low, s, z)
    _minimum(at2 + apart, low2, s2, z2)


@inlined
def _encode(source, apart, target, row_nbytes, n, count, bits, group):
    """`count` rows of n values, `apart` bytes from one to the next."""
    groups, whole, top = (n + group - 1) // group, n // group, (1 << bits) - 1
    minima = 2 * groups
    for j in range(0, count * whole, 2):
        k = min(j + 1, count * whole - 1)
        g, h = j % whole, k % whole
        a, at = source + j // whole * apart, target + j // whole * row_nbytes
        b, at2 = source + k // whole * apart, target + k // whole * row_nbytes
        a, b = a + 4 * group * g, b + 4 * group * h
        _fit(a, b, group, top, at + 2 * g, at2 + 2 * h, minima)
    for i in range(0, count if whole < groups else 0, 2):
        j, rest = min(i + 1, count - 1), source + 4 * group * whole
        at = target + 2 * whole
        a, b = rest + i * apart, rest + j * apart
        _fit(a, b, n % group, top, at + i * row_nbytes, at + j * row_nbytes, minima)
    for i in range(count):
        row = target + i * row_nbytes
        pack_row(source + i * apart, row + 2 * minima, n, bits, row, row + minima, group, 0)


def _encoder(bits: int, group: int) -> Verb:
    def encode(source, target, n):
        _encode(source, 0, target, 0, n, 1, bits, group)

    return Verb(encode)


def _rows_encoder(bits: int, group: int) -> Verb:
    def encode_rows(encoder, source, apart, target, row_nbytes, n, count):
        _encode(source, apart, target, row_nbytes, n, count, bits, group)

    return Verb(encode_rows)


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
HQQ_ROWS = {f.name: _rows_encoder(f.bits, f.group) for f in HQQ}
HQQ_DECODERS = {f.name: _decoder(f.bits, f.group) for f in HQQ}
