"""Vectors in another order: words at indices, a mask's lanes side by side, twice the lanes."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from engine.cpu.deferred import cgutils, intrinsic, types
from engine.cpu.host import AVX512, VBMI
from engine.cpu.jit import inlined
from engine.cpu.simd import (
    Vector,
    broadcast,
    f32x16,
    i32x16,
    load,
    load_u8,
    pointer,
    store,
    store_u8,
    u8x64,
    zeros,
)

_I8, _I32, _POINTER = ir.IntType(8), ir.IntType(32), ir.PointerType()
_FLAGS = ir.VectorType(ir.IntType(1), 16)
_ALL = ir.Constant(_FLAGS, [True] * 16)


def _call(builder: Any, name: str, result: Any, args: list[Any]) -> Any:
    kind = ir.FunctionType(result, [arg.type for arg in args])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.{name}")
    return builder.call(function, args)


def _places(builder: Any, vector: Any, base: Any, index: Any) -> Any:
    places = builder.gep(pointer(builder, base), [index], source_etype=vector.llvm.element)
    places.type = ir.VectorType(_POINTER, 16)  # which llvmlite does not infer
    return places


def _suffix(vector: Any) -> str:
    return f"v16{vector.element.replace('u', 'i')}"


@intrinsic
def _look_up_32(typing_context, found, index, first, address):
    """`found`, or in lanes whose index is one of first..first+31 that float32 of `address`'s 32."""

    def emit(context, builder, signature, args):
        before, indices, start, base = args
        start = builder.trunc(start, _I32)
        undefined = ir.Constant(i32x16.llvm, ir.Undefined)
        splat = builder.insert_element(undefined, start, _I32(0))
        splat = builder.shuffle_vector(splat, undefined, ir.Constant(i32x16.llvm, None))
        offset = builder.sub(indices, splat)
        halves = [
            builder.load(pointer(builder, at), typ=f32x16.llvm, align=1)
            for at in (base, builder.add(base, ir.IntType(64)(64)))
        ]
        kind = ir.FunctionType(f32x16.llvm, [f32x16.llvm, i32x16.llvm, f32x16.llvm])
        name = "llvm.x86.avx512.vpermi2var.ps.512"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        values = builder.call(function, [halves[0], offset, halves[1]])
        here = builder.icmp_unsigned("<", offset, ir.Constant(i32x16.llvm, [32] * 16))
        return builder.select(here, values, before)

    return f32x16(f32x16, i32x16, types.int64, types.int64), emit


@intrinsic
def gather(typing_context, kind, base, index):
    """Lane i: the value number index[i], i32x16, of those at `base`; `kind` has 16 lanes."""
    vector = kind.instance_type

    def emit(context, builder, signature, args):
        places = _places(builder, vector, args[1], args[2])
        rest = ir.Constant(vector.llvm, ir.Undefined)
        name = f"gather.{_suffix(vector)}.v16p0"
        return _call(builder, name, vector.llvm, [places, _I32(4), _ALL, rest])

    return vector(kind, types.int64, index), emit


@intrinsic
def scatter(typing_context, base, index, value):
    """Inverse of `gather`; indices differ."""

    def emit(context, builder, signature, args):
        places = _places(builder, value, args[0], args[1])
        name = f"scatter.{_suffix(value)}.v16p0"
        _call(builder, name, ir.VoidType(), [args[2], places, _I32(4), _ALL])
        return context.get_dummy_value()

    return types.void(types.int64, index, value), emit


@intrinsic
def store_selected(typing_context, address, value, mask):
    """Store those of 16 lanes whose bit in the int64 `mask` is 1, one after another."""

    def emit(context, builder, signature, args):
        chosen = builder.bitcast(builder.trunc(args[2], ir.IntType(16)), _FLAGS)
        target = pointer(builder, args[0])
        _call(builder, f"compressstore.{_suffix(value)}", ir.VoidType(), [args[1], target, chosen])
        return context.get_dummy_value()

    return types.void(types.int64, value, types.int64), emit


@intrinsic
def count_ones(typing_context, word):
    """How many bits of an int64 are 1."""

    def emit(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.int64(types.int64), emit


@inlined
def _permuted(row, n, index):
    found = zeros(f32x16)
    for first in range(0, n, 32):
        found = _look_up_32(found, index, first, row + 4 * first)
    return found


@inlined
def _gathered(row, n, index):
    return gather(f32x16, row, index)


look_up_row: Any = _permuted if AVX512 else _gathered
"""Lane i: the float32 number index[i], i32x16, of the n at an address.

Faster than a gather.  Where n is no multiple of 32, what lies behind is read, too.
"""


@intrinsic
def _look_up_128(typing_context, found, index, first, address):
    """`found`, or in lanes whose index is one of first..first+127 that byte of `address`'s 128."""

    def emit(context, builder, signature, args):
        before, indices, start, base = args
        offset = builder.sub(indices, broadcast(builder, u8x64, builder.trunc(start, _I8)))
        halves = [
            builder.load(pointer(builder, at), typ=u8x64.llvm, align=1)
            for at in (base, builder.add(base, ir.IntType(64)(64)))
        ]
        kind = ir.FunctionType(u8x64.llvm, [u8x64.llvm] * 3)
        name = "llvm.x86.avx512.vpermi2var.qi.512"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        values = builder.call(function, [halves[0], offset, halves[1]])
        here = builder.icmp_unsigned("<", offset, ir.Constant(u8x64.llvm, [128] * 64))
        return builder.select(here, values, before)

    return u8x64(u8x64, u8x64, types.int64, types.int64), emit


@inlined
def take_bytes(row, index, n, target):
    """Byte row[index[i]] to target[i], n of them at most 256, and all are in the row.

    Up to 127 bytes behind `row` and 63 behind `index` may be read, and 63 behind `target` written.
    """
    if VBMI:
        for i in range(0, n, 64):
            places, found = load(u8x64, index + i), zeros(u8x64)
            for first in range(0, n, 128):
                found = _look_up_128(found, places, first, row + first)
            store(target + i, found)
    else:
        for i in range(n):
            store_u8(target + i, load_u8(row + int(load_u8(index + i))))


@intrinsic
def widened(typing_context, value):
    """A vector of twice the lanes: `value`, then zeros."""
    wide = Vector(value.element, 2 * value.lanes)

    def emit(context, builder, signature, args):
        order = ir.Constant(ir.VectorType(_I32, wide.lanes), list(range(wide.lanes)))
        return builder.shuffle_vector(args[0], ir.Constant(value.llvm, None), order)

    return wide(value), emit
