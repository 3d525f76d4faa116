"""Activations in the forms that products want: 16-bit integers, and bfloat16.

Integers, for products with packed codes, one row of `quantized_nbytes` per token:

    | planes: 32 high bytes, 32 low bytes per set of 32 | step f32 per set |
    | sum f32 per set | sums f32 per half set [2] |

    x = step q,  q = 256 high + low,  |q| <= 32512;  sums are those of x

Sixteen bits where others take eight: eight alone move smollm2-135m's perplexity by 0.17 %, and
with the weights streaming from memory the second product of bytes is free.
"""

from __future__ import annotations

import numpy as np

from engine.cpu.amx import TILE, pair_bf16
from engine.cpu.jit import Verb, field, inlined, kernel
from engine.cpu.layouts import SET
from engine.cpu.simd import (
    bitcast,
    convert,
    f32x16,
    i8x16,
    i32x16,
    load,
    load_f32,
    maximum,
    reduce_add,
    reduce_max,
    rint,
    store,
    store_f32,
    u32x16,
)

_LARGEST = np.float32(32512)  # 127 * 256: rounding cannot carry the high byte beyond 127
_TINY = np.float32(1e-30)  # a set of zeros: its step must not be a division by zero


def quantized_nbytes(columns: int) -> int:
    """Bytes of one token's row; columns a multiple of 32."""
    return columns // SET * 80


@inlined
def steps_of(x, columns):
    """Addresses of the steps, the sums and the half sums of the row at x."""
    steps = x + 2 * columns
    return steps, steps + columns // 8, steps + columns // 4


@inlined
def _magnitude(v):
    return bitcast(f32x16, bitcast(u32x16, v) & 0x7FFFFFFF)


@inlined
def _store_bytes(target, q):
    """The high bytes of q i32x16 at target, the low ones 32 bytes further."""
    high = (q + 128) >> 8
    store(target, convert(i8x16, high))
    store(target + SET, convert(i8x16, q - (high << 8)))


@kernel
def quantize_row(source, target, columns):
    """float32 [columns] at source, columns a multiple of 32, to the integer form."""
    steps, sums, halves = steps_of(target, columns)
    for s in range(columns // SET):
        a, b = load(f32x16, source + 128 * s), load(f32x16, source + 128 * s + 64)
        peak = reduce_max(maximum(_magnitude(a), _magnitude(b))) + _TINY
        inverse = _LARGEST / peak
        p, q = convert(i32x16, rint(a * inverse)), convert(i32x16, rint(b * inverse))
        _store_bytes(target + 64 * s, p)
        _store_bytes(target + 64 * s + 16, q)
        step = peak / _LARGEST
        first, second = step * np.float32(reduce_add(p)), step * np.float32(reduce_add(q))
        store_f32(steps + 4 * s, step)
        store_f32(sums + 4 * s, first + second)
        store_f32(halves + 8 * s, first)
        store_f32(halves + 8 * s + 4, second)


SHARE = 8  # tokens of an item
_SOURCE, _SOURCE_STRIDE, _TARGET, _TARGET_STRIDE, _TOKENS, _COLUMNS = range(1, 7)


@inlined
def _rows(arguments, item, t):
    """Source and target of the item's token t."""
    source = field(arguments, _SOURCE) + t * field(arguments, _SOURCE_STRIDE)
    return source, field(arguments, _TARGET) + t * field(arguments, _TARGET_STRIDE)


@inlined
def _last(arguments, item):
    return min(field(arguments, _TOKENS), (item + 1) * SHARE)


def _quantize(arguments, item, slot):
    """Item: some tokens, to integers."""
    for t in range(item * SHARE, _last(arguments, item)):
        source, target = _rows(arguments, item, t)
        quantize_row(source, target, field(arguments, _COLUMNS))


@inlined
def _upper(v):
    """v without the lower half of its bits."""
    return bitcast(f32x16, bitcast(u32x16, v) & np.uint32(0xFFFF0000))


@inlined
def _tile_row(arguments, t):
    """The token's row in the first of its tiles."""
    sets = field(arguments, _COLUMNS) // SET
    return field(arguments, _TARGET) + (t // 16 * sets) * TILE + t % 16 * 64


def _round(arguments, item, slot):
    """Item: some tokens, to tiles of 16 tokens by a set, bfloat16 pairs of columns (i, i + 16).

    Tiles are one KB each, those of 16 tokens one after another: rows as far apart as a matrix is
    wide would crowd a few places of the cache.
    """
    for t in range(item * SHARE, _last(arguments, item)):
        source = field(arguments, _SOURCE) + t * field(arguments, _SOURCE_STRIDE)
        target = _tile_row(arguments, t)
        for s in range(field(arguments, _COLUMNS) // SET):
            a, b = load(f32x16, source + 128 * s), load(f32x16, source + 128 * s + 64)
            store(target + TILE * s, pair_bf16(a, b))


def _round_twice(arguments, item, slot):
    """As `_round` for the sum of two bfloat16: upper halves, and what they lack in tiles that begin
    a target stride further on."""
    for t in range(item * SHARE, _last(arguments, item)):
        source = field(arguments, _SOURCE) + t * field(arguments, _SOURCE_STRIDE)
        target = _tile_row(arguments, t)
        rest = target + field(arguments, _TARGET_STRIDE)
        for s in range(field(arguments, _COLUMNS) // SET):
            a, b = load(f32x16, source + 128 * s), load(f32x16, source + 128 * s + 64)
            store(target + TILE * s, pair_bf16(_upper(a), _upper(b)))
            store(rest + TILE * s, pair_bf16(a - _upper(a), b - _upper(b)))


def _fill(arguments, item, slot):
    """Item: some tokens, as they are, with zeros up to whole sets."""
    columns = field(arguments, _COLUMNS)
    for t in range(item * SHARE, _last(arguments, item)):
        source, target = _rows(arguments, item, t)
        for i in range(columns):
            store_f32(target + 4 * i, load_f32(source + 4 * i))
        for i in range(columns, (columns + SET - 1) // SET * SET):
            store_f32(target + 4 * i, np.float32(0))


QUANTIZE, FILL = Verb(_quantize), Verb(_fill)
ROUND, ROUND_TWICE = Verb(_round), Verb(_round_twice)
