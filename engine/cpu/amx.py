"""Tile registers: products of bfloat16 matrices, 16 x 32 by 32 x 16 at a time, on hosts with AMX.

A tile is 16 rows of 64 bytes.  Tiles 0-3 hold float32 sums (two row blocks by two column blocks),
4 and 5 the left factors (bf16 [16, 32], rows as they are), 6 and 7 the right ones: bf16 pairs
[16, 16, 2], so that lane n of row k holds (k, n) of rows 2 k and 2 k + 1.  The tile registers
belong to a thread: `tiles_begin` before use, `tiles_end` after, in one kernel.

Call only where `engine.cpu.host.AMX` is true: kernels that may are compiled everywhere, and on
other hosts these instructions trap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from engine.cpu.deferred import cgutils, intrinsic, types
from engine.cpu.host import AMX, BF16
from engine.cpu.jit import inlined
from engine.cpu.simd import (
    bitcast,
    f32x16,
    pointer,
    store,
    store_u8,
    store_u16,
    u8x64,
    u16x16,
    u16x32,
    u32x16,
    zeros,
)

TILE = 1024  # bytes
ROWS = 32  # of the sums
_I8 = ir.IntType(8)


def _tile_call(builder: Any, name: str, values: list[Any]) -> None:
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in values] if AMX else [])
    function = f"llvm.x86.{name}" if AMX else "llvm.trap"
    values = values if AMX else []
    builder.call(cgutils.get_or_insert_function(builder.module, kind, function), values)


def _plain(name: str, *tiles: int) -> Any:
    """A tile instruction whose operands are all tile numbers."""

    @intrinsic
    def instruction(typing_context):
        def emit(context, builder, signature, args):
            _tile_call(builder, name, [_I8(tile) for tile in tiles])
            return context.get_dummy_value()

        return types.void(), emit

    return instruction


def _memory(name: str, tile: int) -> Any:
    """Tile `tile` from or to rows at an address, `stride` bytes apart."""

    @intrinsic
    def instruction(typing_context, address, stride):
        def emit(context, builder, signature, args):
            _tile_call(builder, name, [_I8(tile), pointer(builder, args[0]), args[1]])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), emit

    return instruction


@intrinsic
def _configure(typing_context, address):
    def emit(context, builder, signature, args):
        _tile_call(builder, "ldtilecfg", [pointer(builder, args[0])])
        return context.get_dummy_value()

    return types.void(types.int64), emit


tiles_end = _plain("tilerelease")
_zero_0, _zero_1, _zero_2, _zero_3 = (_plain("tilezero", i) for i in range(4))
_load_0, _load_1, _load_2, _load_3 = (_memory("tileloadd64", i) for i in range(4))
_load_4, _load_5, _load_6, _load_7 = (_memory("tileloadd64", i) for i in range(4, 8))
_store_0, _store_1, _store_2, _store_3 = (_memory("tilestored64", i) for i in range(4))
_dot_046, _dot_147 = _plain("tdpbf16ps", 0, 4, 6), _plain("tdpbf16ps", 1, 4, 7)
_dot_256, _dot_357 = _plain("tdpbf16ps", 2, 5, 6), _plain("tdpbf16ps", 3, 5, 7)
_dot_156, _dot_246 = _plain("tdpbf16ps", 1, 5, 6), _plain("tdpbf16ps", 2, 4, 6)
_dot_347 = _plain("tdpbf16ps", 3, 4, 7)
_bytes_046, _bytes_147 = _plain("tdpbsud", 0, 4, 6), _plain("tdpbsud", 1, 4, 7)
_bytes_256, _bytes_357 = _plain("tdpbsud", 2, 5, 6), _plain("tdpbsud", 3, 5, 7)


@inlined
def _products():
    """sums += the left tiles by the right ones."""
    _dot_046()
    _dot_147()
    _dot_256()
    _dot_357()


@inlined
def tiles_begin(config):
    """Configure all tiles as 16 rows of 64 bytes; `config` is the address of 64 bytes to spare."""
    store(config, zeros(u8x64))
    store_u8(config, 1)
    for tile in range(8):
        store_u16(config + 16 + 2 * tile, 64)
        store_u8(config + 48 + tile, 16)
    _configure(config)


@inlined
def sums_zero():
    _zero_0()
    _zero_1()
    _zero_2()
    _zero_3()


@inlined
def sums_load(address, stride):
    """The four sums from float32 [32, 32] with `stride` bytes between rows."""
    _load_0(address, stride)
    _load_1(address + 64, stride)
    _load_2(address + 16 * stride, stride)
    _load_3(address + 16 * stride + 64, stride)


@inlined
def sums_store(address, stride):
    _store_0(address, stride)
    _store_1(address + 64, stride)
    _store_2(address + 16 * stride, stride)
    _store_3(address + 16 * stride + 64, stride)


@inlined
def sums_store_upper(address, stride):
    """The upper 16 rows of the sums."""
    _store_0(address, stride)
    _store_1(address + 64, stride)


@inlined
def _add(left, lower, stride, step, right_0, right_1, n, integers):
    """sums += left right over n steps, the constant `integers` telling of what.

    The left factor's rows 0-15 begin at `left` and 16-31 at `lower`, rows `stride` bytes apart and
    steps `step`; the right one's are tiles, n one after another for either half of the columns.
    """
    for i in range(n):
        _load_4(left + step * i, stride)
        _load_6(right_0 + TILE * i, 64)
        _load_5(lower + step * i, stride)
        _load_7(right_1 + TILE * i, 64)
        if integers:
            _bytes_046()
            _bytes_147()
            _bytes_256()
            _bytes_357()
        else:
            _products()


@inlined
def sums_add_tiles(left, lower, right_0, right_1, n):
    """sums += left right over n steps of 32.

    `left` and `lower` are tiles of rows 0-15 and 16-31; `right_0` and `right_1` are tiles of pairs
    for columns 0-15 and 16-31; n of each follow one another.
    """
    _add(left, lower, 64, TILE, right_0, right_1, n, False)


@inlined
def first_part(right_low):
    """The first of the products of halves, of which the last is 2: two or three."""
    return 1 if right_low == 0 else 0


@inlined
def sums_add_halves(part, left, stride, right_0, right_1, right_low):
    """Products of halves in a step of 32, sums += high low, high high, low high: the one that is
    `part`'s turn, from `first_part` on.

    `left` has rows `stride` bytes apart, the low halves of 32 values behind the high ones; a tile's
    low halves on the right are `right_low` bytes behind it, or not there if that is 0.
    """
    if part == first_part(right_low):
        _load_4(left, stride)
        _load_5(left + 16 * stride, stride)
    if part == 0:
        _load_6(right_0 + right_low, 64)
        _load_7(right_1 + right_low, 64)
    elif part == 1:
        _load_6(right_0, 64)
        _load_7(right_1, 64)
    else:
        _load_4(left + 64, stride)
        _load_5(left + 16 * stride + 64, stride)
    _products()


@inlined
def column_zero():
    _zero_0()
    _zero_1()


@inlined
def column_add(left, stride, right, n):
    """Sums as float32 [32, 16], a tile below the other: += left right over n steps of 32.

    `left` is bf16 [32, 32 n] with `stride` bytes between rows, `right` n tiles of pairs.
    """
    for i in range(n):
        _load_6(right + TILE * i, 64)
        _load_4(left + 64 * i, stride)
        _dot_046()
        _load_5(left + 64 * i + 16 * stride, stride)
        _dot_156()


@inlined
def column_store(address):
    """The sums of `column_add` as float32 [32, 16]."""
    _store_0(address, 64)
    _store_1(address + TILE, 64)


@inlined
def row_add(left, right):
    """Sums as float32 [16, 64], side by side: += left right, a tile by four tiles of pairs."""
    _load_4(left, 64)
    _load_6(right, 64)
    _dot_046()
    _load_7(right + TILE, 64)
    _dot_147()
    _load_6(right + 2 * TILE, 64)
    _dot_246()
    _load_7(right + 3 * TILE, 64)
    _dot_347()


@inlined
def row_store(address):
    """The sums of `row_add` as float32 [16, 64]."""
    _store_0(address, 256)
    _store_1(address + 64, 256)
    _store_2(address + 128, 256)
    _store_3(address + 192, 256)


@inlined
def bytes_add(left, stride, right_0, right_1, n):
    """int32 sums += int8 [32, 64 n], rows `stride` bytes apart, by tiles of unsigned bytes, each
    of a tile's rows being four."""
    _add(left, left + 16 * stride, stride, 64, right_0, right_1, n, True)


