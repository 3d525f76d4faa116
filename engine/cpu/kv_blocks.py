"""Score and mix of token formats for a few query rows, in integers.

See `engine.cpu.kv_verbs` for the signatures.  A value is x[t, c] = d[t, b] (code[t, c] - middle),
plus e[t, b] in blocks b that have a range:

    score[t] = sum_b d[t, b] q . (code[t] - middle) + e[t, b] sum q      over the channels of b
    out[c]  += sum_t w[t] (code[t, c] - middle) + sum_t p[t] e[t, b],    w[t] = p[t] d[t, b]

q and w become three planes of signed bytes per row and block, 23 bits: with two, 8-bit codes of the
layers behind flip.  e stands for the middle of the codes, so that what is rounded is multiplied by
a code's distance from it only.  `engine.cpu.kv_block_mix` has the mix of the commonest formats.

CHUNK tokens at a time are unpacked into units of bytes (`kv_block_codes`): lanes are tokens in
scores and channels in mixes; sums of byte products are exact, on every host the same.  For so few
rows, configuring tile registers and waiting for what was just stored costs more than they save.
Parameters: the address of a `record`.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from engine.cpu.dot import add_dots, zero_dots
from engine.cpu.jit import Verb, call, field, inlined
from engine.cpu.kv_block_codes import CHUNK
from engine.cpu.kv_bytes import lower_channels, upper_channels
from engine.cpu.kv_floats import larger_magnitude
from engine.cpu.kv_integers import ROUNDER, row_factor
from engine.cpu.kv_tokens import width
from engine.cpu.simd import (
    bitcast,
    convert,
    f16x16,
    f32x16,
    fma,
    load,
    load_f32,
    load_i64,
    reduce_add,
    splat,
    store,
    store_f32,
    store_u32,
    u8x16,
    u8x64,
    u16x16,
    u32x16,
    zeros,
)

FEW_ROWS = 8
_TOP = 63 * 65536  # the largest magnitude whose three bytes ROUNDER leaves alone
_TO_HIGH = 2**32 - 2**22 + 2**15 + 2**7  # takes ROUNDER's own bit off, rounds two bytes up
TURN, INTERLEAVE, ROW_NBYTES, MIDDLE, _SCORE, MIX, _PARAMETERS = range(7)


@cache  # verbs read it
def record(*fields: int) -> np.ndarray:
    """What the verbs need to know of a format, int64: the addresses of turn and interleave, bytes
    of a row, the middle code, score and mix for more rows and their three parameters."""
    return np.array(fields, np.int64)


@inlined
def call_many(verb, page, n, a, stride, rows, dim, out, scratch, record):
    x = _PARAMETERS
    p, r, s = field(record, x), field(record, x + 1), field(record, x + 2)
    call(field(record, verb), (page, n, a, stride, rows, dim, out, scratch, p, r, s))


@inlined
def _rooms(scratch, wide):
    """Addresses of a row's weights, headers, d and e, factors (16 bytes per row and block), planes
    and units."""
    lines = 4 * CHUNK * (wide // 32)
    headers = scratch + 4 * CHUNK
    scales = headers + lines
    factors = scales + 2 * lines
    planes = factors + 16 * FEW_ROWS * (wide // 32)
    return scratch, headers, scales, factors, planes, planes + 3 * FEW_ROWS * 4 * wide


def scratch_nbytes(head_dim: int) -> int:
    """Bytes that score or mix need for few rows."""
    wide = -(-head_dim // 32) * 32
    per_block = 3 * 4 * CHUNK + 16 * FEW_ROWS
    return 4 * CHUNK + per_block * wide // 32 + (3 * FEW_ROWS * 4 + CHUNK) * wide


@inlined
def _load_scales(headers, count, blocks, middle, scales, ranged):
    """d, then e, float32 [blocks, CHUNK] at `scales`, zeros up to a multiple of 16 tokens."""
    for b in range(blocks):
        line, target = headers + 4 * CHUNK * b, scales + 4 * CHUNK * b
        for t in range(count, (count + 15) & ~15):
            store_u32(line + 4 * t, 0)
        for t in range(0, 4 * count, 64):
            word = load(u32x16, line + t)
            d = convert(f32x16, bitcast(f16x16, convert(u16x16, word)))
            store(target + t, d)
            if ranged:
                m = convert(f32x16, bitcast(f16x16, convert(u16x16, word >> 16)))
                store(target + 4 * CHUNK * blocks + t, fma(d, splat(f32x16, middle), m))


@inlined
def _sum(values, n):
    total = zeros(f32x16)
    for c in range(0, 4 * n, 64):
        total = total + load(f32x16, values + c)
    return reduce_add(total)


@inlined
def _split(values, n, planes, factors, middle):
    """Planes int8 [n / 16, 3, 16] of float32 [n], high, middle and low bytes; factors: their scale,
    what offsets the codes' middle."""
    top, total = zeros(f32x16), zeros(f32x16)
    for c in range(0, 4 * n, 64):
        top = larger_magnitude(top, load(f32x16, values + c))
    factor, scale = row_factor(top, _TOP)
    for c in range(0, n, 16):
        rounded = fma(load(f32x16, values + 4 * c), factor, splat(f32x16, ROUNDER))
        whole = bitcast(u32x16, rounded)
        store(planes + 3 * c, convert(u8x16, (whole + _TO_HIGH) >> 16))
        store(planes + 3 * c + 16, convert(u8x16, (whole + 128) >> 8))
        store(planes + 3 * c + 32, convert(u8x16, whole))
        total = total + (rounded - ROUNDER)
    store_f32(factors, scale)
    store_f32(factors + 4, -(reduce_add(total) * scale * middle))


