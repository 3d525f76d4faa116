"""Decoders of the plain and 32-value block types: bytes to float32.

Every decoder is `decode(source, target, n)`: the n values (whole blocks) at address `source` become
float32 at `target`.  Layouts are ggml's; `gguf.quants` is the oracle.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import Verb, kernel
from engine.cpu.lookup import look_up
from engine.cpu.simd import (
    address_of,
    bitcast,
    convert,
    f16x16,
    f32x16,
    fma,
    i8x16,
    iota,
    load,
    load_f16,
    load_f32,
    load_u16,
    load_u32,
    splat,
    store,
    store_f32,
    store_u32,
    u8x16,
    u16x16,
    u32x16,
)
from engine.kv.formats.iq4_nl import LEVELS


def f32(source, target, n):
    whole = n & ~15
    for i in range(0, whole, 16):
        store(target + 4 * i, load(f32x16, source + 4 * i))
    for i in range(whole, n):
        store_f32(target + 4 * i, load_f32(source + 4 * i))


def f16(source, target, n):
    whole = n & ~15
    for i in range(0, whole, 16):
        store(target + 4 * i, convert(f32x16, load(f16x16, source + 2 * i)))
    for i in range(whole, n):
        store_f32(target + 4 * i, load_f16(source + 2 * i))


@kernel
def _widen_bf16(bits):
    return bitcast(f32x16, convert(u32x16, bits) << 16)


def bf16(source, target, n):
    whole = n & ~15
    for i in range(0, whole, 16):
        store(target + 4 * i, _widen_bf16(load(u16x16, source + 2 * i)))
    for i in range(whole, n):
        store_u32(target + 4 * i, np.uint32(load_u16(source + 2 * i) << 16))


def q8_0(source, target, n):
    for _ in range(n // 32):
        d = splat(f32x16, load_f16(source))
        store(target, convert(f32x16, load(i8x16, source + 2)) * d)
        store(target + 64, convert(f32x16, load(i8x16, source + 18)) * d)
        source += 34
        target += 128


def q4_0(source, target, n):
    for _ in range(n // 32):
        d = load_f16(source)
        _store_nibbles(target, load(u8x16, source + 2), d, np.float32(-8) * d)
        source += 18
        target += 128


def q4_1(source, target, n):
    for _ in range(n // 32):
        _store_nibbles(target, load(u8x16, source + 4), load_f16(source), load_f16(source + 2))
        source += 20
        target += 128


def q5_0(source, target, n):
    for _ in range(n // 32):
        d = load_f16(source)
        low, high = load(u8x16, source + 6), load_u32(source + 2)
        _store_fives(target, low, high, d, np.float32(-16) * d)
        source += 22
        target += 128


def q5_1(source, target, n):
    for _ in range(n // 32):
        low, high = load(u8x16, source + 8), load_u32(source + 4)
        _store_fives(target, low, high, load_f16(source), load_f16(source + 2))
        source += 24
        target += 128


@kernel
def _store_nibbles(target, nibbles, scale, offset):
    """32 values scale q + offset: q are the low nibbles, then the high ones."""
    d, m = splat(f32x16, scale), splat(f32x16, offset)
    store(target, fma(convert(f32x16, nibbles & 15), d, m))
    store(target + 64, fma(convert(f32x16, nibbles >> 4), d, m))


@kernel
def _store_fives(target, nibbles, high, scale, offset):
    """As `_store_nibbles` with bit i of the word `high` as the fifth bit of value i."""
    d, m = splat(f32x16, scale), splat(f32x16, offset)
    bits = splat(u32x16, high) >> iota(u32x16)
    first = convert(u32x16, nibbles & 15) | ((bits & 1) << 4)
    second = convert(u32x16, nibbles >> 4) | (((bits >> 16) & 1) << 4)
    store(target, fma(convert(f32x16, first), d, m))
    store(target + 64, fma(convert(f32x16, second), d, m))


@kernel
def _store_levels(target, source, scale):
    """32 values scale level[q], nibbles as in `_store_nibbles`."""
    levels = load(f32x16, address_of(LEVELS)) * splat(f32x16, scale)
    nibbles = load(u8x16, source)
    store(target, look_up(levels, convert(u32x16, nibbles & 15)))
    store(target + 64, look_up(levels, convert(u32x16, nibbles >> 4)))


def iq4_nl(source, target, n):
    for _ in range(n // 32):
        _store_levels(target, source + 2, load_f16(source))
        source += 18
        target += 128


BLOCK_DECODERS = {
    "F32": Verb(f32),
    "F16": Verb(f16),
    "BF16": Verb(bf16),
    "Q8_0": Verb(q8_0),
    "Q4_0": Verb(q4_0),
    "Q4_1": Verb(q4_1),
    "Q5_0": Verb(q5_0),
    "Q5_1": Verb(q5_1),
    "IQ4_NL": Verb(iq4_nl),
}
