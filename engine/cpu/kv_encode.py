"""Encoders of the token formats: float32 to ggml blocks, byte for byte as the NumPy reference.

Every encoder is `encode(source, target, n)` for n float32 values (whole blocks) at `source`.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import Verb, inlined, kernel
from engine.cpu.kv_floats import larger_magnitude, sum_in_order
from engine.cpu.kv_hqq import HQQ_ENCODERS
from engine.cpu.kv_rows import ROW_ENCODERS
from engine.cpu.lookup import look_up
from engine.cpu.simd import (
    address_of,
    bitcast,
    convert,
    f32x16,
    i32x16,
    iota,
    load,
    load_f32,
    load_i64,
    load_u32,
    maximum,
    minimum,
    reduce_add,
    reduce_max,
    splat,
    store,
    store_f16,
    store_f32,
    store_i64,
    store_u16,
    store_u32,
    u8x16,
    u32x16,
    zeros,
)
from engine.cpu.vmath import where_larger
from engine.kv.formats.iq4_nl import LEVELS, MIDPOINTS, SMALLEST

_MIDPOINTS = np.append(MIDPOINTS, np.inf).astype(np.float32)  # a register's 16


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


@kernel
def _magnitude(first, second):
    """The largest magnitude of 32 values."""
    return reduce_max(larger_magnitude(larger_magnitude(zeros(f32x16), first), second))


@kernel
def _rounded(scaled):
    """f32x16 as bytes, rounded like C's roundf: halves away from zero."""
    magnitude = larger_magnitude(zeros(f32x16), scaled)
    whole = convert(i32x16, magnitude)
    rest = (magnitude - convert(f32x16, whole)) * np.float32(2)
    whole = whole + convert(i32x16, rest)
    sign = bitcast(i32x16, scaled) >> 31
    return convert(u8x16, (whole ^ sign) - sign)


def q8_0(source, target, n):
    for _ in range(n // 32):
        first, second = load(f32x16, source), load(f32x16, source + 64)
        d = _magnitude(first, second) / np.float32(127)
        inverse = _reciprocal(d)
        store_f16(target, d)
        store(target + 2, _rounded(first * inverse))
        store(target + 18, _rounded(second * inverse))
        source += 128
        target += 34


@kernel
def _peak(source):
    """The first of the 32 values with the largest magnitude."""
    first, second = load(f32x16, source), load(f32x16, source + 64)
    largest = _magnitude(first, second)
    above = reduce_max(maximum(first, second)) == largest
    below = reduce_max(maximum(zeros(f32x16) - first, zeros(f32x16) - second)) == largest
    if above != below:
        return largest if above else -largest
    peak = load_f32(source)  # of a block of zeros, the sign of the first is ggml's
    for i in range(1, 32):
        value = load_f32(source + 4 * i)
        if abs(value) > abs(peak):
            peak = value
    return peak


@kernel
def _reciprocal(d):
    return np.float32(0) if d == 0 else np.float32(1) / d


@kernel
def _codes(values, inverse, offset, top):
    """values inverse + offset >= 0, truncated, at most `top`, as u32x16."""
    return convert(u32x16, minimum(values * inverse + offset, splat(f32x16, top)))


@kernel
def _store_codes(source, shift, inverse, offset, bits, low, high):
    """Codes of `bits` bits of the 32 values (x - shift): see `engine.kv.formats.blocks`."""
    top, lane = (1 << bits) - 1, iota(u32x16)
    a = _codes(load(f32x16, source) - shift, inverse, offset, top)
    b = _codes(load(f32x16, source + 64) - shift, inverse, offset, top)
    if bits == 5:
        store_u32(high, reduce_add(((a >> 4) | ((b >> 4) << 16)) << lane))
    elif bits == 6:
        # the first eight lanes hold bits 0-3, the others bits 4-7; `low` is written later
        store(high, convert(u8x16, ((a >> 4) | ((b >> 4) << 2)) << ((lane & 8) >> 1)))
        store_i64(high, load_i64(high) | load_i64(high + 8))
    store(low, convert(u8x16, (a & 15) | ((b & 15) << 4)))


@kernel
def _signed(source, target, n, bits, high_nbytes):
    """`engine.kv.formats.signed_blocks`."""
    zero = 1 << (bits - 1)
    for _ in range(n // 32):
        d = _peak(source) / np.float32(-zero)
        store_f16(target, d)
        offset = np.float32(zero + 0.5)
        low = target + 2 + high_nbytes
        _store_codes(source, np.float32(0), _reciprocal(d), offset, bits, low, target + 2)
        source += 128
        target += 18 + high_nbytes


def q4_0(source, target, n):
    _signed(source, target, n, 4, 0)


def q5_0(source, target, n):
    _signed(source, target, n, 5, 4)


def q6_0(source, target, n):
    _signed(source, target, n, 6, 8)


@kernel
def _ranged(source, target, n, bits, high_nbytes):
    """`engine.kv.formats.range_blocks`."""
    for _ in range(n // 32):
        low, high = load_f32(source), load_f32(source)
        for i in range(1, 32):
            value = load_f32(source + 4 * i)
            if value < low:  # the first of the smallest: it may be a zero of either sign
                low = value
            high = max(high, value)
        d = (high - low) / np.float32((1 << bits) - 1)
        store_f16(target, d)
        store_f16(target + 2, low)
        nibbles = target + 4 + high_nbytes
        _store_codes(source, low, _reciprocal(d), np.float32(0.5), bits, nibbles, target + 4)
        source += 128
        target += 20 + high_nbytes


def q4_1(source, target, n):
    _ranged(source, target, n, 4, 0)


def q5_1(source, target, n):
    _ranged(source, target, n, 5, 4)


@kernel
def _nearest_level(scaled):
    """The number of midpoints up to each of f32x16, as u32x16: a search by halves."""
    midpoints, code = load(f32x16, address_of(_MIDPOINTS)), zeros(u32x16)
    for bit in (8, 4, 2, 1):
        above = code + bit
        code = where_larger(look_up(midpoints, above - 1), scaled, code, above)
    return code


@inlined
def _fitted(x, code, above, below):
    """The sums of x^2 level x and x^2 level^2 with those of 16 values."""
    level = look_up(load(f32x16, address_of(LEVELS)), code)
    product = x * x * level
    return sum_in_order(above, product * x), sum_in_order(below, product * level)


def iq4_nl(source, target, n):
    for _ in range(n // 32):
        peak = _peak(source)
        if abs(peak) >= SMALLEST:
            inverse = np.float32(1) / (peak / LEVELS[0])
            x, y = load(f32x16, source), load(f32x16, source + 64)
            first, second = _nearest_level(x * inverse), _nearest_level(y * inverse)
            above, below = _fitted(x, first, np.float32(0), np.float32(0))
            above, below = _fitted(y, second, above, below)
            store_f16(target, above / below)
            store(target + 2, convert(u8x16, first | (second << 4)))
        else:
            store(target + 2, zeros(u8x16))
            store_f16(target, np.float32(0))
        source += 128
        target += 18


ENCODERS = {
    "f32": Verb(f32),
    "f16": Verb(f16),
    "bf16": Verb(bf16),
    "q8_0": Verb(q8_0),
    "q6_0": Verb(q6_0),
    "q5_1": Verb(q5_1),
    "q5_0": Verb(q5_0),
    "q4_1": Verb(q4_1),
    "q4_0": Verb(q4_0),
    "iq4_nl": Verb(iq4_nl),
    **ROW_ENCODERS,
    **HQQ_ENCODERS,
}
