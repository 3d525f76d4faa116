"""Metadata in bytes, to the last bit as `engine.kv.formats.byte_codes` encodes it.

Rows are multiples of 16 numbers, and numbers that are not 0 are normal float64.
"""

from __future__ import annotations

import math

import numpy as np

from engine.cpu.jit import inlined, kernel
from engine.cpu.simd import (
    bitcast,
    ceil,
    convert,
    f32x16,
    f64x16,
    i32x16,
    i64x16,
    load,
    load_f16,
    reduce_max,
    rint,
    splat,
    store,
    store_f16,
    u8x16,
    u64x16,
    zeros,
)
from engine.cpu.vmath import larger, smaller, where_larger
from engine.kv.formats.byte_codes import EXP2_TERMS, LOG2_TERMS, OCTAVES, SQRT_HALF

# from the last term on, as Horner's rule takes them
_LOG2_LAST, *_LOG2_REST = LOG2_TERMS[::-1]
_LOG2, _EXP2 = tuple(_LOG2_REST), EXP2_TERMS[-2::-1]
_EXP2_LAST = EXP2_TERMS[-1]
_SMALLEST = 2.0**-OCTAVES
_LEAST_EXPONENT = -14  # of a float16
_FRACTION, _HALF = (1 << 52) - 1, 1022 << 52  # bits of a float64
_LEAST_POWER = np.float32(-1000)  # 0 in float32, and no subnormal in float64


@inlined
def _log2(x):
    """f64x16 of normal f64x16 x > 0."""
    bits = bitcast(u64x16, x)
    fraction = bitcast(f64x16, (bits & _FRACTION) | _HALF)
    exponent = convert(f64x16, bitcast(i64x16, bits >> 52) - 1022)
    one = splat(f64x16, np.float64(1))
    low = where_larger(splat(f64x16, np.float64(SQRT_HALF)), fraction, one, zeros(f64x16))
    fraction = fraction + fraction * low
    z = (fraction - one) / (fraction + one)
    square, total = z * z, splat(f64x16, _LOG2_LAST)
    for term in _LOG2:
        total = total * square + term
    return exponent - low + z * total


@inlined
def _exp2(x):
    """f32x16 of f32x16 x <= 127."""
    whole = rint(x)
    part, total = convert(f64x16, x - whole), splat(f64x16, _EXP2_LAST)
    for term in _EXP2:
        total = total * part + term
    exponent = convert(i64x16, convert(i32x16, larger(whole, splat(f32x16, _LEAST_POWER))))
    return convert(f32x16, total * bitcast(f64x16, (exponent + 1023) << 52))


@inlined
def linear_values(codes, pair):
    """What 16 linear codes stand for, f32x16."""
    return convert(f32x16, load(u8x16, codes)) * load_f16(pair + 2) + load_f16(pair)


@kernel
def log_values(codes, pair):
    """What 16 logarithmic codes stand for, f32x16."""
    code = convert(f32x16, load(u8x16, codes))
    power = (code - np.float32(1)) * load_f16(pair + 2) + load_f16(pair)
    value = _exp2(smaller(power, splat(f32x16, np.float32(127))))
    return where_larger(code, zeros(f32x16), value, zeros(f32x16))


@kernel
def _quantum(x):
    """The distance of float16 numbers around float64 x."""
    exponent = math.frexp(x)[1] - 1
    return math.ldexp(1.0, max(exponent, _LEAST_EXPONENT) - 10)


@kernel
def _store_pair(x, n, levels, pair):
    """The pair of float64 x [n], its numbers rounded outwards to float16."""
    minus, most = splat(f64x16, np.float64(-np.inf)), splat(f64x16, np.float64(-np.inf))
    for i in range(0, 8 * n, 128):
        value = load(f64x16, x + i)
        minus, most = larger(value * np.float64(-1), minus), larger(value, most)
    low, high = -reduce_max(minus), reduce_max(most)
    first = np.floor(low / _quantum(low)) * _quantum(low)
    step = (high - first) / levels
    store_f16(pair, np.float32(first))
    store_f16(pair + 2, np.float32(np.ceil(step / _quantum(step)) * _quantum(step)))


@inlined
def _positions(x, pair):
    """Where f64x16 x lies in steps from the pair's first, 0 where steps are 0."""
    step = np.float64(load_f16(pair + 2))
    return (x - np.float64(load_f16(pair))) / splat(f64x16, step if step > 0 else np.float64(1))


@inlined
def _clipped(code, top):
    """f64x16 as f32x16 between 0 and top."""
    return convert(f32x16, smaller(larger(code, zeros(f64x16)), splat(f64x16, np.float64(top))))


@kernel
def encode_linear(x, n, codes, pair):
    """Codes uint8 [n] and pair of float64 x [n], the nearest codes."""
    _store_pair(x, n, 255, pair)
    for i in range(0, n, 16):
        code = rint(_positions(load(f64x16, x + 8 * i), pair))
        store(codes + i, convert(u8x16, _clipped(code, 255)))


@kernel
def encode_log(x, n, up, codes, pair):
    """Codes uint8 [n] and pair of float64 x [n] >= 0, which becomes its logarithms.

    The nearest code, or with `up` the nearest that is not smaller than x.
    """
    most, zero = zeros(f64x16), zeros(f64x16)
    for i in range(0, 8 * n, 128):
        most = larger(load(f64x16, x + i), most)
    peak = reduce_max(most)
    rest = splat(f64x16, peak if peak > 0 else np.float64(1))
    least = splat(f64x16, peak * _SMALLEST)
    for i in range(0, n, 16):
        value = load(f64x16, x + 8 * i)
        value = where_larger(least, value, zero, value)
        kept = where_larger(value, zero, splat(f64x16, np.float64(1)), zero)
        store(codes + i, convert(u8x16, convert(f32x16, kept)))
        store(x + 8 * i, _log2(where_larger(value, zero, value, rest)))
    _store_pair(x, n, 254, pair)
    for i in range(0, n, 16):
        place, kept = _positions(load(f64x16, x + 8 * i), pair), load(u8x16, codes + i)
        code = ceil(place - np.float64(1e-3)) if up else rint(place)
        code = _clipped(code, 254) + np.float32(1)
        store(codes + i, convert(u8x16, code * convert(f32x16, kept)))
