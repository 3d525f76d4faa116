"""Mix of q8_0 and of the 4 and 5-bit blocks for a few query rows, in float32.

See `engine.cpu.kv_verbs` for the signature.  A value is d (code - zero), or m + d code where blocks
have a range, so that with w[t] = p[t] d[t]

    out[c] += sum_t w[t] code[t, c] + sum_t p[t] (m[t] - zero d[t])

Codes become float32 where they are multiplied, one block of 32 channels at a time: that takes as
many instructions as making units of bytes of them (`engine.cpu.kv_blocks`), and weights need not be
split.  Parameters: the address of a `record`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from engine.cpu.deferred import cgutils, intrinsic, types
from engine.cpu.jit import Verb, field, inlined
from engine.cpu.kv_block_codes import CHUNK
from engine.cpu.kv_blocks import FEW_ROWS, MIX, ROW_NBYTES, call_many
from engine.cpu.kv_floats import load_sums, store_sums, zero_sums
from engine.cpu.kv_tokens import width
from engine.cpu.lookup import look_up
from engine.cpu.simd import (
    address_of,
    bitcast,
    broadcast,
    convert,
    f16x16,
    f32x16,
    fma,
    i8x16,
    i32x16,
    load,
    load_i64,
    load_u32,
    pointer,
    prefetch,
    reduce_add,
    splat,
    store,
    store_u32,
    u8x16,
    u16x16,
    u32x16,
    zeros,
)
from engine.kv.format import TokenFormat
from engine.kv.formats.iq4_nl import IQ4_NL, LEVELS
from engine.kv.formats.q8_0 import Q8_0
from engine.kv.formats.range_blocks import Q4_1, Q5_1
from engine.kv.formats.signed_blocks import Q4_0, Q5_0

_BYTES, _NIBBLES, _LEVELS, _FIVES = range(4)  # what codes are


@intrinsic(prefer_literal=True)
def _add_weighted(typing_context, sums, weights, stride, first, second, rows):
    """sums [i, j] + w[i] times `first` (j = 0) and `second`, for the float32 w[i], `stride` bytes
    apart, of `rows` (a constant) rows."""

    def emit(context, builder, signature, args):
        totals, at, step, *values, _ = args
        kind = ir.FunctionType(f32x16.llvm, [f32x16.llvm] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.v16f32")
        found = []
        for i in range(rows.literal_value):
            row = pointer(builder, builder.add(at, builder.mul(step, ir.IntType(64)(i))))
            weight = broadcast(builder, f32x16, builder.load(row, typ=ir.FloatType(), align=1))
            for j, value in enumerate(values):
                before = builder.extract_value(totals, 2 * i + j)
                found.append(builder.call(fma, [weight, value, before]))
        return context.make_tuple(builder, sums, found)

    return sums(sums, types.int64, types.int64, f32x16, f32x16, rows), emit


@intrinsic
def _fives(typing_context, nibbles, word):
    """i32x16: codes of five bits less 16, the fifth of lane i being bit i of `word`."""

    def emit(context, builder, signature, args):
        bits = builder.trunc(args[1], ir.IntType(16))
        mask = builder.bitcast(bits, ir.VectorType(ir.IntType(1), 16))
        less = builder.sub(args[0], ir.Constant(i32x16.llvm, [16] * 16))
        return builder.select(mask, args[0], less)

    return i32x16(i32x16, types.int64), emit


@inlined
def _codes(source, kind):
    """The 32 codes at `source` as two f32x16."""
    if kind == _BYTES:
        first, second = load(i8x16, source), load(i8x16, source + 16)
        return convert(f32x16, first), convert(f32x16, second)
    nibbles = convert(i32x16, load(u8x16, source + (4 if kind == _FIVES else 0)))
    if kind == _FIVES:
        bits = np.int64(load_u32(source))
        first, second = _fives(nibbles & 15, bits), _fives(nibbles >> 4, bits >> 16)
        return convert(f32x16, first), convert(f32x16, second)
    if kind == _LEVELS:
        levels, nibbles = load(f32x16, address_of(LEVELS)), bitcast(u32x16, nibbles)
        return look_up(levels, nibbles & 15), look_up(levels, nibbles >> 4)
    return convert(f32x16, nibbles & 15), convert(f32x16, nibbles >> 4)


def _row_mixes(rows: int) -> Any:
    @inlined
    def row_mixes(weights, codes, kind, row_nbytes, ahead, count, out, stride):
        found = load_sums(out, stride, rows, 2)
        for t in range(0, 4 * count, 4):
            prefetch(codes + ahead)
            first, second = _codes(codes, kind)
            found = _add_weighted(found, weights + t, 4 * CHUNK, first, second, rows)
            codes += row_nbytes
        store_sums(out, stride, found, rows)

    return row_mixes


_mixes_8, _mixes_7, _mixes_6, _mixes_5 = (_row_mixes(rows) for rows in (8, 7, 6, 5))
_mixes_4, _mixes_3, _mixes_2 = (_row_mixes(rows) for rows in (4, 3, 2))


@inlined
def _mixes_1(weights, codes, kind, row_nbytes, ahead, count, out):
    # even and odd tokens apart: every sum would wait for the one before it
    even, odd = load_sums(out, 0, 1, 2), zero_sums(2)
    for t in range(0, 4 * (count & ~1), 8):
        prefetch(codes + ahead)
        prefetch(codes + row_nbytes + ahead)
        first, second = _codes(codes, kind)
        even = _add_weighted(even, weights + t, 0, first, second, 1)
        first, second = _codes(codes + row_nbytes, kind)
        odd = _add_weighted(odd, weights + t + 4, 0, first, second, 1)
        codes += 2 * row_nbytes
    if count & 1 != 0:
        first, second = _codes(codes, kind)
        even = _add_weighted(even, weights + 4 * count - 4, 0, first, second, 1)
    store(out, even[0] + odd[0])
    store(out + 64, even[1] + odd[1])


@inlined
def _mixes(rows, weights, codes, kind, row_nbytes, ahead, count, out, stride):
    """out [rows, 32] += weights [rows, CHUNK] by `count` tokens' codes, `row_nbytes` apart; what
    lies `ahead` bytes further is asked for."""
    if rows == 1:
        _mixes_1(weights, codes, kind, row_nbytes, ahead, count, out)
    elif rows == 2:
        _mixes_2(weights, codes, kind, row_nbytes, ahead, count, out, stride)
    elif rows == 3:
        _mixes_3(weights, codes, kind, row_nbytes, ahead, count, out, stride)
    elif rows == 4:
        _mixes_4(weights, codes, kind, row_nbytes, ahead, count, out, stride)
    elif rows == 5:
        _mixes_5(weights, codes, kind, row_nbytes, ahead, count, out, stride)
    elif rows == 6:
        _mixes_6(weights, codes, kind, row_nbytes, ahead, count, out, stride)
    elif rows == 7:
        _mixes_7(weights, codes, kind, row_nbytes, ahead, count, out, stride)
    else:
        _mixes_8(weights, codes, kind, row_nbytes, ahead, count, out, stride)


@inlined
def _load_scales(block, count, row_nbytes, zero, ranged, scales):
    """d, then m - zero d, float32 [2, CHUNK] of the blocks of `count` tokens, `row_nbytes` apart,
    at `scales`, zeros up to a multiple of 16 tokens."""
    for t in range(count):
        store_u32(scales + 4 * t, load_u32(block))
        block += row_nbytes
    for t in range(count, (count + 15) & ~15):
        store_u32(scales + 4 * t, 0)
    for t in range(scales, scales + 4 * count, 64):
        word = load(u32x16, t)
        d = convert(f32x16, bitcast(f16x16, convert(u16x16, word)))
        store(t, d)
        m = zeros(f32x16)
        if ranged:
            m = convert(f32x16, bitcast(f16x16, convert(u16x16, word >> 16)))
        store(t + 4 * CHUNK, fma(d, splat(f32x16, np.float32(-zero)), m))


@inlined
def _weigh(p, scales, count, offset, weights, target):
    """p d at `weights`; adds what codes alone do not say, if `offset`, to 32 channels."""
    total = zeros(f32x16)
    for t in range(0, 4 * count, 64):
        weight = load(f32x16, p + t)
        store(weights + t, weight * load(f32x16, scales + t))
        if offset:
            total = fma(weight, load(f32x16, scales + 4 * CHUNK + t), total)
    if offset:
        added = splat(f32x16, reduce_add(total))
        store(target, load(f32x16, target) + added)
        store(target + 64, load(f32x16, target + 64) + added)


@cache  # callers keep addresses
def _verb(kind: int, nbytes: int, start: int, zero: int, ranged: bool) -> Verb:
    """mix of blocks of `nbytes` bytes with codes of a `kind` from `start` on."""
    offset = ranged or zero != 0

    def mix(page, n, p, stride, rows, dim, out, scratch, record, unused, unused_too):
        if rows > FEW_ROWS:
            call_many(MIX, page, n, p, stride, rows, dim, out, scratch, record)
            return
        wide, row_nbytes = width(dim), field(record, ROW_NBYTES)
        scales, weights = scratch, scratch + 8 * CHUNK
        ahead = load_i64(scratch - 8) - page
        for t0 in range(0, n, CHUNK):
            count, block, target = min(CHUNK, n - t0), page + t0 * row_nbytes, out
            for _ in range(0, wide, 32):
                _load_scales(block, count, row_nbytes, zero, ranged, scales)
                for i in range(rows):
                    row, left = p + i * stride + 4 * t0, weights + 4 * CHUNK * i
                    _weigh(row, scales, count, offset, left, target + 4 * wide * i)
                codes, apart = block + start, 4 * wide
                _mixes(rows, weights, codes, kind, row_nbytes, ahead, count, target, apart)
                block += nbytes
                target += 128

    return Verb(mix)


# What codes are, bytes of a block, bytes in front of its codes, the code of 0 or, in ranges, of m,
# whether m is stored.
_FORMS = {
    Q8_0.name: (_BYTES, 34, 2, 0, False),
    Q5_1.name: (_FIVES, 24, 4, -16, True),
    Q5_0.name: (_FIVES, 22, 2, 0, False),
    Q4_1.name: (_NIBBLES, 20, 4, 0, True),
    Q4_0.name: (_NIBBLES, 18, 2, 8, False),
    IQ4_NL.name: (_LEVELS, 18, 2, 0, False),
}


def mix_verb(kind: TokenFormat) -> Verb | None:
    """The verb of a format, None if its codes are multiplied in integers."""
    return _verb(*_FORMS[kind.name]) if kind.name in _FORMS else None
