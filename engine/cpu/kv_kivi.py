"""Score and mix on pages of `engine.kv.formats.kivi`; see `engine.cpu.kv_verbs` for signatures.

Nothing is dequantized: K's ranges are folded into the query, once per group of tokens, and V's into
the weights, once per group of channels.

    score[t] = q . m[g] + (q s[g]) . code[t]                       g = t div G
    out[d]  += sum_t p[t] m[g, t] + sum_t p[t] s[g, t] code[t, d]  g = d div G

Parameters: bytes of the codes, bits per code, G.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import kernel
from engine.cpu.kv_lanes import lane_dots, unpack_steps
from engine.cpu.kv_tokens import width
from engine.cpu.simd import (
    convert,
    f16x16,
    f32x16,
    fma,
    load,
    load_f32,
    reduce_add,
    splat,
    store,
    store_f32,
    zeros,
)

BLOCK = 128  # tokens unpacked at a time


@kernel
def _halves(address):
    return convert(f32x16, load(f16x16, address))


@kernel
def _fold(weights, ranges, n, folded):
    """Float32 weights s [n] at `folded`; returns weights . m.  `ranges` are m and s, float16."""
    total = zeros(f32x16)
    for i in range(0, n, 16):
        weight = load(f32x16, weights + 4 * i)
        total = fma(weight, _halves(ranges + 2 * i), total)
        store(folded + 4 * i, weight * _halves(ranges + 2 * (n + i)))
    return reduce_add(total)


def score(page, n, q, stride, rows, dim, out, scratch, codes_nbytes, bits, group):
    wide, lanes = width(dim), (dim + 15) & ~15
    folded, offsets = scratch, scratch + 4 * rows * lanes
    codes, ranges = offsets + 4 * rows, page + codes_nbytes
    for start in range(0, n, group):
        for i in range(rows):
            offset = _fold(q + 4 * i * wide, ranges, lanes, folded + 4 * i * lanes)
            store_f32(offsets + 4 * i, offset)
        for t in range(start, min(start + group, n), 16):
            unpack_steps(page, t // 16 * (lanes // 4), lanes // 4, bits, codes)
            for i in range(rows):
                offset = splat(f32x16, load_f32(offsets + 4 * i))
                dots = lane_dots(folded + 4 * i * lanes, codes, lanes, offset)
                store(out + i * stride + 4 * t, dots)
        ranges += 4 * lanes


def mix(page, n, p, stride, rows, dim, out, scratch, codes_nbytes, bits, group):
    wide, lanes = width(dim), (dim + 15) & ~15
    weights, masses = scratch, scratch + 4 * rows * n
    codes, ranges = masses + 4 * rows, page + codes_nbytes
    for start in range(0, dim, group):
        for i in range(rows):
            mass = _fold(p + i * stride, ranges, n, weights + 4 * i * n)
            store_f32(masses + 4 * i, mass)
        for c in range(start, min(start + group, lanes), 16):
            for i in range(rows):
                target = out + 4 * (i * wide + c)
                store(target, load(f32x16, target) + load_f32(masses + 4 * i))
            for t in range(0, n, BLOCK):
                count = min(BLOCK, n - t)
                unpack_steps(page, (c // 16 * n + t) // 4, count // 4, bits, codes)
                for i in range(rows):
                    target, x = out + 4 * (i * wide + c), weights + 4 * (i * n + t)
                    store(target, lane_dots(x, codes, count, load(f32x16, target)))
        ranges += 4 * n
    for i in range(rows):
        for d in range(dim, lanes):  # minima that no channel of the padding has
            store_f32(out + 4 * (i * wide + d), np.float32(0))


def scratch_nbytes(rows, lanes, page_tokens):
    """Bytes that either verb may need for `rows` query rows and `lanes` padded channels."""
    return 4 * rows * (max(lanes, page_tokens) + 1) + 64 * max(lanes, BLOCK)
