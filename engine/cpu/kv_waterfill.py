"""Score and mix on pages of `engine.kv.formats.waterfill`; see `engine.cpu.kv_verbs`.

Nothing is dequantized: the sorted channels' ranges are folded into the query, which is put into
their order once per page, and a mix is put back into the channels' own order once per page.

    score[t] = n'[t] (q . low + (q s) . code[t]),  low = m - s (2^w - 1) / 2
    out[d]  += low[d] sum_t v[t] + s[d] sum_t v[t] code[t, d],  v = p n'

Parameters: bytes of the codes, channels of a group of K, none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from engine.cpu.jit import kernel
from engine.cpu.kv_lanes import lane_dots, unpack_steps
from engine.cpu.kv_tokens import width
from engine.cpu.simd import (
    convert,
    f32x16,
    fma,
    intrinsic,
    load,
    load_f16,
    load_f32,
    load_i64,
    load_u16,
    load_u32,
    reduce_add,
    splat,
    store,
    store_f32,
    store_u16,
    store_u32,
    u8x16,
    u16x16,
    u32x16,
    zeros,
)
from engine.cpu.vmath import vexp

BLOCK = 128  # tokens unpacked at a time, of 16 channels
_CODES_NBYTES = 4 * 16 * BLOCK  # as float32
_CHANNEL, _WIDTH = (1 << 12) - 1, 12  # an entry of the order: channel | width << 12
_LN2 = np.float32(math.log(2))


@intrinsic
def _trailing_zeros(typing_context: Any, word: Any) -> Any:
    """Of a positive or negative int64 other than 0."""

    def emit(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), emit


@kernel
def _parts(page, n, lanes, codes_nbytes):
    """Addresses of the width planes, n' codes, m codes, s codes and pairs."""
    planes = page + codes_nbytes
    norms = planes + 3 * lanes // 8
    return planes, norms, norms + n, norms + n + lanes, norms + n + 2 * lanes


