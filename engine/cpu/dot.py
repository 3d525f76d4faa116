"""Sums of byte products: VNNI's vpdpbusd where the host has it, plain operations elsewhere."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from engine.cpu.deferred import cgutils, intrinsic, types
from engine.cpu.host import VNNI
from engine.cpu.jit import kernel
from engine.cpu.simd import (
    bitcast,
    broadcast,
    i8x64,
    i32x16,
    load_i32,
    pointer,
    splat,
    u8x64,
    u32x16,
)


def _vnni(builder: Any, sums: Any, u: Any, s: Any) -> Any:
    kind = ir.FunctionType(i32x16.llvm, [i32x16.llvm, u8x64.llvm, i8x64.llvm])
    name = "llvm.x86.avx512.vpdpbusd.512"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [sums, u, s])


def _portable(builder: Any, sums: Any, u: Any, s: Any) -> Any:
    words = u32x16.llvm
    unsigned, signed = builder.bitcast(u, words), builder.bitcast(s, words)

    def lanes(value: int) -> Any:
        return ir.Constant(words, [value] * 16)

    for byte in range(4):
        x = builder.and_(builder.lshr(unsigned, lanes(8 * byte)), lanes(255))
        y = builder.ashr(builder.shl(signed, lanes(24 - 8 * byte)), lanes(24))
        sums = builder.add(sums, builder.mul(x, y))
    return sums


def _dot_bytes(emit_body: Any) -> Any:
    @intrinsic
    def dot_bytes(typing_context, sums, u, s):
        def emit(context, builder, signature, args):
            return emit_body(builder, *args)

        return i32x16(i32x16, u8x64, i8x64), emit

    return dot_bytes


dot_bytes_portable = _dot_bytes(_portable)
dot_bytes = _dot_bytes(_vnni) if VNNI else dot_bytes_portable
"""sums i32x16 + the products of bytes 4 i .. 4 i + 3 of u u8x64 and s i8x64 in lane i, exactly."""


@intrinsic(prefer_literal=True)
def add_dots(typing_context, sums, codes, planes, stride, rows):
    """`dot_bytes` of `codes` u8x64 into a tuple of i32x16 sums, `rows` (a constant) of them, with
    the four signed bytes at `planes`, at `planes` + `stride`, ..."""

    def emit(context, builder, signature, args):
        totals, u, address, step, _ = args
        body, found = _vnni if VNNI else _portable, []
        for i in range(rows.literal_value):
            at = builder.add(address, builder.mul(step, ir.IntType(64)(i)))
            word = builder.load(pointer(builder, at), typ=ir.IntType(32), align=1)
            s = builder.bitcast(broadcast(builder, i32x16, word), i8x64.llvm)
            found.append(body(builder, builder.extract_value(totals, i), u, s))
        return context.make_tuple(builder, sums, found)

    return sums(sums, u8x64, types.int64, types.int64, rows), emit


@intrinsic(prefer_literal=True)
def zero_dots(typing_context, rows):
    """A tuple of `rows` (a constant) i32x16 zeros."""
    kind = types.UniTuple(i32x16.numba_type, rows.literal_value)

    def emit(context, builder, signature, args):
        return context.make_tuple(builder, kind, [ir.Constant(i32x16.llvm, None)] * kind.count)

    return kind(rows), emit


@intrinsic
def store_dots(typing_context, address, sums):
    """The vectors of a tuple, one after another."""

    def emit(context, builder, signature, args):
        for i in range(sums.count):
            at = pointer(builder, builder.add(args[0], ir.IntType(64)(64 * i)))
            builder.store(builder.extract_value(args[1], i), at, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, sums), emit


@kernel
def four_bytes(address):
    """The four bytes at `address` in every lane, as i8x64."""
    return bitcast(i8x64, splat(i32x16, load_i32(address)))
