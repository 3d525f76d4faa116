"""Encoders and decoders of the row types, `engine.kv.formats.rows`: int64 addresses, n channels.

There is a pair per number of bits and kind of scale, compiled when first asked for, so that
planes and shifts are constants.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import Verb, inlined, kernel
from engine.cpu.simd import (
    convert,
    f32x8,
    f32x16,
    fma,
    load,
    load_f16,
    load_f32,
    load_u8,
    reduce_max,
    rint,
    splat,
    store,
    store_f16,
    store_f32,
    store_u8,
    u8x8,
    zeros,
)
from engine.cpu.vmath import larger, smaller
from engine.kv.formats.rows import ROWS
from engine.kv.formats.scales import F16_TINY, zero_code

WIDTHS = (8, 4, 2, 1)  # of planes: see `engine.bits`


@inlined
def place(step, width, bits):
    """Of a step in a plane: its line in the set, its bit in the bytes, its bit in the codes."""
    first, per_line = bits & (-2 * width), 8 // width
    return first + step // per_line, width * (step % per_line), first


@kernel
def eight_codes(codes, j, n, step, bits):
    """Codes j..j+8 of a step of n as u8x8."""
    found = zeros(u8x8)
    for width in WIDTHS:
        if bits & width:
            line, shift, first = place(step, width, bits)
            part = (load(u8x8, codes + line * n + j) >> shift) & ((1 << width) - 1)
            found = found | (part << first)
    return found


@kernel
def one_code(codes, j, n, step, bits):
    """Code j of a step of n."""
    found = 0
    for width in WIDTHS:
        if bits & width:
            line, shift, first = place(step, width, bits)
            part = (int(load_u8(codes + line * n + j)) >> shift) & ((1 << width) - 1)
            found |= part << first
    return found


@kernel
def half(target, value):
    """Store float32 `value` as float16 and return what was stored."""
    store_f16(target, value)
    return load_f16(target)


@kernel
def row_step(target, reach, levels):
    """Store and return the step of a row whose values reach so far."""
    step = half(target, reach / np.float32(levels) + np.float32(0))  # never a negative zero
    if step == 0 and reach > 0:
        step = half(target, F16_TINY)
    return step


@inlined
def _range(s_at, m_at, g):
    """m and s of a row's range g, whose float16 lie at these addresses: no m where m_at is 0.

    A step of 0 becomes infinity: by it everything is 0 steps from m.
    """
    s = load_f16(s_at + 2 * g)
    m = load_f16(m_at + 2 * g) if m_at != 0 else np.float32(0)
    return m, s if s > 0 else np.float32(np.inf)


@inlined
def _largest(bits, zero):
    """The largest code: a symmetric type has as many above its zero as below."""
    return 2 * zero if zero > 0 else (1 << bits) - 1


@inlined
def _packed_eight(source, n, j, line, width, bits, s_at, m_at, group, zero):
    """Bytes j..j+8 of line `line` of a plane."""
    packed, per_line = zeros(u8x8), 8 // width
    bottom = splat(f32x8, np.float32(-zero))
    top = splat(f32x8, np.float32(_largest(bits, zero) - zero))
    for step in range(line * per_line, (line + 1) * per_line):
        channel = step * n + j
        m, s = _range(s_at, m_at, channel // group)
        scaled = rint((load(f32x8, source + 4 * channel) - m) / s)
        code = convert(u8x8, smaller(larger(scaled, bottom), top) + np.float32(zero))
        _, shift, first = place(step, width, bits)
        packed = packed | (((code >> first) & ((1 << width) - 1)) << shift)
    return packed


@inlined
def _packed_one(source, n, j, line, width, bits, s_at, m_at, group, zero):
    """Byte j of line `line` of a plane."""
    packed, per_line = 0, 8 // width
    for step in range(line * per_line, (line + 1) * per_line):
        channel = step * n + j
        m, s = _range(s_at, m_at, channel // group)
        scaled = np.rint((load_f32(source + 4 * channel) - m) / s)
        code = min(int(max(scaled, np.float32(-zero))) + zero, _largest(bits, zero))
        _, shift, first = place(step, width, bits)
        packed |= ((code >> first) & ((1 << width) - 1)) << shift
    return packed


@inlined
def pack_row(source, codes, channels, bits, s_at, m_at, group, zero):
    """Pack 8 steps of codes clamp(rint((x - m) / s) + zero) of float32 [channels].

    Every `group` channels share a range: see `_range`.
    """
    n = channels // 8
    for width in WIDTHS:
        for line in range(width if bits & width else 0):
            out = codes + ((bits & (-2 * width)) + line) * n
            if n % 8 == 0:  # eight channels side by side share a range
                for j in range(0, n, 8):
                    at = source, n, j, line, width, bits, s_at, m_at, group, zero
                    store(out + j, _packed_eight(*at))
            else:
                for j in range(n):
                    at = source, n, j, line, width, bits, s_at, m_at, group, zero
                    store_u8(out + j, _packed_one(*at))


@inlined
def extremes(source, n):
    """The smallest and the largest of n float32 values, a multiple of 8."""
    if n < 16:
        x = load(f32x8, source)
        return -reduce_max(x * np.float32(-1)), reduce_max(x)
    low = high = load(f32x16, source)
    for i in range(16, n - 15, 16):
        x = load(f32x16, source + 4 * i)
        low, high = smaller(x, low), larger(x, high)
    if n & 8:
        x = load(f32x16, source + 4 * (n - 16))
        low, high = smaller(x, low), larger(x, high)
    return -reduce_max(low * np.float32(-1)), reduce_max(high)


def _encoder(bits: int, asym: bool) -> Verb:
    zero, top = zero_code(bits), (1 << bits) - 1

    def symmetric(source, target, n):
        low, high = extremes(source, n)
        row_step(target, max(high, -low), zero)
        pack_row(source, target + 2, n, bits, target, 0, n, zero)

    def asymmetric(source, target, n):
        low, high = extremes(source, n)
        row_step(target, high - low, top)
        half(target + 2, low + np.float32(0))  # never a negative zero
        pack_row(source, target + 4, n, bits, target, target + 2, n, 0)

    return Verb(asymmetric if asym else symmetric)


def _decoder(bits: int, asym: bool) -> Verb:
    header, zero = 4 if asym else 2, np.float32(zero_code(bits))

    def decode(source, target, n):
        s, codes, length = load_f16(source), source + header, n // 8
        m = load_f16(source + 2) if asym else -zero * s
        d, offset = splat(f32x8, s), splat(f32x8, m)
        for step in range(8):
            out = target + 4 * length * step
            if length < 8:
                for j in range(length):
                    code = np.float32(one_code(codes, j, length, step, bits))
                    store_f32(out + 4 * j, s * code + m)
            else:
                for start in range(0, length, 8):
                    j = min(start, length - 8)  # the last vector overlaps the one before
                    code = convert(f32x8, eight_codes(codes, j, length, step, bits))
                    store(out + 4 * j, fma(code, d, offset))

    return Verb(decode)


ROW_ENCODERS = {f.name: _encoder(f.bits, f.asym) for f in ROWS}
ROW_DECODERS = {f.name: _decoder(f.bits, f.asym) for f in ROWS}
