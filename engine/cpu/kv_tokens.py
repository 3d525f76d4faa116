"""Score and mix on pages of token formats; see `engine.cpu.kv_verbs` for the signatures.

A few tokens at a time are decoded to float32 rows, which all query rows then share.  Parameters:
the decoder's address, bytes of a row, values that the decoder is to write.
"""

from __future__ import annotations

from engine.cpu.jit import call, kernel
from engine.cpu.simd import f32x16, fma, load, load_f32, reduce_add, splat, store, store_f32, zeros

BLOCK = 16  # tokens decoded at a time: their float32 rows stay in the first-level cache


@kernel
def width(dim):
    return (dim + 31) & ~31


@kernel
def _row_dot(a, b, wide):
    """Sum of `wide` products, a multiple of 32."""
    s0, s1 = zeros(f32x16), zeros(f32x16)
    for i in range(0, 4 * wide, 128):
        s0 = fma(load(f32x16, a + i), load(f32x16, b + i), s0)
        s1 = fma(load(f32x16, a + i + 64), load(f32x16, b + i + 64), s1)
    return reduce_add(s0 + s1)


@kernel
def _decode_tokens(decoder, rows, count, row_nbytes, values, target, wide):
    """`count` packed rows as float32 rows of `wide` values."""
    for t in range(count):
        call(decoder, (rows + t * row_nbytes, target + 4 * t * wide, values))


def score(page, n, q, stride, rows, dim, out, scratch, decoder, row_nbytes, values):
    wide = width(dim)
    for t0 in range(0, n, BLOCK):
        count = min(BLOCK, n - t0)
        _decode_tokens(decoder, page + t0 * row_nbytes, count, row_nbytes, values, scratch, wide)
        for i in range(rows):
            for t in range(count):
                score = _row_dot(q + 4 * i * wide, scratch + 4 * t * wide, wide)
                store_f32(out + i * stride + 4 * (t0 + t), score)


def mix(page, n, p, stride, rows, dim, out, scratch, decoder, row_nbytes, values):
    wide = width(dim)
    for t0 in range(0, n, BLOCK):
        count = min(BLOCK, n - t0)
        _decode_tokens(decoder, page + t0 * row_nbytes, count, row_nbytes, values, scratch, wide)
        for i in range(rows):
            weights = p + i * stride + 4 * t0
            for c in range(0, 4 * wide, 128):
                target = out + 4 * i * wide + c
                a, b = load(f32x16, target), load(f32x16, target + 64)
                for t in range(count):
                    weight = splat(f32x16, load_f32(weights + 4 * t))
                    a = fma(weight, load(f32x16, scratch + 4 * t * wide + c), a)
                    b = fma(weight, load(f32x16, scratch + 4 * t * wide + c + 64), b)
                store(target, a)
                store(target + 64, b)