@inlined
def bytes_add_upper(left, stride, right_0, right_1, n):
    """`bytes_add` of 16 rows on the left, whose sums `sums_store_upper` stores."""
    for step in range(n):
        _load_4(left + 64 * step, stride)
        _load_6(right_0 + TILE * step, 64)
        _bytes_046()
        _load_7(right_1 + TILE * step, 64)
        _bytes_147()


@inlined
def pair_bf16(even, odd):
    """Two f32x16 as 16 pairs of bfloat16, rounded to nearest, halves away from zero."""
    low, high = bitcast(u32x16, even) + 0x8000, bitcast(u32x16, odd) + 0x8000
    return (low >> 16) | (high & np.uint32(0xFFFF0000))


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite lacks."""

    def __str__(self) -> str:
        return "bfloat"


@intrinsic
def both_bf16(typing_context, first, second):
    """u16x32: two f32x16 that bfloat16 holds exactly, or is to round to nearest."""

    def emit(context, builder, signature, args):
        if BF16:
            kind = ir.FunctionType(ir.VectorType(_BFloat(), 32), [f32x16.llvm] * 2)
            name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            return builder.bitcast(builder.call(function, args[::-1]), u16x32.llvm)
        words = [builder.bitcast(arg, u32x16.llvm) for arg in args]
        half, shift = (ir.Constant(u32x16.llvm, [value] * 16) for value in (0x8000, 16))
        words = [builder.lshr(builder.add(word, half), shift) for word in words]
        first, second = (builder.trunc(word, u16x16.llvm) for word in words)
        order = ir.Constant(ir.VectorType(ir.IntType(32), 32), list(range(32)))
        return builder.shuffle_vector(first, second, order)

    return u16x32(f32x16, f32x16), emit