@inlined
def _whole(sums, factors):
    """A row's sums of products with codes less their middle, f32x16."""
    byte = splat(f32x16, np.float32(256))
    found = fma(convert(f32x16, sums[0]), byte, convert(f32x16, sums[1]))
    found = fma(found, byte, convert(f32x16, sums[2]))
    scale, offset = load_f32(factors), load_f32(factors + 4)
    return fma(found, splat(f32x16, scale), splat(f32x16, offset))


@inlined
def _lane_dots(planes, n, first, second, factors):
    """Two f32x16: sums of n values by the codes of two units less their middle."""
    found, other = zero_dots(3), zero_dots(3)
    for k in range(0, n, 16):
        for j in range(k, k + 16, 4):
            found = add_dots(found, load(u8x64, first + 16 * j), planes + 2 * k + j, 16, 3)
            other = add_dots(other, load(u8x64, second + 16 * j), planes + 2 * k + j, 16, 3)
    return _whole(found, factors), _whole(other, factors)


@cache  # callers keep addresses
def score_verb(ranged: bool, whole: bool) -> Verb:
    """score of formats with a range or without, a block being 32 channels or the whole row."""

    def score(page, n, q, stride, rows, dim, out, scratch, record, unused, unused_too):
        if rows > FEW_ROWS:
            call_many(_SCORE, page, n, q, stride, rows, dim, out, scratch, record)
            return
        wide = width(dim)
        lanes = wide if whole else 32
        blocks = wide // lanes
        _, headers, scales, factors, planes, units = _rooms(scratch, wide)
        middle, row_nbytes = np.float32(field(record, MIDDLE)), field(record, ROW_NBYTES)
        ahead = load_i64(scratch - 8) - page
        for i in range(rows):
            for b in range(blocks):
                query, factor = q + 4 * (i * wide + b * lanes), factors + 16 * (i * blocks + b)
                _split(query, lanes, planes + 3 * (i * wide + b * lanes), factor, middle)
                if ranged:
                    store_f32(factor + 8, _sum(query, lanes))
        for t0 in range(0, n, CHUNK):
            count, at = min(CHUNK, n - t0), page + t0 * row_nbytes
            arguments = (at, count, row_nbytes, wide // 32, 16 * wide, units, headers, ahead)
            call(field(record, TURN), arguments)
            _load_scales(headers, count, blocks, middle, scales, ranged)
            for t in range(0, count, 32):
                for i in range(rows):
                    first, second = zeros(f32x16), zeros(f32x16)
                    for b in range(blocks):
                        factor = factors + 16 * (i * blocks + b)
                        left = planes + 3 * (i * wide + b * lanes)
                        right = units + t * wide + 16 * lanes * b
                        x, y = _lane_dots(left, lanes, right, right + 16 * wide, factor)
                        d = scales + 4 * (CHUNK * b + t)
                        first = fma(x, load(f32x16, d), first)
                        second = fma(y, load(f32x16, d + 64), second)
                        if ranged:
                            e, mass = d + 4 * CHUNK * blocks, splat(f32x16, load_f32(factor + 8))
                            first = fma(load(f32x16, e), mass, first)
                            second = fma(load(f32x16, e + 64), mass, second)
                    store(out + i * stride + 4 * (t0 + t), first)
                    store(out + i * stride + 4 * (t0 + t) + 64, second)

    return Verb(score)


@cache  # callers keep addresses
def mix_verb(ranged: bool, whole: bool) -> Verb:
    """mix of the same formats as `score_verb`."""

    def mix(page, n, p, stride, rows, dim, out, scratch, record, unused, unused_too):
        if rows > FEW_ROWS:
            call_many(MIX, page, n, p, stride, rows, dim, out, scratch, record)
            return
        wide = width(dim)
        lanes = wide if whole else 32
        blocks = wide // lanes
        weights, headers, scales, factors, planes, units = _rooms(scratch, wide)
        middle, row_nbytes = np.float32(field(record, MIDDLE)), field(record, ROW_NBYTES)
        ahead = load_i64(scratch - 8) - page
        for t0 in range(0, n, CHUNK):
            count, at = min(CHUNK, n - t0), page + t0 * row_nbytes
            tokens = (count + 15) & ~15
            arguments = (at, count, row_nbytes, wide // 32, 16 * tokens, units, headers, ahead)
            call(field(record, INTERLEAVE), arguments)
            _load_scales(headers, count, blocks, middle, scales, ranged)
            for i in range(rows):
                for b in range(blocks):
                    d, mass = scales + 4 * CHUNK * b, zeros(f32x16)
                    for t in range(0, 4 * tokens, 64):
                        weight = load(f32x16, p + i * stride + 4 * t0 + t)
                        store(weights + t, weight * load(f32x16, d + t))
                        if ranged:
                            e = load(f32x16, d + 4 * CHUNK * blocks + t)
                            mass = fma(weight, e, mass)
                    factor = factors + 16 * (i * blocks + b)
                    left = planes + 3 * (i * blocks + b) * tokens
                    _split(weights, tokens, left, factor, middle)
                    if ranged:
                        store_f32(factor + 4, load_f32(factor + 4) + reduce_add(mass))
            for i in range(rows):
                for c in range(0, wide, 32):
                    row = i * blocks + c // lanes
                    left, factor, right = (
                        planes + 3 * row * tokens,
                        factors + 16 * row,
                        units + c * tokens,
                    )
                    first, second = _lane_dots(left, tokens, right, right + 16 * tokens, factor)
                    target = out + 4 * (i * wide + c)
                    store(target, load(f32x16, target) + lower_channels(first, second))
                    upper = load(f32x16, target + 64) + upper_channels(first, second)
                    store(target + 64, upper)

    return Verb(mix)
