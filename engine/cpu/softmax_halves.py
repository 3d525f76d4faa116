"""Online softmax of rows whose weights become bfloat16 halves (`engine.cpu.attention_tiles`).

Scores come as powers of two.  Weights are relative to a maximum, rounded to an integer, that lags
behind by up to LAG: raising it at every step would have all exponentials wait for a maximum across
lanes.  Sums stay apart by lane for the same reason, until `settle`.
"""

from __future__ import annotations

import math

import numpy as np

from engine.cpu.halves import store_truncated
from engine.cpu.jit import inlined, kernel
from engine.cpu.simd import (
    f32x16,
    load,
    load_f32,
    reduce_add,
    reduce_max,
    splat,
    store,
    store_f32,
    zeros,
)
from engine.cpu.softmax import MASKED, cap, clear, fill
from engine.cpu.vmath import any_larger, larger, relative_to, vexp2_relative

LAG = np.float32(7)


@kernel
def settle(rows, states, sums):
    """The rows' sums from those of their lanes."""
    for i in range(rows):
        store_f32(states + 8 * i + 4, reduce_add(load(f32x16, sums + 64 * i)))


@kernel
def _raise(state, highest, sums, acc, wide):
    """Make what a row has summed up relative to a new maximum."""
    shrink = np.float32(2.0 ** (load_f32(state) - highest))
    store_f32(state, highest)
    store(sums, load(f32x16, sums) * shrink)
    for c in range(0, 4 * wide, 64):
        store(acc + c, load(f32x16, acc + c) * shrink)


@inlined
def _highest(scores, count):
    """The largest scores by lane."""
    top, top2 = load(f32x16, scores), load(f32x16, scores + 64)
    for t in range(128, 4 * count, 128):
        top, top2 = (
            larger(load(f32x16, scores + t), top),
            larger(load(f32x16, scores + t + 64), top2),
        )
    return larger(top, top2)


@kernel
def softmax_halves(scores, count, first, last, state, sums, acc, wide, softcap):
    """One online step for a row of `count` scores (a multiple of 32), of which first..last count.

    Leaves weights, zeros where none count, of every 32 the high halves and then the low ones.
    `state` is the (lagging) maximum so far, `sums` float32 [16]; the row's `acc`, float32 [wide],
    is rescaled where the maximum is raised.
    """
    if first >= last:
        clear(scores, count)
        return
    if softcap > 0:
        cap(scores, 0, 4 * count, softcap)
    fill(scores, 0, first, MASKED)
    fill(scores, last, count, MASKED)
    top, highest = _highest(scores, count), load_f32(state)
    if any_larger(top, splat(f32x16, highest + LAG)):
        highest = np.float32(math.ceil(reduce_max(top)))
        _raise(state, highest, sums, acc, wide)
    least, rounder = relative_to(highest)
    total, total2 = load(f32x16, sums), zeros(f32x16)
    for t in range(0, 4 * count, 128):
        weight = vexp2_relative(load(f32x16, scores + t), least, rounder)
        weight2 = vexp2_relative(load(f32x16, scores + t + 64), least, rounder)
        total, total2 = total + weight, total2 + weight2
        store_truncated(weight, weight2, scores + t, 64)
    store(sums, total + total2)
