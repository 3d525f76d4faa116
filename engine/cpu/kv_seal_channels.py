"""Packing pages of `engine.kv.formats.channels`, byte for byte as the NumPy reference does it.

    seal(rows, page, scratch, tokens, dim, side, bits, parts, decoder, row_nbytes, values)

packs one KV head's tokens: `rows` are their tail, `row_nbytes` each, that `decoder` (see
`engine.cpu.kv_decode`) turns into `values` float32 each, at least dim.  All bytes of the packed
`page` are written; `scratch` holds `scratch_nbytes`.  `side` is 1 for values, and `parts` is the
sum of what the type has: NORMS, MINIMA (see `engine.cpu.kv_pages`), RESTORED norms.

Every sum has the order that the reference states, and nothing is fused that it rounds twice.
"""

from __future__ import annotations

import math

import numpy as np

from engine.cpu.jit import kernel
from engine.cpu.kv_ranges import MINIMA, NORMS
from engine.cpu.kv_tail import decode_rows, key_step, row_stride, value_step
from engine.cpu.planes import pack_set
from engine.cpu.simd import (
    convert,
    f16x16,
    f32x16,
    fma,
    load,
    load_f32,
    maximum,
    minimum,
    reduce_add,
    rint,
    splat,
    store,
    store_f16,
    store_f32,
    store_u8,
    u8x16,
    zeros,
)
from engine.cpu.vmath import larger, smaller
from engine.kv.formats.channels import LEAST_NORM, LEAST_RESTORED, padded_dim
from engine.kv.formats.floats import F16_MAX
from engine.kv.formats.scales import F16_TINY

RESTORED = 4
BLOCK = 32  # tokens encoded at a time, a divisor of every page
LARGEST = np.float32(F16_MAX)


@kernel
def _length(squares):
    return np.float32(math.sqrt(reduce_add(squares)))


@kernel
def _measure(rows, tokens, stride, lanes, norms):
    """The lengths of the rows, to float32 norms [tokens]."""
    for t in range(tokens):
        row = rows + 4 * t * stride
        squares = zeros(f32x16)
        for c in range(0, 4 * lanes, 64):
            x = load(f32x16, row + c)
            squares = squares + x * x
        store_f32(norms + 4 * t, max(_length(squares), LEAST_NORM))


@kernel
def _prepare(row, norm, parts):
    """Replace the 16 values at `row` by those to be quantized, and return them."""
    x = load(f32x16, row)
    if parts & NORMS:
        x = x / load_f32(norm)
    else:
        x = minimum(maximum(x, splat(f32x16, -LARGEST)), splat(f32x16, LARGEST))
    store(row, x)
    return x


@kernel
def find_ranges(rows, tokens, stride, norms, metadata, ranges, lanes, bits, parts):
    """Prepare the 16 channels at `rows` and find their m and s.

    Stored as float16 m and s [lanes] at `metadata`, and for `encode_block` as float32 m, s and
    1 / s [lanes] at `ranges`, where 1 / s is 0 if s is.
    """
    low = low2 = splat(f32x16, np.float32(np.inf))
    high = high2 = splat(f32x16, np.float32(-np.inf))
    for t in range(0, tokens, 2):
        row = rows + 4 * t * stride
        x = _prepare(row, norms + 4 * t, parts)
        low, high = smaller(x, low), larger(x, high)
        x = _prepare(row + 4 * stride, norms + 4 * t + 4, parts)
        low2, high2 = smaller(x, low2), larger(x, high2)
    low, high = minimum(low, low2), maximum(high, high2)
    low = low + np.float32(0)  # never a negative zero
    if parts & MINIMA:
        m = convert(f16x16, low)
        store(metadata, m)
        metadata += 2 * lanes
        store(ranges, convert(f32x16, m))
        reach, levels = high - low, np.float32((1 << bits) - 1)
    else:
        store(ranges, zeros(f32x16))
        reach, levels = maximum(high, low * np.float32(-1)), np.float32((1 << (bits - 1)) - 1)
    s = convert(f32x16, convert(f16x16, reach / levels))
    # the smallest positive float16 at least, where the reach is not 0
    s = maximum(s, minimum(reach * np.float32(2.0**126), splat(f32x16, F16_TINY)))
    s = s + np.float32(0)
    store(metadata, convert(f16x16, s))
    store(ranges + 4 * lanes, s)
    moving = minimum(s / F16_TINY, splat(f32x16, np.float32(1)))  # 0 or 1
    store(ranges + 8 * lanes, moving / maximum(s, splat(f32x16, F16_TINY)))


