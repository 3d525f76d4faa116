"""Metadata in bytes: positive numbers by their logarithm, other numbers evenly, over their range.

A row of numbers becomes a row of uint8 codes and a pair (first, step) of float16:

    log     0 for code 0, else 2^(first + (code - 1) step)
    linear  first + code step

The pair is rounded outwards *before* the codes are chosen, so that it covers the row.
"""

from __future__ import annotations

import numpy as np

# Smaller than 2^-24 of the row's largest is 0: one stray number must not cost all others their
# precision, and what it stood for is lost in float32 beside them anyway.
OCTAVES = 24


def encode_log(x: np.ndarray, *, up: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [..., n] and pair float16 [..., 2] of float64 x [..., n] >= 0.

    The nearest code, or with `up` the nearest that is not smaller than x.
    """
    peak = x.max(axis=-1, keepdims=True)
    kept = (x > 0) & (x >= peak * 2.0**-OCTAVES)
    logs = np.log2(np.where(kept, x, np.where(peak > 0, peak, 1)))
    pair = _pair(logs, 254)
    scaled = _position(logs, pair)
    # a number that stands on a code, but for rounding, needs no larger one
    codes = np.ceil(scaled - 1e-3) if up else np.rint(scaled)
    return np.where(kept, np.clip(codes, 0, 254) + 1, 0).astype(np.uint8), pair


def decode_log(codes: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """float32 [..., n] of uint8 codes [..., n] and their pair [..., 2]."""
    first, step = (pair[..., i, None].astype(np.float32) for i in (0, 1))
    # as far as float32 goes, for a stray pair
    values = np.exp2(np.minimum(first + (codes.astype(np.float32) - 1) * step, np.float32(127)))
    return np.where(codes > 0, values, np.float32(0))


def encode_linear(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [..., n] and pair float16 [..., 2] of float64 x [..., n], the nearest codes."""
    pair = _pair(x, 255)
    return np.clip(np.rint(_position(x, pair)), 0, 255).astype(np.uint8), pair


def decode_linear(codes: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """float32 [..., n] of uint8 codes [..., n] and their pair [..., 2]."""
    first, step = (pair[..., i, None].astype(np.float32) for i in (0, 1))
    return first + codes.astype(np.float32) * step


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
