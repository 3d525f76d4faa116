"""The blocks of weight types, split into codes and scales.

Every verb is `split(block, codes, scales, minima, d, dmin)` for one block of one row: codes go to
`codes`, a byte each in the order of the columns; scales and minima, f16 or int8, to every 16th
place from their addresses on (see `engine.cpu.layouts`); d and dmin, f16, to theirs.  The block
layouts are ggml's.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import Verb, inlined
from engine.cpu.simd import (
    convert,
    iota,
    load,
    load_u8,
    load_u16,
    load_u32,
    splat,
    store,
    store_u8,
    store_u16,
    u8x16,
    u8x32,
    u32x16,
)


@inlined
def _halves(packed, codes):
    """16 bytes: the low nibbles are the first 16 codes, the high ones the rest."""
    nibbles = load(u8x16, packed)
    store(codes, nibbles & 15)
    store(codes + 16, nibbles >> 4)


@inlined
def _fifths(word):
    """The 16 lowest bits of a word, each as the fifth bit of a byte."""
    bits = splat(u32x16, word) >> iota(u32x16)
    return convert(u8x16, (bits & 1) << 4)


@inlined
def _fives(packed, high, codes):
    """As `_halves` with bit i of the word `high` as the fifth bit of code i."""
    nibbles = load(u8x16, packed)
    store(codes, (nibbles & 15) | _fifths(high))
    store(codes + 16, (nibbles >> 4) | _fifths(high >> 16))


def q8_0(block, codes, scales, minima, d, dmin):
    store_u16(scales, load_u16(block))
    store(codes, load(u8x32, block + 2) ^ 128)


def q4_0(block, codes, scales, minima, d, dmin):
    store_u16(scales, load_u16(block))
    _halves(block + 2, codes)


def q4_1(block, codes, scales, minima, d, dmin):
    store_u16(scales, load_u16(block))
    store_u16(minima, load_u16(block + 2))
    _halves(block + 4, codes)


def q5_0(block, codes, scales, minima, d, dmin):
    store_u16(scales, load_u16(block))
    _fives(block + 6, load_u32(block + 2), codes)


def q5_1(block, codes, scales, minima, d, dmin):
    store_u16(scales, load_u16(block))
    store_u16(minima, load_u16(block + 2))
    _fives(block + 8, load_u32(block + 4), codes)


def iq4_nl(block, codes, scales, minima, d, dmin):
    store_u16(scales, load_u16(block))
    _halves(block + 2, codes)


def iq4_xs(block, codes, scales, minima, d, dmin):
    """d | 8 high 2-bit parts of scales | 8 low nibbles of scales | 128 B of nibbles."""
    store_u16(d, load_u16(block))
    high = np.int64(load_u16(block + 2))
    for b in range(8):
        low = np.int64(load_u8(block + 4 + b // 2)) >> (4 * (b % 2))
        store_u8(scales + 16 * b, ((low & 15) | (((high >> (2 * b)) & 3) << 4)) - 32)
        _halves(block + 8 + 16 * b, codes + 32 * b)


@inlined
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


@inlined
def _k_header(block, scales, minima, d, dmin):
    """d | dmin | 12 B of scales and mins; mins are subtracted, so dmin changes its sign."""
    store_u16(d, load_u16(block))
    store_u16(dmin, load_u16(block + 2) ^ 0x8000)
    s, m = _k_scales(block + 4)
    for j in range(8):
        store_u8(scales + 16 * j, (s >> (8 * j)) & 63)
        store_u8(minima + 16 * j, (m >> (8 * j)) & 63)


def q4_k(block, codes, scales, minima, d, dmin):
    """Header | 128 B of nibbles: low of 32 bytes, then high."""
    _k_header(block, scales, minima, d, dmin)
    for j in range(4):
        nibbles = load(u8x32, block + 16 + 32 * j)
        store(codes + 64 * j, nibbles & 15)
        store(codes + 64 * j + 32, nibbles >> 4)


def q5_k(block, codes, scales, minima, d, dmin):
    """As Q4_K with 32 B of fifth bits between the header and the nibbles."""
    _k_header(block, scales, minima, d, dmin)
    fifths = load(u8x32, block + 16)
    for j in range(4):
        nibbles = load(u8x32, block + 48 + 32 * j)
        store(codes + 64 * j, (nibbles & 15) | (((fifths >> (2 * j)) & 1) << 4))
        store(codes + 64 * j + 32, (nibbles >> 4) | (((fifths >> (2 * j + 1)) & 1) << 4))


def q6_k(block, codes, scales, minima, d, dmin):
    """128 B of low nibbles | 64 B of high 2-bit parts | 16 int8 scales | d."""
    store_u16(d, load_u16(block + 208))
    for g in range(16):
        store_u8(scales + 16 * g, load_u8(block + 192 + g))
    for half in range(2):
        high = load(u8x32, block + 128 + 32 * half)
        for pair in range(2):
            low, target = load(u8x32, block + 64 * half + 32 * pair), codes + 128 * half + 32 * pair
            store(target, (low & 15) | (((high >> (2 * pair)) & 3) << 4))
            store(target + 64, (low >> 4) | (((high >> (2 * pair + 4)) & 3) << 4))


def q2_k(block, codes, scales, minima, d, dmin):
    """16 x (4-bit scale, 4-bit min) | 64 B of 2-bit codes | d | dmin."""
    store_u16(d, load_u16(block + 80))
    store_u16(dmin, load_u16(block + 82) ^ 0x8000)
    for g in range(16):
        packed = load_u8(block + g)
        store_u8(scales + 16 * g, packed & 15)
        store_u8(minima + 16 * g, packed >> 4)
    for half in range(2):
        fours = load(u8x32, block + 16 + 32 * half)
        for pair in range(4):
            store(codes + 128 * half + 32 * pair, (fours >> (2 * pair)) & 3)


@inlined
def _q3_scale(packed, g):
    """Scale g of 16: 6 bits, the low four in bytes 0-7, the high two in bytes 8-11, minus 32."""
    low = (np.int64(load_u8(packed + g % 8)) >> (4 * (g // 8))) & 15
    high = (np.int64(load_u8(packed + 8 + g % 4)) >> (2 * (g // 4))) & 3
    return (low | (high << 4)) - 32


def q3_k(block, codes, scales, minima, d, dmin):
    """32 B of high bits | 64 B of low 2-bit codes | 12 B of scales | d."""
    store_u16(d, load_u16(block + 108))
    for g in range(16):
        store_u8(scales + 16 * g, _q3_scale(block + 96, g))
    high = load(u8x32, block)
    for half in range(2):
        low = load(u8x32, block + 32 + 32 * half)
        for pair in range(4):
            top = ((high >> (4 * half + pair)) & 1) << 2
            store(codes + 128 * half + 32 * pair, ((low >> (2 * pair)) & 3) | top)


SPLITTERS = {
    "Q8_0": Verb(q8_0),
    "Q4_0": Verb(q4_0),
    "Q4_1": Verb(q4_1),
    "Q5_0": Verb(q5_0),
    "Q5_1": Verb(q5_1),
    "IQ4_NL": Verb(iq4_nl),
    "Q2_K": Verb(q2_k),
    "Q3_K": Verb(q3_k),
    "Q4_K": Verb(q4_k),
    "Q5_K": Verb(q5_k),
    "Q6_K": Verb(q6_k),
    "IQ4_XS": Verb(iq4_xs),
}
