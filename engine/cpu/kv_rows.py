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
def _place(step, width, bits):
    """Of a step in a plane: its line in the set, its bit in the bytes, its bit in the codes."""
    first, per_line = bits & (-2 * width), 8 // width
    return first + step // per_line, width * (step % per_line), first


@kernel
def _eight_codes(codes, j, n, step, bits):
    """Codes j..j+8 of a step of n as u8x8."""
    found = zeros(u8x8)
    for width in WIDTHS:
        if bits & width:
            line, shift, first = _place(step, width, bits)
            part = (load(u8x8, codes + line * n + j) >> shift) & ((1 << width) - 1)
            found = found | (part << first)
    return found


@kernel
def _one_code(codes, j, n, step, bits):
    """Code j of a step of n."""
    found = 0
    for width in WIDTHS:
        if bits & width:
            line, shift, first = _place(step, width, bits)
            part = (int(load_u8(codes + line * n + j)) >> shift) & ((1 << width) - 1)
            found |= part << first
    return found


@kernel
def _decode(codes, target, n, bits, scale, offset):
    """8 steps of n codes as float32 scale code + offset."""
    d, m = splat(f32x8, scale), splat(f32x8, offset)
    for step in range(8):
        out = target + 4 * n * step
        if n < 8:
            for j in range(n):
                code = np.float32(_one_code(codes, j, n, step, bits))
                store_f32(out + 4 * j, scale * code + offset)
        else:
            for start in range(0, n, 8):
                j = min(start, n - 8)  # the last vector overlaps the one before
                code = convert(f32x8, _eight_codes(codes, j, n, step, bits))
                store(out + 4 * j, fma(code, d, m))


@kernel
def _half(target, value):
    """Store float32 `value` as float16 and return what was stored."""
    store_f16(target, value)
    return load_f16(target)


@kernel
def _step(target, reach, levels):
    """Store and return the step of a row whose values reach so far."""
    step = _half(target, reach / np.float32(levels))
    if step == 0 and reach > 0:
        step = _half(target, F16_TINY)
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
                    _, shift, first = _place(step, width, bits)
                    byte |= ((code >> first) & mask) << shift
                store_u8(codes + ((bits & (-2 * width)) * n) + i, byte)


def _symmetric(bits: int) -> tuple[Verb, Verb]:
    """Encoder and decoder of int{bits}row."""
    zero = zero_code(bits)

    def encode(source, target, n):
        peak = np.float32(0)
        for i in range(n):
            peak = max(peak, abs(load_f32(source + 4 * i)))
        s = _step(target, peak, zero)
        _encode(source, target + 2, n // 8, bits, np.float32(0), s, zero, 2 * zero)

    def decode(source, target, n):
        s = load_f16(source)
        _decode(source + 2, target, n // 8, bits, s, np.float32(-zero) * s)

    return Verb(encode), Verb(decode)


def _asymmetric(bits: int) -> tuple[Verb, Verb]:
    """Encoder and decoder of int{bits}row-asym."""
    top = (1 << bits) - 1

    def encode(source, target, n):
        low, high = load_f32(source), load_f32(source)
        for i in range(1, n):
            value = load_f32(source + 4 * i)
            low, high = min(low, value), max(high, value)
        s = _step(target, high - low, top)
        m = _half(target + 2, low + np.float32(0))  # never a negative zero
        _encode(source, target + 4, n // 8, bits, m, s, 0, top)

    def decode(source, target, n):
        _decode(source + 4, target, n // 8, bits, load_f16(source), load_f16(source + 2))

    return Verb(encode), Verb(decode)


_VERBS = {f.name: _asymmetric(f.bits) if f.asym else _symmetric(f.bits) for f in ROWS}
ROW_ENCODERS = {name: encoder for name, (encoder, _) in _VERBS.items()}
ROW_DECODERS = {name: decoder for name, (_, decoder) in _VERBS.items()}
