"""Online softmax of rows whose weights become bfloat16 halves (`engine.cpu.attention_tiles`).

Scores come as powers of two.  Weights are relative to a reference of their row, which need
not be its maximum so far: float32 has weights of 2^60 as exactly as those below 1.  It is the
maximum of what the row saw first and is raised once the row's sum is large, so that nobody looks
for maxima in between.  Where they rise so fast that a sum leaves float32, `settle` tells, and all
is done once more with maxima.

A row's line is its sum by lane, float32 [16], and its reference.
"""

from __future__ import annotations

import math

import numpy as np

from engine.cpu.halves import store_truncated
from engine.cpu.jit import inlined, kernel
from engine.cpu.powers import vexp2
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
from engine.cpu.softmax import MASKED, clear, fill
from engine.cpu.vmath import any_larger, larger

LINE, REFERENCE = 128, 64  # bytes; where in a line
MUCH = np.float32(2.0**20)  # of a sum: to raise the reference then is early enough
ALWAYS = np.float32(-1)  # instead of MUCH: look for maxima in every step
_NOTHING = np.float32(3e38)  # as a sum: no weight yet
_TOO_MUCH = np.float32(2.0**60)  # sums of values times weights could be infinite
_LAG = np.float32(7)  # by which weights may exceed 1, in powers of two, where maxima are known


@kernel
def begin_rows(rows, lines):
    """Lines of rows that have seen nothing."""
    for line in range(lines, lines + LINE * rows, LINE):
        store(line, splat(f32x16, _NOTHING))
        store_f32(line + REFERENCE, np.float32(0))


@kernel
def settle(rows, lines, states):
    """The rows' sums from those of their lanes.  Returns whether no maximum was missed."""
    fine = True
    for i in range(rows):
        total = reduce_add(load(f32x16, lines + LINE * i))
        store_f32(states + 8 * i, np.float32(0))
        store_f32(states + 8 * i + 4, total)
        fine &= total < _TOO_MUCH
    return fine


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
def _raise(scores, count, line, acc, wide):
    """Have a row's reference follow its largest score or its sum, if one of them asks for it."""
    top = reduce_max(_highest(scores, count)) - load_f32(line + REFERENCE)
    total = reduce_max(load(f32x16, line))
    if total == _NOTHING:
        store(line, zeros(f32x16))
        by = np.float32(math.ceil(top))
    elif total < _TOO_MUCH and (top > _LAG or total > MUCH):
        by = np.float32(math.ceil(max(top, np.float32(math.log2(total)))))
        shrink = np.float32(2.0**-by)
        store(line, load(f32x16, line) * shrink)
        for c in range(0, 4 * wide, 64):
            store(acc + c, load(f32x16, acc + c) * shrink)
    else:  # `settle` finds what is too much
        return
    store_f32(line + REFERENCE, load_f32(line + REFERENCE) + by)


@kernel
def mask(scores, count, first, last):
    """Of `count` scores only first..last are to count.  Returns False if none are: then they are
    weights, zeros, already."""
    if first >= last:
        clear(scores, count)
        return False
    fill(scores, 0, first, MASKED)
    fill(scores, last, count, MASKED)
    return True


@kernel
def softmax_halves(scores, count, line, acc, wide, much):
    """One online step for a row of `count` scores, a multiple of 32.

    Leaves weights, of every 32 the high halves and then the low ones.  The row's `acc`, float32
    [wide], is rescaled where its reference is raised: when its sum exceeds `much`.
    """
    if any_larger(load(f32x16, line), splat(f32x16, much)):
        _raise(scores, count, line, acc, wide)
    reference = splat(f32x16, load_f32(line + REFERENCE))
    total, total2 = load(f32x16, line), zeros(f32x16)
    for t in range(0, 4 * count, 128):
        weight = vexp2(load(f32x16, scores + t) - reference)
        weight2 = vexp2(load(f32x16, scores + t + 64) - reference)
        total, total2 = total + weight, total2 + weight2
        store_truncated(weight, weight2, scores + t, 64)
    store(line, total + total2)
