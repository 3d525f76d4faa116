"""Scales of the int{b} types: codes of b bits over a range, or around zero.

Scales are rounded to float16 before the codes are chosen, so a code is the nearest one to what will
be read.  The caller sees to it that they are finite.
"""

from __future__ import annotations

import numpy as np

F16_TINY = np.float32(2.0**-24)  # the smallest positive float16


def zero_code(bits: int) -> int:
    """The code that stands for 0 in a symmetric type, qmax = 2^(bits-1) - 1: codes go to 2 qmax."""
    return (1 << (bits - 1)) - 1


def _step(reach: np.ndarray, levels: int) -> np.ndarray:
    """float16 reach / levels, above 0 wherever `reach` is."""
    s = (reach / np.float32(levels)).astype(np.float16)
    return np.where(reach > 0, np.maximum(s, np.float16(F16_TINY)), np.float16(0))


def symmetric(x: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """The step of float32 x along `axis`, float16, the axis kept with length 1."""
    return _step(np.abs(x).max(axis=axis, keepdims=True), zero_code(bits))


def asymmetric(x: np.ndarray, bits: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and step of float32 x along `axis`, float16, the axis kept with length 1."""
    # the minimum may be a zero of either sign: with 0 added there is one
    low = x.min(axis=axis, keepdims=True) + np.float32(0)
    high = x.max(axis=axis, keepdims=True)
    return low.astype(np.float16), _step(high - low, (1 << bits) - 1)


def encode_codes(x: np.ndarray, m: np.ndarray | None, s: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 of float32 x: the nearest m + s code, or s (code - qmax) where m is None.

    Codes are 0, or qmax, where s is 0.
    """
    shifted = x if m is None else x - m.astype(np.float32)
    step = s.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(step > 0, shifted / step, np.float32(0))
    if m is None:
        zero = zero_code(bits)
        return (np.clip(np.rint(scaled), -zero, zero) + zero).astype(np.uint8)
    return np.clip(np.rint(scaled), 0, (1 << bits) - 1).astype(np.uint8)
