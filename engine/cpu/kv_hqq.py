"""Encoders and decoders of `engine.kv.formats.hqq`: int64 addresses, n channels.

A pair per number of bits and group, compiled when first asked for.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import Verb, kernel
from engine.cpu.kv_rows import WIDTHS, eight_codes, half, one_code, place, row_step
from engine.cpu.simd import (
    convert,
    f32x8,
    fma,
    load,
    load_f16,
    load_f32,
    splat,
    store,
    store_f32,
    store_u8,
)
from engine.kv.formats.floats import F16_MAX
from engine.kv.formats.hqq import BETA, HQQ, POWER, ROUNDS, SHRUNK


@kernel
def _better_zero(source, n, s, z, top):
    """One round of HQQ on n float32 values: the mean of q - (x - shrink(e)) / s."""
    total = 0.0
    for i in range(n):
        x = np.float64(load_f32(source + 4 * i))
        q = min(max(np.rint(x / s + z), 0.0), top)
        e = x - (q - z) * s
        size = abs(e)
        shrunk = np.sign(e) * (size - size**POWER / BETA) if size > SHRUNK else 0.0
        total += q - (x - shrunk) / s
    return total / n


@kernel
def _fit(source, n, top, scale, minimum):
    """Store s and m of n float32 values as float16."""
    low, high = load_f32(source), load_f32(source)
    for i in range(1, n):
        value = load_f32(source + 4 * i)
        low, high = min(low, value), max(high, value)
    s = np.float64(row_step(scale, high - low, top))
    if s == 0:
        half(minimum, low + np.float32(0))  # never a negative zero
        return
    z = -np.float64(low) / s
    for _ in range(ROUNDS):
        before = z
        z = _better_zero(source, n, s, z, np.float64(top))
        if z == before:
            break  # and so would be all further rounds
    half(minimum, np.float32(max(-s * z, min(np.float64(low), -F16_MAX))))


@kernel
def _code(source, header, i, group, groups, top):
    """The code of channel i."""
    x, g = load_f32(source + 4 * i), i // group
    s, m = load_f16(header + 2 * g), load_f16(header + 2 * (groups + g))
    scaled = np.rint((x - m) / s) if s > 0 else np.float32(0)
    return min(int(max(scaled, np.float32(0))), top)


def _encoder(bits: int, group: int) -> Verb:
    top = (1 << bits) - 1

    def encode(source, target, n):
        groups, length = (n + group - 1) // group, n // 8
        for g in range(groups):
            count = min(group, n - g * group)
            minimum = target + 2 * (groups + g)
            _fit(source + 4 * g * group, count, top, target + 2 * g, minimum)
        codes = target + 4 * groups
        for width in WIDTHS:
            if bits & width:
                mask, per_line, first_line = (1 << width) - 1, 8 // width, bits & (-2 * width)
                for i in range(width * length):
                    line, j, byte = i // length, i % length, 0
                    for step in range(line * per_line, (line + 1) * per_line):
                        code = _code(source, target, step * length + j, group, groups, top)
                        _, shift, first = place(step, width, bits)
                        byte |= ((code >> first) & mask) << shift
                    store_u8(codes + first_line * length + i, byte)

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