@kernel
def _encode(row, ranges, lanes, lowest, highest, zero, codes):
    """Codes of one token's float32 row [lanes]; returns the length of what they stand for."""
    bottom, top = splat(f32x16, lowest), splat(f32x16, highest)
    squares = zeros(f32x16)
    for c in range(0, lanes, 16):
        m, s = load(f32x16, ranges + 4 * c), load(f32x16, ranges + 4 * (lanes + c))
        inverse = load(f32x16, ranges + 4 * (2 * lanes + c))
        x = load(f32x16, row + 4 * c) - m
        # x / s to the last bit without a division: s has 11 significant bits, so the remainder is
        # exact, and no quotient is so close to the middle of two floats that 1 / s decides
        scaled = x * inverse
        scaled = fma(fma(scaled * np.float32(-1), s, x), inverse, scaled)
        code = smaller(larger(rint(scaled), bottom), top)
        decoded = fma(code, s, m)  # of 19 bits, the product is exact
        squares = squares + decoded * decoded
        store(codes + c, convert(u8x16, code + zero))
    return _length(squares)


@kernel
def _key_steps(codes, lanes, steps):
    """Codes uint8 [BLOCK, lanes] as steps: 16 tokens by 4 channels."""
    for t in range(0, BLOCK, 16):
        for c in range(0, lanes, 4):
            key_step(codes + t * lanes + c, lanes, steps)
            steps += 64


@kernel
def _value_steps(codes, lanes, steps):
    """Codes uint8 [BLOCK, lanes] as steps: 16 channels by 4 tokens."""
    for c in range(0, lanes, 16):
        for t in range(0, BLOCK, 4):
            value_step(codes + t * lanes + c, lanes, steps)
            steps += 64


@kernel
def pack_block(codes, block, blocks, lanes, side, steps, page, bits):
    """Pack codes uint8 [BLOCK, lanes].

    A set of values is 32 tokens of 16 channels: the block has one in each group of channels.  Its
    sets of keys follow one another.
    """
    sets = lanes // 16
    if side == 0:
        _key_steps(codes, lanes, steps)
        first, distance = block * sets, 1
    else:
        _value_steps(codes, lanes, steps)
        first, distance = block, blocks
    for i in range(sets):
        pack_set(steps + 512 * i, page + 64 * bits * (first + i * distance), bits)


@kernel
def _store_norm(target, norm, length, parts):
    if parts & RESTORED:
        norm = norm / max(length, LEAST_RESTORED)
    store_f16(target, min(norm, LARGEST))


@kernel
def encode_block(rows, stride, dim, bits, parts, norms, stored_norms, ranges, codes):
    """Codes uint8 [BLOCK, lanes] of the rows, 0 behind dim, and their norms as they are stored."""
    lanes = (dim + 15) & ~15
    zero, highest = np.float32(0), np.float32((1 << bits) - 1)
    if not parts & MINIMA:
        zero = highest = np.float32((1 << (bits - 1)) - 1)
    for t in range(BLOCK):
        row, target = rows + 4 * t * stride, codes + t * lanes
        length = _encode(row, ranges, lanes, -zero, highest, zero, target)
        for c in range(dim, lanes):
            store_u8(target + c, 0)
        if parts & NORMS:
            _store_norm(stored_norms + 2 * t, load_f32(norms + 4 * t), length, parts)


def seal(rows, page, scratch, tokens, dim, side, bits, parts, decoder, row_nbytes, values):
    lanes, stride = (dim + 15) & ~15, row_stride(values)
    norms = scratch + 4 * tokens * stride
    ranges = norms + 4 * tokens
    codes = ranges + 12 * lanes
    steps = codes + BLOCK * lanes
    stored_norms = page + tokens * lanes * bits // 8
    stored_ranges = stored_norms + (2 * tokens if parts & NORMS else 0)
    decode_rows(rows, tokens, row_nbytes, decoder, values, dim, scratch)
    if parts & NORMS:
        _measure(scratch, tokens, stride, lanes, norms)
    for c in range(0, lanes, 16):
        x, stored, kept = scratch + 4 * c, stored_ranges + 2 * c, ranges + 4 * c
        find_ranges(x, tokens, stride, norms, stored, kept, lanes, bits, parts)
    for t in range(0, tokens, BLOCK):
        x, norm, stored = scratch + 4 * t * stride, norms + 4 * t, stored_norms + 2 * t
        encode_block(x, stride, dim, bits, parts, norm, stored, ranges, codes)
        pack_block(codes, t // BLOCK, tokens // BLOCK, lanes, side, steps, page, bits)


def scratch_nbytes(tokens: int, head_dim: int, values: int) -> int:
    """Bytes of `scratch`: float32 rows, norms and ranges, and a block of codes in two orders."""
    lanes = padded_dim(head_dim)
    return 4 * tokens * (-(-values // 16) * 16 + 1) + (12 + 2 * BLOCK) * lanes
