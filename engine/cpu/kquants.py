"""Decoders of the K-quants: superblocks of 256 values with scales that are quantized themselves.

Same contract as `engine.cpu.blocks`.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import Verb, kernel
from engine.cpu.simd import (
    convert,
    f32x16,
    fma,
    i32x16,
    load,
    load_f16,
    load_i8,
    load_u8,
    load_u32,
    splat,
    store,
    u8x16,
)


@kernel
def _codes(source):
    """16 bytes as int32: shifts by a variable count exist for words, not for bytes."""
    return convert(i32x16, load(u8x16, source))


@kernel
def _store_scaled(target, codes, scale, offset):
    """16 values scale q + offset."""
    store(target, fma(convert(f32x16, codes), splat(f32x16, scale), splat(f32x16, offset)))


def q2_k(source, target, n):
    """16 x (4-bit scale, 4-bit min) | 64 B of 2-bit codes | d | dmin."""
    for _ in range(n // 256):
        d, dmin = load_f16(source + 80), load_f16(source + 82)
        for g in range(16):
            # group g: half of 128 values, pair of bits, half of 32 bytes
            half, shift, part = g // 8, 2 * (g % 8 // 2), g % 2
            packed = np.int64(load_u8(source + g))
            scale, offset = d * np.float32(packed & 15), -dmin * np.float32(packed >> 4)
            codes = _codes(source + 16 + 32 * half + 16 * part)
            _store_scaled(target + 64 * g, (codes >> shift) & 3, scale, offset)
        source += 84
        target += 1024


@kernel
def _q3_scale(scales, g):
    """Scale g of 16: 6 bits, the low four in bytes 0-7, the high two in bytes 8-11, minus 32."""
    low = (np.int64(load_u8(scales + g % 8)) >> (4 * (g // 8))) & 15
    high = (np.int64(load_u8(scales + 8 + g % 4)) >> (2 * (g // 4))) & 3
    return np.float32((low | (high << 4)) - 32)


def q3_k(source, target, n):
    """32 B of high bits | 64 B of low 2-bit codes | 12 B of scales | d."""
    for _ in range(n // 256):
        d = load_f16(source + 108)
        for g in range(16):
            half, pair, part = g // 8, g % 8 // 2, g % 2
            scale = d * _q3_scale(source + 96, g)
            low = (_codes(source + 32 + 32 * half + 16 * part) >> (2 * pair)) & 3
            high = (_codes(source + 16 * part) >> (4 * half + pair)) & 1
            # a clear high bit subtracts 4
            _store_scaled(target + 64 * g, low | (high << 2), scale, np.float32(-4) * scale)
        source += 110
        target += 1024


@kernel
def _k_scales(packed):
    """(scales, mins) of Q4_K and Q5_K: eight six-bit values each, byte j of a word for sub-block j.

    Bytes 0-3 and 4-7 hold the first four of each in their low six bits; bytes 8-11 hold the low
    four bits of the others, whose high two are on top of bytes 0-7.
    """
    a, b = np.int64(load_u32(packed)), np.int64(load_u32(packed + 4))
    c = np.int64(load_u32(packed + 8))
    scales = (a & 0x3F3F3F3F) | (((c & 0x0F0F0F0F) | ((a >> 2) & 0x30303030)) << 32)
    mins = (b & 0x3F3F3F3F) | ((((c >> 4) & 0x0F0F0F0F) | ((b >> 2) & 0x30303030)) << 32)
    return scales, mins


@kernel
def _store_k_blocks(source, target, nibbles, fifths):
    """One superblock of Q4_K or Q5_K: 8 sub-blocks of 32 values d scale q - dmin min.

    `nibbles` is the address of 128 bytes, `fifths` that of 32 bytes of fifth bits, 0 without.
    """
    d, dmin = load_f16(source), load_f16(source + 2)
    scales, mins = _k_scales(source + 4)
    for j in range(8):
        scale = d * np.float32((scales >> (8 * j)) & 63)
        offset = -dmin * np.float32((mins >> (8 * j)) & 63)
        for part in range(2):
            codes = _codes(nibbles + 32 * (j // 2) + 16 * part)
            codes = (codes >> (4 * (j % 2))) & 15
            if fifths != 0:
                codes = codes | (((_codes(fifths + 16 * part) >> j) & 1) << 4)
            _store_scaled(target + 128 * j + 64 * part, codes, scale, offset)


def q4_k(source, target, n):
    """d | dmin | 12 B of scales and mins | 128 B of nibbles: low of 32 bytes, then high."""
    for _ in range(n // 256):
        _store_k_blocks(source, target, source + 16, 0)
        source += 144
        target += 1024


def q5_k(source, target, n):
    """As Q4_K with 32 B of fifth bits between the scales and the nibbles."""
    for _ in range(n // 256):
        _store_k_blocks(source, target, source + 48, source + 16)
        source += 176
        target += 1024


def q6_k(source, target, n):
    """128 B of low nibbles | 64 B of high 2-bit parts | 16 int8 scales | d."""
    for _ in range(n // 256):
        d = load_f16(source + 208)
        for g in range(16):
            # group g of 16 values: half of 128, quarter of 32 within it, part of 16
            half, quarter, part = g // 8, g % 8 // 2, g % 2
            scale = d * np.float32(load_i8(source + 192 + g))
            low = _codes(source + 64 * half + 32 * (quarter % 2) + 16 * part)
            low = (low >> (4 * (quarter // 2))) & 15
            high = (_codes(source + 128 + 32 * half + 16 * part) >> (2 * quarter)) & 3
            _store_scaled(target + 64 * g, low | (high << 4), scale, np.float32(-32) * scale)
        source += 210
        target += 1024


K_DECODERS = {
    "Q2_K": Verb(q2_k),
    "Q3_K": Verb(q3_k),
    "Q4_K": Verb(q4_k),
    "Q5_K": Verb(q5_k),
    "Q6_K": Verb(q6_k),
}
