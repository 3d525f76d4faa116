"""Encoders and decoders of the row types, `engine.kv.formats.rows`: int64 addresses, n channels.

There is a pair per number of bits and kind of scale, compiled when first asked for, so that
planes and shifts are constants.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import Verb, kernel
from engine.cpu.simd import (
    convert,
    f32x8,
    fma,
    load,
    load_f16,
    load_f32,
    load_u8,
    splat,
    store,
    store_f16,
    store_f32,
    store_u8,
    u8x8,
    zeros,
)
from engine.kv.formats.rows import ROWS
from engine.kv.formats.scales import F16_TINY, zero_code

WIDTHS = (8, 4, 2, 1)  # of planes: see `engine.bits`


@kernel
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
    step = half(target, reach / np.float32(levels))
    if step == 0 and reach > 0:
        step = half(target, F16_TINY)
    return step


@kernel
def _encode(source, codes, n, bits, m, s, zero, top):
    """Pack 8 steps of n codes min(max(rint((x - m) / s), -zero) + zero, top)."""
    for width in WIDTHS:
        if bits & width:
            mask, per_line = (1 << width) - 1, 8 // width
            for i in range(width * n):
                line, j, byte = i // n, i % n, 0
                for step in range(line * per_line, (line + 1) * per_line):
                    x = load_f32(source + 4 * (step * n + j))
                    scaled = np.rint((x - m) / s) if s > 0 else np.float32(0)
                    code = min(int(max(scaled, np.float32(-zero))) + zero, top)
                    _, shift, first = place(step, width, bits)
                    byte |= ((code >> first) & mask) << shift
                store_u8(codes + ((bits & (-2 * width)) * n) + i, byte)


def _encoder(bits: int, asym: bool) -> Verb:
    zero, top = zero_code(bits), (1 << bits) - 1

    def symmetric(source, target, n):
        peak = np.float32(0)
        for i in range(n):
            peak = max(peak, abs(load_f32(source + 4 * i)))
        s = row_step(target, peak, zero)
        _encode(source, target + 2, n // 8, bits, np.float32(0), s, zero, 2 * zero)

    def asymmetric(source, target, n):
        low, high = load_f32(source), load_f32(source)
        for i in range(1, n):
            value = load_f32(source + 4 * i)
            low, high = min(low, value), max(high, value)
        s = row_step(target, high - low, top)
        m = half(target + 2, low + np.float32(0))  # never a negative zero
        _encode(source, target + 4, n // 8, bits, m, s, 0, top)

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
