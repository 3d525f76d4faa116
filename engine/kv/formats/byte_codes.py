"""Metadata in bytes: positive numbers by their logarithm, other numbers evenly, over their range.

A row of numbers becomes a row of uint8 codes and a pair (first, step) of float16:

    log     0 for code 0, else 2^(first + (code - 1) step)
    linear  first + code step

The pair is rounded outwards *before* the codes are chosen, so that it covers the row.

Logarithms and powers are polynomials in float64, stated here to the last operation: libraries
differ in the last bit, and pages are to have the same bytes wherever they are packed.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np

_LN2 = 0.6931471805599453

# log2 x = e + z p(z^2), z = (f - 1) / (f + 1), x = f 2^e, sqrt(1/2) <= f < sqrt 2: the series of
# artanh, the constant first, to 1e-16
LOG2_TERMS = tuple(2 / (_LN2 * (2 * k + 1)) for k in range(10))
SQRT_HALF = 0.7071067811865476
# 2^x = 2^n p(x - n), n the nearest integer: the series of exp, the constant first, to 1e-16
EXP2_TERMS = tuple(accumulate(range(1, 13), lambda term, k: term * _LN2 / k, initial=1.0))

# Smaller than 2^-24 of the row's largest is 0: one stray number must not cost all others their
# precision, and what it stood for is lost in float32 beside them anyway.
OCTAVES = 24


def encode_log(x: np.ndarray, *, up: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [..., n] and pair float16 [..., 2] of float64 x [..., n] >= 0.

    The nearest code, or with `up` the nearest that is not smaller than x.
    """
    peak = x.max(axis=-1, keepdims=True)
    kept = (x > 0) & (x >= peak * 2.0**-OCTAVES)
    logs = _log2(np.where(kept, x, np.where(peak > 0, peak, 1)))
    pair = _pair(logs, 254)
    scaled = _position(logs, pair)
    # a number that stands on a code, but for rounding, needs no larger one
    codes = np.ceil(scaled - 1e-3) if up else np.rint(scaled)
    return np.where(kept, np.clip(codes, 0, 254) + 1, 0).astype(np.uint8), pair


def decode_log(codes: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """float32 [..., n] of uint8 codes [..., n] and their pair [..., 2]."""
    first, step = (pair[..., i, None].astype(np.float32) for i in (0, 1))
    # as far as float32 goes, for a stray pair
    values = _exp2(np.minimum(first + (codes.astype(np.float32) - 1) * step, np.float32(127)))
    return np.where(codes > 0, values, np.float32(0))


def encode_linear(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [..., n] and pair float16 [..., 2] of float64 x [..., n], the nearest codes."""
    pair = _pair(x, 255)
    return np.clip(np.rint(_position(x, pair)), 0, 255).astype(np.uint8), pair


def decode_linear(codes: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """float32 [..., n] of uint8 codes [..., n] and their pair [..., 2]."""
    first, step = (pair[..., i, None].astype(np.float32) for i in (0, 1))
    return first + codes.astype(np.float32) * step


def _log2(x: np.ndarray) -> np.ndarray:
    """float64 of float64 x > 0."""
    fraction, exponent = np.frexp(x)
    low = fraction < SQRT_HALF
    fraction = np.where(low, 2 * fraction, fraction)
    z = (fraction - 1) / (fraction + 1)
    return (exponent - low) + z * _polynomial(LOG2_TERMS, z * z)


def _exp2(x: np.ndarray) -> np.ndarray:
    """float32 of float32 x <= 127."""
    whole = np.rint(x)
    power = _polynomial(EXP2_TERMS, (x - whole).astype(np.float64))
    return np.ldexp(power, whole.astype(np.int32)).astype(np.float32)


def _polynomial(terms: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    """Horner's rule."""
    total = np.full(x.shape, terms[-1])
    for term in terms[-2::-1]:
        total = total * x + term
    return total


def _pair(x: np.ndarray, levels: int) -> np.ndarray:
    """float16 (first, step) [..., 2] with first <= min x and first + levels step >= max x."""
    first = _outwards(x.min(axis=-1), -np.inf)
    step = _outwards((x.max(axis=-1) - first) / levels, np.inf)
    return np.stack([first, step], axis=-1)


def _outwards(x: np.ndarray, direction: float) -> np.ndarray:
    """float64 x as the next float16 on the way to `direction`, x itself if it is one."""
    near = x.astype(np.float16)
    inside = near > x if direction < 0 else near < x
    return np.where(inside, np.nextafter(near, np.float16(direction)), near)


def _position(x: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """Where float64 x [..., n] lies in steps from the pair's first, 0 where steps are 0."""
    first, step = (pair[..., i, None].astype(np.float64) for i in (0, 1))
    return (x - first) / np.where(step > 0, step, 1)
