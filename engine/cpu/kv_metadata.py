"""Metadata in bytes, to the last bit as `engine.kv.formats.byte_codes` encodes it."""

from __future__ import annotations

import math

import numpy as np

from engine.cpu.jit import kernel
from engine.cpu.simd import load_f16, load_f64, load_u8, store_f16, store_f64, store_u8
from engine.kv.formats.byte_codes import EXP2_TERMS, LOG2_TERMS, OCTAVES, SQRT_HALF

# from the last term on, as Horner's rule takes them
_LOG2_LAST, *_LOG2_REST = LOG2_TERMS[::-1]
_LOG2, _EXP2 = tuple(_LOG2_REST), EXP2_TERMS[-2::-1]
_EXP2_LAST = EXP2_TERMS[-1]
_SMALLEST = 2.0**-OCTAVES
_LEAST_EXPONENT = -14  # of a float16


@kernel
def log2(x):
    """float64 of float64 x > 0."""
    fraction, exponent = math.frexp(x)
    if fraction < SQRT_HALF:
        fraction, exponent = 2 * fraction, exponent - 1
    z = (fraction - 1) / (fraction + 1)
    square, total = z * z, _LOG2_LAST
    for term in _LOG2:
        total = total * square + term
    return exponent + z * total


@kernel
def exp2(x):
    """float32 of float32 x <= 127."""
    whole = np.rint(x)
    part, total = np.float64(x - whole), _EXP2_LAST
    for term in _EXP2:
        total = total * part + term
    return np.float32(math.ldexp(total, int(whole)))


@kernel
def log_value(code, pair):
    """What a logarithmic code stands for, float32."""
    if code == 0:
        return np.float32(0)
    power = load_f16(pair) + (np.float32(code) - np.float32(1)) * load_f16(pair + 2)
    return exp2(min(power, np.float32(127)))


@kernel
def _quantum(x):
    """The distance of float16 numbers around float64 x."""
    exponent = math.frexp(x)[1] - 1
    return math.ldexp(1.0, max(exponent, _LEAST_EXPONENT) - 10)


@kernel
def _store_pair(x, n, levels, pair):
    """The pair of float64 x [n], its numbers rounded outwards to float16."""
    low, high = np.float64(np.inf), np.float64(-np.inf)
    for i in range(n):
        low, high = min(low, load_f64(x + 8 * i)), max(high, load_f64(x + 8 * i))
    first = np.floor(low / _quantum(low)) * _quantum(low)
    step = (high - first) / levels
    store_f16(pair, np.float32(first))
    store_f16(pair + 2, np.float32(np.ceil(step / _quantum(step)) * _quantum(step)))


@kernel
def _position(x, pair):
    """Where float64 x lies in steps from the pair's first, 0 where steps are 0."""
    step = np.float64(load_f16(pair + 2))
    return (x - np.float64(load_f16(pair))) / (step if step > 0 else np.float64(1))


@kernel
def encode_linear(x, n, codes, pair):
    """Codes uint8 [n] and pair of float64 x [n], the nearest codes."""
    _store_pair(x, n, 255, pair)
    for i in range(n):
        code = np.rint(_position(load_f64(x + 8 * i), pair))
        store_u8(codes + i, int(min(max(code, 0.0), 255.0)))


@kernel
def encode_log(x, n, up, codes, pair):
    """Codes uint8 [n] and pair of float64 x [n] >= 0, which becomes its logarithms.

    The nearest code, or with `up` the nearest that is not smaller than x.
    """
    peak = np.float64(0)
    for i in range(n):
        peak = max(peak, load_f64(x + 8 * i))
    rest = log2(peak) if peak > 0 else 0.0
    for i in range(n):
        value = load_f64(x + 8 * i)
        kept = value > 0 and value >= peak * _SMALLEST
        store_f64(x + 8 * i, log2(value) if kept else rest)
        store_u8(codes + i, 1 if kept else 0)
    _store_pair(x, n, 254, pair)
    for i in range(n):
        if load_u8(codes + i) == 0:
            continue
        place = _position(load_f64(x + 8 * i), pair)
        code = np.ceil(place - 1e-3) if up else np.rint(place)
        store_u8(codes + i, int(min(max(code, 0.0), 254.0)) + 1)
