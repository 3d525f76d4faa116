"""Score and mix on pages of `engine.kv.formats.channels`; see `engine.cpu.kv_verbs` for signatures.

Nothing is dequantized: with x[t, d] = n'[t] (m[d] + s[d] code[t, d]) the ranges are folded into the
query once per page, the norms into the weights, and the inner loops run over codes.

    score[t] = n'[t] (q . m + (q s) . code[t])
    out[d]  += m[d] sum_t w[t] + s[d] sum_t w[t] code[t, d],  w = p n'

Without norms n' is 1, and in a symmetric type m is -qmax s.  q s and w are rounded to 16 bits, see
`engine.cpu.kv_integers`; the exact terms then stand for the middle of the codes, m + 2^(b-1) s, so
that the rounding is multiplied by a code's distance from the middle only.  Parameters: bytes of the
codes, and the sum of NORMS and MINIMA where the page has them.  There is a verb per number of bits,
with tile registers or without.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from engine.cpu.amx import tiles_begin, tiles_end
from engine.cpu.jit import Verb, inlined
from engine.cpu.kv_integers import (
    block_rows,
    fetch_page,
    products,
    split_row,
    sum_at,
    sums_stride,
    unpack_sets,
)
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
    u8x64,
    zeros,
)

NORMS, MINIMA = 1, 2
CHUNK = 128  # tokens whose codes are unpacked at a time


@inlined
def _halves(address):
    return convert(f32x16, load(f16x16, address))


@inlined
def _load_ranges(page, n, lanes, codes_nbytes, bits, parts, steps):
    """The page's s and, behind them, the middles m + 2^(b-1) s, float32 [2, lanes] at `steps`."""
    m = page + codes_nbytes + (2 * n if parts & NORMS else 0)
    s = m + (2 * lanes if parts & MINIMA else 0)
    center = splat(f32x16, np.float32(1 << (bits - 1)))
    for c in range(0, lanes, 16):
        step = _halves(s + 2 * c)
        store(steps + 4 * c, step)
        # a symmetric type's middle is a step above its zero
        middle = fma(step, center, _halves(m + 2 * c)) if parts & MINIMA else step
        store(steps + 4 * (lanes + c), middle)


@inlined
def _load_norms(page, codes_nbytes, t0, count, parts, norms):
    """The n' of tokens t0..t0+count as float32 [count] at `norms`."""
    for t in range(0, count, 16):
        one = splat(f32x16, np.float32(1))
        norm = _halves(page + codes_nbytes + 2 * (t0 + t)) if parts & NORMS else one
        store(norms + 4 * t, norm)


@inlined
def _rooms(scratch, rows, lanes, depth, units):
    """Addresses of sums, a row's values, ranges, norms, factors (16 bytes per row), planes and
    unpacked codes."""
    block = block_rows(rows)
    padded = (rows + block - 1) // block * block
    values = scratch + 2 * block * sums_stride(units)
    steps = values + 4 * depth
    norms = steps + 8 * lanes
    factors = norms + 4 * CHUNK
    planes = (factors + 16 * padded + 63) & ~63
    return scratch, values, steps, norms, factors, planes, planes + 2 * padded * depth


