"""Score and mix on pages of `engine.kv.formats.channels`; see `engine.cpu.kv_verbs` for signatures.

Nothing is dequantized: with x[t, d] = n'[t] (m[d] + s[d] code[t, d]) the ranges are folded into the
query once per page, the norms into the weights, and the inner loops run over codes.

    score[t] = n'[t] (q . m + (q s) . code[t])
    out[d]  += m[d] sum_t w[t] + s[d] sum_t w[t] code[t, d],  w = p n'

Without norms n' is 1, and in a symmetric type m is -qmax s.  Parameters: bytes of the codes, bits
per code, and the sum of NORMS and MINIMA where the page has them.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import kernel
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
    u32x16,
    zeros,
)

NORMS, MINIMA = 1, 2
MIX_TOKENS = 128  # tokens unpacked at a time


@kernel
def _plane(codes, k, bits, width):
    """Step k's part in the plane of `width` bits: 64 bytes, from bit 0."""
    per_line, step = 8 // width, k & 7
    line = (k >> 3) * bits + (bits & (-2 * width)) + step // per_line
    part = load(u32x16, codes + 64 * line) >> (width * (step % per_line))
    return part & (((1 << width) - 1) * 0x01010101)


@kernel
def _unpack_steps(codes, first, count, bits, target):
    """Steps first..first+count (`engine.bits`) as float32 [4 count, 16 lanes]."""
    for k in range(first, first + count):
        if bits == 8:
            word = load(u32x16, codes + 64 * k)
        else:
            word = zeros(u32x16)
            if bits & 4:
                word = _plane(codes, k, bits, 4)
            if bits & 2:
                word = word | (_plane(codes, k, bits, 2) << (bits & 4))
            if bits & 1:
                word = word | (_plane(codes, k, bits, 1) << (bits & 6))
        for byte in range(4):
            store(target + 64 * byte, convert(f32x16, (word >> (8 * byte)) & 255))
        target += 256


@kernel
def _lane_dots(weights, lanes, n):
    """sum_i weights[i] lanes[i] over float32 weights [n] and lanes [n, 16], n a multiple of 4."""
    a, b = zeros(f32x16), zeros(f32x16)
    for i in range(0, n, 2):
        a = fma(splat(f32x16, load_f32(weights + 4 * i)), load(f32x16, lanes + 64 * i), a)
        b = fma(splat(f32x16, load_f32(weights + 4 * i + 4)), load(f32x16, lanes + 64 * i + 64), b)
    return a + b


@kernel
def _layout(page, n, lanes, codes_nbytes, parts):
    """Addresses of the norms, the minima and the steps; absent parts have none of their own."""
    norms = page + codes_nbytes
    m = norms + (2 * n if parts & NORMS else 0)
    return norms, m, m + (2 * lanes if parts & MINIMA else 0)


@kernel
def _minimum(m, s, c, bits, parts):
    """The m of channels c..c+16."""
    if parts & MINIMA:
        return convert(f32x16, load(f16x16, m + 2 * c))
    zero = np.float32((1 << (bits - 1)) - 1)
    return convert(f32x16, load(f16x16, s + 2 * c)) * -zero


@kernel
def _norm(norms, t, parts):
    """The n' of tokens t..t+16."""
    if parts & NORMS:
        return convert(f32x16, load(f16x16, norms + 2 * t))
    return splat(f32x16, np.float32(1))


def score(page, n, q, stride, rows, dim, out, scratch, codes_nbytes, bits, parts):
    wide, lanes = width(dim), (dim + 15) & ~15
    norms, m, s = _layout(page, n, lanes, codes_nbytes, parts)
    folded = scratch
    offsets = folded + 4 * rows * wide
    codes = offsets + 4 * ((rows + 15) & ~15)
    for i in range(rows):
        total = zeros(f32x16)
        for c in range(0, lanes, 16):
            query = load(f32x16, q + 4 * (i * wide + c))
            total = fma(query, _minimum(m, s, c, bits, parts), total)
            scaled = query * convert(f32x16, load(f16x16, s + 2 * c))
            store(folded + 4 * (i * wide + c), scaled)
        store_f32(offsets + 4 * i, reduce_add(total))
    for t in range(0, n, 16):
        _unpack_steps(page, t // 16 * (lanes // 4), lanes // 4, bits, codes)
        norm = _norm(norms, t, parts)
        for i in range(rows):
            dots = _lane_dots(folded + 4 * i * wide, codes, lanes)
            offset = splat(f32x16, load_f32(offsets + 4 * i))
            store(out + i * stride + 4 * t, (dots + offset) * norm)


def mix(page, n, p, stride, rows, dim, out, scratch, codes_nbytes, bits, parts):
    wide, lanes = width(dim), (dim + 15) & ~15
    norms, m, s = _layout(page, n, lanes, codes_nbytes, parts)
    weights = scratch
    codes = weights + 4 * rows * n
    for i in range(rows):
        total = zeros(f32x16)
        for t in range(0, n, 16):
            weight = load(f32x16, p + i * stride + 4 * t) * _norm(norms, t, parts)
            total = total + weight
            store(weights + 4 * (i * n + t), weight)
        mass = splat(f32x16, reduce_add(total))
        for c in range(0, lanes, 16):
            target = out + 4 * (i * wide + c)
            low = _minimum(m, s, c, bits, parts)
            store(target, fma(low, mass, load(f32x16, target)))
    for t0 in range(0, n, MIX_TOKENS):
        count = min(MIX_TOKENS, n - t0)
        for c in range(0, lanes, 16):
            _unpack_steps(page, (c // 16 * n + t0) // 4, count // 4, bits, codes)
            step = convert(f32x16, load(f16x16, s + 2 * c))
            for i in range(rows):
                target = out + 4 * (i * wide + c)
                dots = _lane_dots(weights + 4 * (i * n + t0), codes, count)
                store(target, fma(dots, step, load(f32x16, target)))
