"""Encoders of the token formats: float32 to ggml blocks, byte for byte as the NumPy reference.

Every encoder is `encode(source, target, n)` for n float32 values (whole blocks) at `source`.
"""

from __future__ import annotations

import math

import numpy as np

from engine.cpu.jit import Verb, call, kernel
from engine.cpu.simd import (
    address_of,
    load_f32,
    load_u32,
    store_f16,
    store_f32,
    store_u8,
    store_u16,
)


def f32(source, target, n):
    for i in range(n):
        store_f32(target + 4 * i, load_f32(source + 4 * i))


def f16(source, target, n):
    for i in range(n):
        store_f16(target + 2 * i, load_f32(source + 4 * i))


def bf16(source, target, n):
    for i in range(n):
        bits = np.int64(load_u32(source + 4 * i))
        store_u16(target + 2 * i, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


def q8_0(source, target, n):
    for _ in range(n // 32):
        peak = np.float32(0)
        for i in range(32):
            peak = max(peak, abs(load_f32(source + 4 * i)))
        d = peak / np.float32(127)
        inverse = np.float32(0) if d == 0 else np.float32(1) / d
        store_f16(target, d)
        for i in range(32):
            scaled = load_f32(source + 4 * i) * inverse
            magnitude = abs(scaled)
            whole = math.floor(magnitude)
            # C's roundf: halves away from zero
            whole += math.floor(2 * (magnitude - np.float32(whole)))
            store_u8(target + 2 + i, int(whole if scaled >= 0 else -whole))
        source += 128
        target += 34


def q4_0(source, target, n):
    for _ in range(n // 32):
        peak = load_f32(source)  # of a block of zeros, the sign of the first is ggml's
        for i in range(1, 32):
            value = load_f32(source + 4 * i)
            if abs(value) > abs(peak):
                peak = value
        d = peak / np.float32(-8)
        inverse = np.float32(0) if d == 0 else np.float32(1) / d
        store_f16(target, d)
        for i in range(16):
            low = int(load_f32(source + 4 * i) * inverse + np.float32(8.5))
            high = int(load_f32(source + 64 + 4 * i) * inverse + np.float32(8.5))
            store_u8(target + 2 + i, min(low, 15) | (min(high, 15) << 4))
        source += 128
        target += 18


ENCODERS = {
    "f32": Verb(f32),
    "f16": Verb(f16),
    "bf16": Verb(bf16),
    "q8_0": Verb(q8_0),
    "q4_0": Verb(q4_0),
}


@kernel
def first_beyond(x, limit):
    """The first token of x [T, heads, D] with a NaN or a magnitude above `limit`, -1 if none."""
    for t in range(x.shape[0]):
        for h in range(x.shape[1]):
            for d in range(x.shape[2]):
                if not abs(x[t, h, d]) <= limit:
                    return t
    return -1


@kernel
def write_rows(encoder, x, page, head_nbytes, row_nbytes, start, padded):
    """Encode x [T, heads, D] as rows start..start+T of each head's page; `padded` is a zeroed
    float32 row of whole blocks."""
    tokens, heads, dim = x.shape
    for t in range(tokens):
        for h in range(heads):
            for d in range(dim):
                padded[d] = x[t, h, d]
            target = page + h * head_nbytes + (start + t) * row_nbytes
            call(encoder, (address_of(padded), target, padded.shape[0]))
