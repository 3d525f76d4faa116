"""Probabilities of whole vocabularies: logarithms of their masses, and how far two diverge.

A row is summed in float32, 16 lanes at a time, over stretches short enough that rounding stays
below 1e-6 of their sum, and the stretches in float64.  Logits that are not finite make results NaN.
"""

from __future__ import annotations

import math

import numpy as np

from engine.cpu.jit import Verb, field, inlined
from engine.cpu.memory import Pool
from engine.cpu.program import Program
from engine.cpu.simd import (
    f32x16,
    fma,
    load,
    load_f32,
    maximum,
    reduce_add,
    reduce_max,
    splat,
    store_f64,
    zeros,
)
from engine.cpu.vmath import vexp
from engine.memory import address

_STRETCH = 1024  # logits


@inlined
def _top(row, n):
    """The largest of n float32."""
    whole = n & ~15
    lanes = splat(f32x16, load_f32(row))
    for i in range(0, 4 * whole, 64):
        lanes = maximum(lanes, load(f32x16, row + i))
    top = reduce_max(lanes)
    for i in range(4 * whole, 4 * n, 4):
        top = max(top, load_f32(row + i))
    return top


def _mass_item(arguments, item, slot):
    """Fields: logits, n_vocab, out.  Item: a row."""
    n = field(arguments, 2)
    row = field(arguments, 1) + 4 * n * item
    top, whole, mass = _top(row, n), n & ~15, 0.0
    for start in range(0, whole, _STRETCH):
        lanes = zeros(f32x16)
        for i in range(4 * start, 4 * min(start + _STRETCH, whole), 64):
            x = load(f32x16, row + i) - top
            lanes = lanes + fma(x, zeros(f32x16), vexp(x))  # 0 x keeps what vexp would hide: NaN
        mass += reduce_add(lanes)
    for i in range(4 * whole, 4 * n, 4):
        x = load_f32(row + i) - top
        mass += math.exp(x) + 0 * x
    store_f64(field(arguments, 3) + 8 * item, top + math.log(mass))


def _divergence_item(arguments, item, slot):
    """Fields: base logits, logits, n_vocab, out [rows, 3].  Item: a row.

    KL(p | q) = E_p[ln p - ln q] = E_p[base - row] - (mass of base - mass of row)
    """
    n = field(arguments, 3)
    base, row = field(arguments, 1) + 4 * n * item, field(arguments, 2) + 4 * n * item
    top_p, top_q, whole = _top(base, n), _top(row, n), n & ~15
    mass_p, mass_q, mean = 0.0, 0.0, 0.0
    for start in range(0, whole, _STRETCH):
        lanes_p, lanes_q, lanes_mean = zeros(f32x16), zeros(f32x16), zeros(f32x16)
        for i in range(4 * start, 4 * min(start + _STRETCH, whole), 64):
            p, q = load(f32x16, base + i), load(f32x16, row + i)
            weight = vexp(p - top_p)
            lanes_p = lanes_p + weight
            lanes_q = lanes_q + fma(p - q, zeros(f32x16), vexp(q - top_q))
            lanes_mean = fma(weight, p - q, lanes_mean)
        mass_p += reduce_add(lanes_p)
        mass_q += reduce_add(lanes_q)
        mean += reduce_add(lanes_mean)
    for i in range(4 * whole, 4 * n, 4):
        p, q = load_f32(base + i), load_f32(row + i)
        weight = math.exp(p - top_p)
        mass_p += weight
        mass_q += math.exp(q - top_q) + 0 * (p - q)
        mean += weight * (p - q)
    ln_p, ln_q = top_p + math.log(mass_p), top_q + math.log(mass_q)
    out = field(arguments, 4) + 24 * item
    # rounding alone may take it below 0
    divergence = mean / mass_p - (ln_p - ln_q)
    store_f64(out, 0.0 if divergence < 0 else divergence)
    store_f64(out + 8, ln_p)
    store_f64(out + 16, ln_q)


_MASS, _DIVERGENCE = Verb(_mass_item), Verb(_divergence_item)


def log_masses(program: Program, pool: Pool, logits: np.ndarray) -> np.ndarray:
    """float64 [T]: ln sum exp of the rows of logits float32 [T, n_vocab]."""
    rows, n = logits.shape
    out = pool.take((rows,), np.float64)
    program.add(_MASS, rows, address(logits), n, address(out))
    return out


def divergences(program: Program, pool: Pool, base: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """float64 [T, 3]: the KL divergence from the rows of `base`, log masses of both."""
    rows, n = logits.shape
    out = pool.take((rows, 3), np.float64)
    program.add(
        _DIVERGENCE, rows, address(base), address(logits), n, address(out)
    )  # fmt: skip
    return out
