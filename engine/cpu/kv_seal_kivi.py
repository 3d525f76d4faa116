"""Packing pages of `engine.kv.formats.kivi`, byte for byte as the NumPy reference does it.

    seal(rows, page, scratch, tokens, dim, side, bits, group, decoder, row_nbytes, values)

is `engine.cpu.kv_seal_channels`', but for `group`, the values of a range.  A group of a key page's
tokens has ranges like a whole page of theirs, so they share kernels; a token of a value page has
one for every group of its channels.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.jit import kernel
from engine.cpu.kv_ranges import MINIMA
from engine.cpu.kv_rows import half, row_step
from engine.cpu.kv_seal_channels import BLOCK, LARGEST, encode_block, find_ranges, pack_block
from engine.cpu.kv_tail import decode_rows, row_stride
from engine.cpu.simd import (
    convert,
    f32x16,
    load,
    load_f32,
    maximum,
    minimum,
    reduce_max,
    rint,
    splat,
    store,
    store_f32,
    store_u8,
    u8x16,
    zeros,
)


@kernel
def _seal_keys(rows, stride, tokens, dim, group, bits, ranges, codes, steps, page, stored):
    """`stored` is where the ranges go in the page."""
    lanes = (dim + 15) & ~15
    for start in range(0, tokens, group):
        count = min(group, tokens - start)
        for c in range(0, lanes, 16):
            x, m = rows + 4 * (start * stride + c), stored + 2 * c
            find_ranges(x, count, stride, 0, m, ranges + 4 * c, lanes, bits, MINIMA)
        stored += 4 * lanes
        for t in range(start, start + count, BLOCK):
            encode_block(rows + 4 * t * stride, stride, dim, bits, MINIMA, 0, 0, ranges, codes)
            pack_block(codes, t // BLOCK, tokens // BLOCK, lanes, 0, steps, page, bits)


@kernel
def _store_range(row, first, end, bits, tokens, stored):
    """m and s of channels first..end of a row, as they are stored."""
    low = high = load(f32x16, row + 4 * first)
    for c in range(first + 16, end, 16):
        x = load(f32x16, row + 4 * c)
        low, high = minimum(low, x), maximum(high, x)
    least = -reduce_max(low * np.float32(-1))
    s = row_step(stored + 2 * tokens, reduce_max(high) - least, (1 << bits) - 1)
    return half(stored, least + np.float32(0)), s  # never a negative zero


@kernel
def _clip_row(row, dim, lanes):
    """To what float16 can hold; behind dim, the last value again, which changes no range."""
    for d in range(dim, lanes):
        store_f32(row + 4 * d, load_f32(row + 4 * dim - 4))
    for c in range(0, lanes, 16):
        x = maximum(load(f32x16, row + 4 * c), splat(f32x16, -LARGEST))
        store(row + 4 * c, minimum(x, splat(f32x16, LARGEST)))


@kernel
def _encode_row(row, dim, group, bits, tokens, codes, stored):
    """Codes uint8 [lanes] of a token's values, 0 behind dim, and its ranges."""
    lanes, top = (dim + 15) & ~15, splat(f32x16, np.float32((1 << bits) - 1))
    _clip_row(row, dim, lanes)
    for first in range(0, lanes, group):
        end = min(first + group, lanes)
        m, s = _store_range(row, first, end, bits, tokens, stored)
        step = s if s > 0 else np.float32(np.inf)  # by which all values are 0 steps from m
        for c in range(first, end, 16):
            code = rint((load(f32x16, row + 4 * c) - m) / step)
            store(codes + c, convert(u8x16, minimum(maximum(code, zeros(f32x16)), top)))
        stored += 4 * tokens
    for c in range(dim, lanes):
        store_u8(codes + c, 0)


@kernel
def _seal_values(rows, stride, tokens, dim, group, bits, codes, steps, page, stored):
    lanes = (dim + 15) & ~15
    for t in range(tokens):
        row, target = rows + 4 * t * stride, codes + t % BLOCK * lanes
        _encode_row(row, dim, group, bits, tokens, target, stored + 2 * t)
        if t % BLOCK == BLOCK - 1:
            pack_block(codes, t // BLOCK, tokens // BLOCK, lanes, 1, steps, page, bits)


def seal(rows, page, scratch, tokens, dim, side, bits, group, decoder, row_nbytes, values):
    lanes, stride = (dim + 15) & ~15, row_stride(values)
    ranges = scratch + 4 * tokens * stride
    codes = ranges + 12 * lanes
    steps = codes + BLOCK * lanes
    stored = page + tokens * lanes * bits // 8
    key_ranges = (tokens + group - 1) // group * 4 * lanes
    value_ranges = (dim + group - 1) // group * 4 * tokens
    decode_rows(rows, tokens, row_nbytes, decoder, values, dim, scratch)
    if side == 0:
        _seal_keys(
            scratch, stride, tokens, dim, group, bits, ranges, codes, steps, page, stored
        )  # fmt: skip
    else:
        _seal_values(scratch, stride, tokens, dim, group, bits, codes, steps, page, stored)
    used = value_ranges if side else key_ranges
    for i in range(used, max(key_ranges, value_ranges)):
        store_u8(stored + i, 0)
