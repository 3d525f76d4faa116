"""Online softmax (Milakov and Gimelshein 2018) of single rows of scores."""

from __future__ import annotations

import math

import numpy as np

from engine.cpu.jit import inlined, kernel
from engine.cpu.kv_floats import fetch
from engine.cpu.kv_tokens import width
from engine.cpu.simd import (
    f32x16,
    fma,
    load,
    load_f32,
    reduce_add,
    reduce_max,
    splat,
    store,
    store_f32,
    zeros,
)
from engine.cpu.vmath import larger, vexp2, vtanh

MASKED = np.float32(-1e30)
LOG2E = np.float32(math.log2(math.e))


@kernel
def clear(target, n):
    """n float32 zeros, n a multiple of 16."""
    for i in range(0, 4 * n, 64):
        store(target + i, zeros(f32x16))


@inlined
def fill(row, start, stop, value):
    """float32 `value` for start..stop."""
    whole = min((start + 15) & ~15, stop)
    for t in range(start, whole):
        store_f32(row + 4 * t, value)
    for t in range(whole, stop & ~15, 16):
        store(row + 4 * t, splat(f32x16, value))
    for t in range(max(whole, stop & ~15), stop):
        store_f32(row + 4 * t, value)


@inlined
def cap(scores, start, stop, softcap):
    for t in range(start, stop, 64):
        s = load(f32x16, scores + t)
        store(scores + t, vtanh(s * (np.float32(1) / softcap)) * softcap)


@inlined
def _highest(scores, first, last, stop, softcap, before):
    """Cap the scores up to `stop`, mask those outside first..last, and their maximum and
    `before`'s."""
    if softcap > 0:
        cap(scores, 0, 4 * stop, softcap)
    fill(scores, 0, first, MASKED)
    fill(scores, last, stop, MASKED)
    top, top2 = splat(f32x16, before), splat(f32x16, MASKED)
    for t in range(0, 4 * stop, 128):
        top = larger(load(f32x16, scores + t), top)
        top2 = larger(load(f32x16, scores + t + 64), top2)
    return reduce_max(larger(top, top2))


@inlined
def _settle(state, before, highest, added, acc, wide):
    """Note a row's new maximum and sum, and rescale what it has summed up."""
    mass = load_f32(state + 4)
    if highest != before:
        shrink = np.float32(math.exp(before - highest))
        mass *= shrink
        store_f32(state, highest)
        for c in range(0, 4 * wide, 64):
            store(acc + c, load(f32x16, acc + c) * shrink)
    store_f32(state + 4, mass + added)


@kernel
def softmax_row(scores, count, first, last, state, acc, wide, softcap, ahead, end):
    """One online step for a row of `count` scores (a multiple of 32), of which first..last count.

    Leaves weights, zeros where none count.  `state` is (maximum, sum) so far; the row's `acc`,
    float32 [wide], is rescaled to the new maximum.  Meanwhile memory is asked for, from `ahead` to
    `end`.
    """
    start, stop = first & ~31, (last + 31) & ~31
    clear(scores, start)
    clear(scores + 4 * stop, count - stop)
    scores, first, last, stop = scores + 4 * start, first - start, last - start, stop - start
    before = load_f32(state)
    highest = _highest(scores, first, last, stop, softcap, before)
    scale, offset = splat(f32x16, LOG2E), splat(f32x16, -highest * LOG2E)
    total, total2 = zeros(f32x16), zeros(f32x16)
    lines = ((end - ahead) // 2 + stop - 1) // stop  # in a step of 32 scores
    for t in range(0, 4 * stop, 128):
        fetch(ahead, min(lines, (end - ahead) // 64))
        ahead += 64 * lines
        weight = vexp2(fma(load(f32x16, scores + t), scale, offset))
        weight2 = vexp2(fma(load(f32x16, scores + t + 64), scale, offset))
        total, total2 = total + weight, total2 + weight2
        store(scores + t, weight)
        store(scores + t + 64, weight2)
    _settle(state, before, highest, reduce_add(total + total2), acc, wide)


@kernel
def combine_row(n_parts, stride, states, sums, dim, out):
    """out [dim] = the softmax-weighted mean of one row over its parts, in their order.

    The sums of the first part are overwritten.
    """
    top = MASKED
    for p in range(n_parts):
        top = max(top, load_f32(states + p * stride))
    mass = np.float32(0)
    for p in range(n_parts):
        factor = np.float32(math.exp(load_f32(states + p * stride) - top))
        mass += load_f32(states + p * stride + 4) * factor
        store_f32(states + p * stride, factor)
    wide = width(dim)
    for d in range(0, 4 * wide, 64):
        total = zeros(f32x16)
        for p in range(n_parts):
            part = load(f32x16, sums + p * stride + d) * load_f32(states + p * stride)
            total = total + part
        total = total * (np.float32(1) / mass)
        if d + 64 <= 4 * dim:
            store(out + d, total)
        else:
            store(sums + d, total)
    for d in range(4 * (dim & ~15), 4 * dim, 4):
        store_f32(out + d, load_f32(sums + d))