def scratch_nbytes(rows: int, head_dim: int) -> int:
    """Bytes that score or mix need for `rows` query rows."""
    lanes = -(-head_dim // 32) * 32
    depth = max(-(-head_dim // 64) * 64, CHUNK)
    fixed = 2 * 16 * (4 * depth + 64) + 4 * depth + 8 * lanes + 4 * CHUNK + 64
    return fixed + (16 + 2 * depth) * (rows + 15) + CHUNK * (lanes + 64) + 1024


@inlined
def _begin(config, tiles):
    if tiles:
        store(config, zeros(u8x64))
        tiles_begin(config)


@inlined
def _end(tiles):
    if tiles:
        tiles_end()


@lru_cache(maxsize=32)
def score_verb(bits: int, tiles: bool) -> Verb:
    """score for pages of `bits` bits a code."""

    def score(page, n, q, stride, rows, dim, out, scratch, codes_nbytes, parts, unused):
        wide, lanes, depth = width(dim), (dim + 15) & ~15, (dim + 63) & ~63
        block, units = block_rows(rows), min(n, CHUNK) // 16
        sums, folded, steps, norms, factors, planes, codes = _rooms(
            scratch, rows, lanes, depth, units
        )
        fetch_page(page, codes_nbytes)
        _load_ranges(page, n, lanes, codes_nbytes, bits, parts, steps)
        for c in range(lanes, depth, 16):
            store(folded + 4 * c, zeros(f32x16))
        for i in range(rows):
            exact = zeros(f32x16)
            for c in range(0, 4 * lanes, 64):
                query = load(f32x16, q + 4 * i * wide + c)
                exact = fma(query, load(f32x16, steps + 4 * lanes + c), exact)
                store(folded + c, query * load(f32x16, steps + c))
            target = planes + (i // block * 2 * block + i % block) * depth
            scale, total = split_row(folded, depth, target, block)
            store_f32(factors + 16 * i, scale)
            offset = reduce_add(exact) - total * scale * np.float32(1 << (bits - 1))
            store_f32(factors + 16 * i + 4, offset)
        _begin(sums, tiles)
        for t0 in range(0, n, CHUNK):
            count = min(CHUNK, n - t0)
            unpack_sets(page + t0 * lanes // 8 * bits, count * lanes // 64, bits, codes)
            _load_norms(page, codes_nbytes, t0, count, parts, norms)
            stride_sums = sums_stride(count // 16)
            for i0 in range(0, rows, block):
                some, left = min(block, rows - i0), planes + 2 * i0 * depth
                products(left, depth, block, some, codes, 16 * lanes, count // 16, sums, tiles)
                for i in range(some):
                    scale = splat(f32x16, load_f32(factors + 16 * (i0 + i)))
                    offset = splat(f32x16, load_f32(factors + 16 * (i0 + i) + 4))
                    high, target = sums + i * stride_sums, out + (i0 + i) * stride + 4 * t0
                    low = high + block * stride_sums
                    for t in range(0, 4 * count, 64):
                        value = fma(sum_at(high + t, low + t), scale, offset)
                        store(target + t, value * load(f32x16, norms + t))
        _end(tiles)

    return Verb(score)


@lru_cache(maxsize=32)
def mix_verb(bits: int, tiles: bool) -> Verb:
    """mix for pages of `bits` bits a code."""

    def mix(page, n, p, stride, rows, dim, out, scratch, codes_nbytes, parts, unused):
        wide, lanes, depth = width(dim), (dim + 15) & ~15, (min(n, CHUNK) + 63) & ~63
        block, units = block_rows(rows), lanes // 16
        sums, weights, steps, norms, factors, planes, codes = _rooms(
            scratch, rows, lanes, depth, units
        )
        stride_sums = sums_stride(units)
        fetch_page(page, codes_nbytes)
        _load_ranges(page, n, lanes, codes_nbytes, bits, parts, steps)
        for t0 in range(0, n, CHUNK):
            count = min(CHUNK, n - t0)
            _load_norms(page, codes_nbytes, t0, count, parts, norms)
            for t in range(count, depth, 16):
                store(weights + 4 * t, zeros(f32x16))
            for i in range(rows):
                mass = zeros(f32x16)
                for t in range(0, 4 * count, 64):
                    weight = load(f32x16, p + i * stride + 4 * t0 + t) * load(f32x16, norms + t)
                    mass = mass + weight
                    store(weights + t, weight)
                target = planes + (i // block * 2 * block + i % block) * depth
                scale, total = split_row(weights, depth, target, block)
                store_f32(factors + 16 * i, scale)
                store_f32(factors + 16 * i + 4, total * scale * -np.float32(1 << (bits - 1)))
                store_f32(factors + 16 * i + 8, reduce_add(mass))
            for c in range(0, lanes, 16):
                packed = page + (c * n + 16 * t0) // 8 * bits
                unpack_sets(packed, count // 4, bits, codes + c * depth)
            _begin(sums, tiles)
            for i0 in range(0, rows, block):
                some, left = min(block, rows - i0), planes + 2 * i0 * depth
                products(left, depth, block, some, codes, 16 * depth, units, sums, tiles)
                for i in range(some):
                    scale = splat(f32x16, load_f32(factors + 16 * (i0 + i)))
                    offset = splat(f32x16, load_f32(factors + 16 * (i0 + i) + 4))
                    mass = splat(f32x16, load_f32(factors + 16 * (i0 + i) + 8))
                    high, target = sums + i * stride_sums, out + 4 * (i0 + i) * wide
                    low = high + block * stride_sums
                    for c in range(0, 4 * lanes, 64):
                        middle = load(f32x16, steps + 4 * lanes + c)
                        exact = fma(middle, mass, load(f32x16, target + c))
                        dots = fma(sum_at(high + c, low + c), scale, offset)
                        store(target + c, fma(dots, load(f32x16, steps + c), exact))
            _end(tiles)

    return Verb(mix)