@kernel
def _sort(planes, lanes, order):
    """The sorted channels as uint16 entries at `order`, by width and then by number."""
    stride = lanes // 8
    for w in range(7, -1, -1):
        for c in range(0, lanes, 64):
            found = -1 if lanes - c >= 64 else (1 << (lanes - c)) - 1
            for i in range(3):
                plane = load_i64(planes + i * stride + c // 8)
                found &= plane if (w >> i) & 1 else ~plane
            while found != 0:
                store_u16(order, (c + _trailing_zeros(found)) | (w << _WIDTH))
                order += 2
                found &= found - 1


@kernel
def _log_values(codes, pair):
    """16 numbers of a logarithmic code."""
    code = convert(f32x16, load(u8x16, codes))
    first, step = load_f16(pair) - load_f16(pair + 2), load_f16(pair + 2)
    power = fma(code, splat(f32x16, step), splat(f32x16, first)) * _LN2
    # the code 0 stands for 0
    lit = convert(f32x16, (convert(u32x16, load(u8x16, codes)) + 255) >> 8)
    return vexp(power) * lit


@kernel
def _ranges(order, middles, steps, pairs, lanes, low, s):
    """Float32 low and s [lanes] of the sorted channels."""
    first, step = load_f16(pairs + 4), load_f16(pairs + 6)
    for c in range(0, lanes, 16):
        size = _log_values(steps + c, pairs + 8)
        code = convert(f32x16, load(u8x16, middles + c))
        middle = fma(code, splat(f32x16, step), splat(f32x16, first))
        widths = convert(u32x16, load(u16x16, order + 2 * c) >> _WIDTH)
        top = convert(f32x16, (splat(u32x16, 1) << widths) - 1)
        store(low + 4 * c, fma(size * top, splat(f32x16, np.float32(-0.5)), middle))
        store(s + 4 * c, size)


@kernel
def _width_of(order, c):
    return int(load_u16(order + 2 * c)) >> _WIDTH


@kernel
def _quad_dots(weights, lanes, quads, stride, total):
    """total + sum of 4 products per quad: weights [quads, 4], lanes `stride` bytes apart."""
    rest = zeros(f32x16)
    for quad in range(quads):
        w, x = weights + 16 * quad, lanes + quad * stride
        total = fma(splat(f32x16, load_f32(w)), load(f32x16, x), total)
        rest = fma(splat(f32x16, load_f32(w + 4)), load(f32x16, x + 64), rest)
        total = fma(splat(f32x16, load_f32(w + 8)), load(f32x16, x + 128), total)
        rest = fma(splat(f32x16, load_f32(w + 12)), load(f32x16, x + 192), rest)
    return total + rest


@kernel
def _fold(q, lanes, order, low, s, folded):
    """Float32 q s [lanes] of the sorted channels at `folded`; returns q . low."""
    for c in range(lanes):
        channel = int(load_u16(order + 2 * c)) & _CHANNEL
        store_f32(folded + 4 * c, load_f32(q + 4 * channel))
    total = zeros(f32x16)
    for c in range(0, 4 * lanes, 64):
        query = load(f32x16, folded + c)
        total = fma(query, load(f32x16, low + c), total)
        store(folded + c, query * load(f32x16, s + c))
    return reduce_add(total)


@kernel
def _place_groups(order, lanes, group, n, places):
    """Where each quad's group begins in the codes, uint32 [lanes / 4]."""
    place = 0
    for c in range(0, lanes, group):
        for quad in range(c, c + group, 4):
            store_u32(places + quad, place)
        place += group * n * _width_of(order, c) // 8


@kernel
def _used_quads(order, c, lanes):
    """How many of the quads of sorted channels c..c+16 have codes."""
    quads = 0
    while quads < 4 and c + 4 * quads < lanes and _width_of(order, c + 4 * quads) > 0:
        quads += 1
    return quads


def score(page, n, q, stride, rows, dim, out, scratch, codes_nbytes, group, unused):
    wide, lanes = width(dim), (dim + 15) & ~15
    planes, norms, middles, steps, pairs = _parts(page, n, lanes, codes_nbytes)
    low, s, order, places = scratch, scratch + 4 * lanes, scratch + 8 * lanes, scratch + 10 * lanes
    folded = scratch + 11 * lanes
    codes = folded + 4 * rows * lanes
    _sort(planes, lanes, order)
    _ranges(order, middles, steps, pairs, lanes, low, s)
    _place_groups(order, lanes, group, n, places)
    for i in range(rows):
        offset = _fold(q + 4 * i * wide, lanes, order, low, s, folded + 4 * i * lanes)
        for t in range(0, 4 * n, 64):
            store(out + i * stride + t, splat(f32x16, offset))
    for c in range(0, lanes, 16):
        quads = _used_quads(order, c, lanes)
        for t in range(0, n, BLOCK):
            count = min(BLOCK, n - t) // 16
            for quad in range(c, c + 4 * quads, 4):
                first = quad % group // 4 * (n // 16) + t // 16
                source, bits = page + int(load_u32(places + quad)), _width_of(order, quad)
                unpack_steps(source, first, count, bits, codes + (quad - c) * 64 * count)
            for i in range(rows):
                weights = folded + 4 * (i * lanes + c)
                for k in range(count):
                    target, x = out + i * stride + 4 * t + 64 * k, codes + 256 * k
                    dots = _quad_dots(weights, x, quads, 256 * count, load(f32x16, target))
                    store(target, dots)
    for t in range(0, n, 16):
        norm = _log_values(norms + t, pairs)
        for i in range(rows):
            target = out + i * stride + 4 * t
            store(target, load(f32x16, target) * norm)


@kernel
def _weigh(p, stride, rows, n, norms, pairs, weights, masses):
    """Float32 p n' [rows, n] at `weights` and their sums over n at `masses`."""
    for i in range(rows):
        store_f32(masses + 4 * i, np.float32(0))
    for t in range(0, n, 16):
        norm = _log_values(norms + t, pairs)
        for i in range(rows):
            weight = load(f32x16, p + i * stride + 4 * t) * norm
            store(weights + 4 * (i * n + t), weight)
            store_f32(masses + 4 * i, load_f32(masses + 4 * i) + reduce_add(weight))


@kernel
def _scatter_add(values, order, dim, out):
    """out[channel] += value for 16 sorted channels, those of the padding left out."""
    for j in range(16):
        channel = int(load_u16(order + 2 * j)) & _CHANNEL
        if channel < dim:
            target = out + 4 * channel
            store_f32(target, load_f32(target) + load_f32(values + 4 * j))


def mix(page, n, p, stride, rows, dim, out, scratch, codes_nbytes, unused, unused2):
    wide, lanes = width(dim), (dim + 15) & ~15
    planes, norms, middles, steps, pairs = _parts(page, n, lanes, codes_nbytes)
    low, s, order, values = scratch, scratch + 4 * lanes, scratch + 8 * lanes, scratch + 10 * lanes
    masses = values + 64 * rows
    weights = masses + 4 * rows
    codes = weights + 4 * rows * n
    _sort(planes, lanes, order)
    _ranges(order, middles, steps, pairs, lanes, low, s)
    _weigh(p, stride, rows, n, norms, pairs, weights, masses)
    for c in range(0, lanes, 16):
        bits = _width_of(order, c)
        for i in range(rows):
            store(values + 64 * i, zeros(f32x16))
        for t in range(0, n if bits > 0 else 0, BLOCK):
            count = min(BLOCK, n - t)
            unpack_steps(page, t // 4, count // 4, bits, codes)
            for i in range(rows):
                target, x = values + 64 * i, weights + 4 * (i * n + t)
                store(target, lane_dots(x, codes, count, load(f32x16, target)))
        for i in range(rows):
            mass = splat(f32x16, load_f32(masses + 4 * i))
            dots = load(f32x16, values + 64 * i) * load(f32x16, s + 4 * c)
            store(values + 64 * i, fma(load(f32x16, low + 4 * c), mass, dots))
            _scatter_add(values + 64 * i, order + 2 * c, dim, out + 4 * i * wide)
        page += 2 * n * bits


def scratch_nbytes(rows, lanes, page_tokens):
    """Bytes that either verb may need for `rows` query rows and `lanes` padded channels."""
    return 11 * lanes + max(4 * rows * lanes, rows * (4 * page_tokens + 68)) + _CODES_NBYTES
