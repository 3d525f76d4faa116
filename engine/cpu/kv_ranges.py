"""Norms and ranges of pages of `engine.kv.formats.channels`: which a page has, and where."""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import inlined
from engine.cpu.simd import f32x16, fma, splat, store
from engine.cpu.vmath import halves

NORMS, MINIMA = 1, 2


@inlined
def load_ranges(page, n, lanes, codes_nbytes, bits, parts, steps):
    """The page's s and, behind them, the middles m + 2^(b-1) s, float32 [2, lanes] at `steps`."""
    m = page + codes_nbytes + (2 * n if parts & NORMS else 0)
    s = m + (2 * lanes if parts & MINIMA else 0)
    center = splat(f32x16, np.float32(1 << (bits - 1)))
    for c in range(0, lanes, 16):
        step = halves(s + 2 * c)
        store(steps + 4 * c, step)
        # a symmetric type's middle is a step above its zero
        middle = fma(step, center, halves(m + 2 * c)) if parts & MINIMA else step
        store(steps + 4 * (lanes + c), middle)


@inlined
def norms_at(page, codes_nbytes, t, parts):
    """The n' of tokens t..t+16."""
    one = splat(f32x16, np.float32(1))
    return halves(page + codes_nbytes + 2 * t) if parts & NORMS else one


@inlined
def load_norms(page, codes_nbytes, t0, count, parts, norms):
    """The n' of tokens t0..t0+count as float32 [count] at `norms`."""
    for t in range(0, count, 16):
        store(norms + 4 * t, norms_at(page, codes_nbytes, t0 + t, parts))
